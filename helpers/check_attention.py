"""The check for attention, part of helpers/check.py."""
import inspect

import numpy as np
import torch

from helpers import reference
from helpers.device import DEVICE
from helpers.properties import difference, properties, unwritten


def attention(fn, *, is_causal=False, return_lse=False, numpy=False):
    """fn(q, k, v) returns o, or (o, lse) with return_lse. float32 [N, D] each: NumPy arrays if numpy, else tensors.

    If fn takes BLOCK_M and BLOCK_N, its answer must not depend on them.
    """
    array = np.float32 if numpy else lambda x: torch.tensor(x, dtype=torch.float32, device=DEVICE)
    only_o = (lambda *args, **kwargs: fn(*args, **kwargs)[0]) if return_lse else fn
    first = 1 if is_causal else 0              # the first causal row has a property of its own

    def agrees(*inputs):
        def case(_):
            for q, k, v in inputs:
                want = reference.attention(q, k, v, is_causal=is_causal)
                problem = difference(only_o(array(q), array(k), array(v))[first:], want[first:])
                if problem:
                    return f"N = {len(q)}: {problem}" + (" (rows counted from 1)" if first else "")
            return ""
        return case

    def written(_):
        for N in (1, 50, 64):
            problem = unwritten(only_o(*map(array, _qkv(N))))
            if problem:
                return f"N = {N}: {problem}"
        return ""

    def untouched(_):
        inputs = [array(x) for x in _qkv(64)]
        before = [x.copy() if numpy else x.clone() for x in inputs]
        only_o(*inputs)
        changed = [name for name, x, y in zip("qkv", inputs, before) if not (x == y).all()]
        return f"{changed[0]} was changed" if changed else ""

    def first_row(_):
        q, k, v = _qkv(64)
        return difference(only_o(array(q), array(k), array(v))[:1], v[:1])

    def any_block(_):
        usual = only_o(*map(array, _qkv(64)))
        for BLOCK_M, BLOCK_N in ((16, 16), (64, 16), (16, 64)):
            problem = difference(only_o(*map(array, _qkv(64)), BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N), usual)
            if problem:
                return f"BLOCK_M = {BLOCK_M}, BLOCK_N = {BLOCK_N}: {problem}"
        return ""

    def lse(_):
        q, k, v = _qkv(64)
        _, want = reference.attention(q, k, v, is_causal=is_causal, return_lse=True)
        return difference(fn(array(q), array(k), array(v))[1], want)

    cases = [("the result is attention", agrees(_qkv(64))),
             ("a length that is no multiple of the block", agrees(_all_equal(50), _all_equal(17))),
             ("the largest score comes last", agrees(_one_large(64, key=-1, score=50))),
             ("logits of 1e4", agrees(_one_large(64, key=0, score=1e4))),
             ("every output element is written", written),
             ("the inputs are left as they were", untouched)]
    cases += [("the first causal row sees one key", first_row)] if is_causal else []
    cases += [("any block size gives the same answer", any_block)] if _takes_blocks(fn) else []
    cases += [("lse is the log of the sum of exponentials", lse)] if return_lse else []
    properties("causal attention" if is_causal else "attention", cases, fn)


def _takes_blocks(fn):
    return {"BLOCK_M", "BLOCK_N"} <= set(inspect.signature(fn).parameters)


def _qkv(N, D=16):
    """Random inputs whose first key has the largest score in every row, so that the running maximum never changes."""
    rng = np.random.default_rng(N)
    q, k, v = rng.standard_normal((3, N, D)).round(3)
    q[:, 0], k[0, 0] = 2, 3 * D**0.5
    return q, k, v


def _all_equal(N):
    """Every score is 0: each row is the mean of the values it sees, whatever the scale."""
    _, k, v = _qkv(N)
    return np.zeros_like(k), k, v


def _one_large(N, key, score):
    """One key has the given score, every other key 0."""
    _, k, v = _qkv(N)
    q, k = np.zeros_like(k), np.zeros_like(k)
    q[:, 0], k[key, 0] = 1, score * k.shape[1]**0.5
    return q, k, v
