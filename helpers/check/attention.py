"""The check of attention for one head, and inputs on which its ordinary mistakes show."""
import functools

import numpy as np

from helpers import reference
from helpers.check.core import (agrees, difference, everywhere, outside, over, parameters, properties, tensor,
                                untouched, unwritten)


def attention(fn, *, is_causal=False, return_lse=False, numpy=False):
    """fn(q, k, v) returns o, or (o, lse) with return_lse. float32 [N, D] each: NumPy arrays if numpy, else tensors.

    If fn takes BLOCK_M and BLOCK_N, its answer must not depend on them.
    """
    only_o = functools.wraps(fn)(lambda *args, **blocks: fn(*args, **blocks)[0]) if return_lse else fn
    right = agrees(functools.partial(reference.attention, is_causal=is_causal))
    takes_blocks = {"BLOCK_M", "BLOCK_N"} <= set(parameters(fn))

    def on(make):
        return over("N = {}", lambda *key: [np.float32(x) if numpy else tensor(x) for x in make(*key)])

    cases = [("the result is attention", on(steady)(right, 64)),
             ("maxima that move a little, in each row differently", on(moving)(right, 64, 128)),
             ("each row has a maximum of its own", on(two_levels)(right, (64, 400))),
             ("a length that is no multiple of the block", on(equal_scores)(right, 50, 17, (50, -400))),
             ("the largest score comes last", on(one_large)(right, (64, -1, 50))),
             ("logits of 1e4", on(one_large)(right, (64, 0, 1e4))),
             ("every output element is written", on(steady)(everywhere(unwritten), 1, 50, 64)),
             ("the inputs are left as they were", on(steady)(untouched, 64))]
    if is_causal:
        cases += [("the first causal row sees one key", on(steady)(_first_row, 64)),
                  ("a later key weighs nothing, however low the scores", on(equal_scores)(right, (64, -1e30))),
                  ("a later key is no row's maximum, however high its score", on(one_large)(right, (64, -1, 1e4)))]
    else:
        cases += [("keys beyond the end weigh nothing, however low the scores", on(equal_scores)(right, (50, -1e30)))]
    if not numpy:
        cases += [("nothing is written outside of the tensors", on(steady)(everywhere(outside), 1, 50, 64))]
    if is_causal and takes_blocks:
        cases += [("tiles above the diagonal are not visited", on(half_nan)(_lazy, 128))]
    if takes_blocks:
        cases += [("any block size gives the same answer", on(steady)(_any_block(right), 64))]
    if return_lse:
        lse = agrees(lambda *qkv: reference.attention(*qkv, is_causal=is_causal, return_lse=True)[1])
        cases += [("lse is the log of the sum of exponentials",
                   lambda _: on(moving)(lse, 64)(lambda *qkv: fn(*qkv)[1]))]
    properties("causal attention" if is_causal else "attention", cases, only_o)


def _first_row(fn, q, k, v):
    return difference(fn(q, k, v)[:1], v[:1])


def _any_block(right):
    """A block size is blamed if its answer is another than the usual one, and a wrong one: the usual one may be wrong."""
    def problem(fn, q, k, v):
        usual = fn(q, k, v)
        for BLOCK_M, BLOCK_N in ((16, 16), (64, 16), (16, 64)):
            got = fn(q, k, v, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N)
            if difference(got, usual) and (found := right(lambda *_: got, q, k, v)):
                return f"BLOCK_M = {BLOCK_M}, BLOCK_N = {BLOCK_N}: {found}"
        return ""
    return problem


def _lazy(fn, q, k, v):
    """0 * NaN is NaN: a tile above the diagonal leaves its mark."""
    spoilt = [row for row, o in enumerate(fn(q, k, v)[1:len(q) // 2], 1) if not (o == o).all()]
    return f"row {spoilt[0]} multiplied values of later tiles: they are NaN, and so is the row" if spoilt else ""


# ---------------------------------------------------------------- inputs q, k, v [N, D]

def steady(N, D=16):
    """Random inputs whose first key has the largest score in every row, so that the running maximum never changes."""
    q, k, v = np.random.default_rng(N).standard_normal((3, N, D)).round(3)
    q[:, 0], k[0, 0] = 2, 3 * D**0.5
    return q, k, v


def moving(N, D=16):
    """Random inputs whose running maximum moves by 0.1 to 3 from 16 keys to the next, in each row by its own amount.

    In one row of four it falls instead, so that the first keys hold the maximum.
    """
    rng = np.random.default_rng(N)
    q, k, v = rng.standard_normal((3, N, D))
    q *= 0.3
    q[:, 0] = rng.permutation(np.linspace(-0.7, 2.1, N))
    k[:, 0] = np.arange(N) / 16 * D**0.5
    return q, k, v


def half_nan(N):
    """`steady`, with values that are NaN in the second half."""
    q, k, v = steady(N)
    v[N // 2:] = np.nan
    return q, k, v


def equal_scores(N, score=0):
    """Every score is the same: each row is the mean of the values it sees, whatever the scale."""
    return one_large(N, slice(None), score)


def two_levels(N, score):
    """As equal_scores, but negative in every other row: no two neighbours can share a maximum."""
    q, k, v = equal_scores(N, score)
    q[1::2] *= -1
    return q, k, v


def one_large(N, key, score):
    """One key has the given score, every other key 0."""
    _, k, v = steady(N)
    q, k = np.zeros_like(k), np.zeros_like(k)
    q[:, 0], k[key, 0] = 1, score * k.shape[1]**0.5
    return q, k, v
