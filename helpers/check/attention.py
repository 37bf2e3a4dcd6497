"""The check for attention, part of helpers/check.py."""
import inspect

import numpy as np
import torch

from helpers import reference
from helpers.device import DEVICE
from helpers.check.core import difference, guarded, outside, properties, unwritten


def attention(fn, *, is_causal=False, return_lse=False, numpy=False):
    """fn(q, k, v) returns o, or (o, lse) with return_lse. float32 [N, D] each: NumPy arrays if numpy, else tensors.

    If fn takes BLOCK_M and BLOCK_N, its answer must not depend on them.
    """
    array = np.float32 if numpy else lambda x: guarded(torch.tensor(x, dtype=torch.float32, device=DEVICE))
    only_o = (lambda *args, **kwargs: fn(*args, **kwargs)[0]) if return_lse else fn
    def agrees(*inputs):
        def case(_):
            for q, k, v in inputs:
                want = reference.attention(q, k, v, is_causal=is_causal)
                got = only_o(array(q), array(k), array(v))
                if is_causal and got.shape == want.shape:            # the first row has a property of its own
                    got[0] = array(want[0])
                problem = difference(got, want)
                if problem:
                    return f"N = {len(q)}: {problem}"
            return ""
        return case

    def written(_):
        for N in (1, 50, 64):
            problem = unwritten(only_o(*map(array, _qkv(N))))
            if problem:
                return f"N = {N}: {problem}"
        return ""

    def inside(_):
        for N in (1, 50, 64):
            inputs = [array(x) for x in _qkv(N)]
            problem = next(filter(None, map(outside, (only_o(*inputs), *inputs))), "")
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
        if not (usual == usual).all():
            return ""                                    # NaN: other properties say so
        for BLOCK_M, BLOCK_N in ((16, 16), (64, 16), (16, 64)):
            other = only_o(*map(array, _qkv(64)), BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N)
            if is_causal:
                other[0] = usual[0]                      # the first row has a property of its own
            problem = difference(other, usual)
            if problem:
                return f"BLOCK_M = {BLOCK_M}, BLOCK_N = {BLOCK_N}: {problem}"
        return ""

    def lazy(_):
        q, k, v = _qkv(128)
        v[64:] = np.nan                                  # 0 * NaN is NaN: a tile above the diagonal leaves its mark
        spoilt = [row for row, o in enumerate(only_o(array(q), array(k), array(v))[1:64], 1) if not (o == o).all()]
        return f"row {spoilt[0]} multiplied values of later tiles: they are NaN, and so is the row" if spoilt else ""

    def lse(_):
        q, k, v = _qkv(64)
        _, want = reference.attention(q, k, v, is_causal=is_causal, return_lse=True)
        return difference(fn(array(q), array(k), array(v))[1], want)

    cases = [("the result is attention", agrees(_qkv(64))),
             ("each row has a maximum of its own", agrees(_two_levels(64, 400))),
             ("a length that is no multiple of the block", agrees(_all_equal(50), _all_equal(17), _all_equal(50, score=-400))),
             ("the largest score comes last", agrees(_one_large(64, key=-1, score=50))),
             ("logits of 1e4", agrees(_one_large(64, key=0, score=1e4))),
             ("every output element is written", written),
             ("the inputs are left as they were", untouched)]
    if is_causal:
        cases += [("the first causal row sees one key", first_row),
                  ("a later key weighs nothing, however low the scores", agrees(_all_equal(64, score=-1e30)))]
    cases += [] if numpy else [("nothing is written outside of the tensors", inside)]
    cases += [("tiles above the diagonal are not visited", lazy)] if is_causal and _takes_blocks(fn) else []
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


def _all_equal(N, score=0):
    """Every score is the same: each row is the mean of the values it sees, whatever the scale."""
    _, k, v = _qkv(N)
    q, k = np.zeros_like(k), np.zeros_like(k)
    q[:, 0], k[:, 0] = 1, score * k.shape[1]**0.5
    return q, k, v


def _two_levels(N, score):
    """Every score is the same as in _all_equal, but negative in every other row: no two neighbours can share a maximum."""
    q, k, v = _all_equal(N, score)
    q[1::2] *= -1
    return q, k, v


def _one_large(N, key, score):
    """One key has the given score, every other key 0."""
    _, k, v = _qkv(N)
    q, k = np.zeros_like(k), np.zeros_like(k)
    q[:, 0], k[key, 0] = 1, score * k.shape[1]**0.5
    return q, k, v
