"""Checks of the gradients of attention in NumPy: of a softmax, of keys and values in blocks, of a bias on positions."""
import functools
import tracemalloc

import numpy as np

from helpers import reference
from helpers.check.core import agrees, difference, differences, first, over, parameters, properties, untouched


def softmax(s):
    """The softmax of each row."""
    p = np.exp(s - s.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def _ds(p, dp):
    return p * (dp - (p * dp).sum(axis=1, keepdims=True))


def _at_most(limit, fn, *inputs):
    """A problem: fn(*inputs) takes more than `limit` bytes."""
    tracemalloc.start()
    try:
        fn(*inputs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return f"{peak / 1e6:.2f} MB at its peak, expected less than {limit / 1e6:.2f} MB" if peak >= limit else ""


# ---------------------------------------------------------------- the softmax's gradient

def softmax_backward(fn):
    """fn(p, dp) returns ds [N_q, N_k]: the gradient of the scores, from each row's softmax p and its gradient dp."""
    p, dp = softmax(np.random.default_rng(0).standard_normal((4, 4))), np.random.default_rng(1).standard_normal((4, 4))
    long = np.full((1, 2000), 1 / 2000), np.cos(np.arange(2000.0))[None]
    on, right = over("", lambda *inputs: map(np.copy, inputs)), agrees(_ds, 1e-9)
    properties("softmax_backward", [
        ("one row", on(right, (p[:1], dp[:1]))),
        ("the rows do not mix", on(right, (p, dp))),
        ("dp that is the same for all keys gives zeros", on(right, (p, np.full((4, 4), 3.0)))),
        ("a probability of 0 gives 0", on(right, (np.tile([0.25, 0, 0.75], (3, 1)), np.tile([1.0, 2, -4], (3, 1))))),
        ("no Jacobian is built", on(functools.partial(_at_most, 8e6), long)),                 # a quarter of one
        ("the inputs are left as they were", on(untouched, (p, dp)))], fn)


# ---------------------------------------------------------------- dK and dV in blocks, causal

def blocked_dkdv(fn):
    """fn(q, k, v, do, lse, delta, scale, BLOCK) returns dk, dv of causal attention, float64: q [N_q, D], k [N_k, D]."""
    on = over("N_q = {}, N_k = {}, blocks of {}", _causal_inputs)
    shifts = [(40, 40 + shift, BLOCK) for BLOCK in (16, 32) for shift in range(-33, 34)]
    properties("blocked_dkdv", [
        ("one block", on(_dkdv, (16, 16, 16))),
        ("several blocks", on(_dkdv, (96, 96, 32), (64, 64, 16))),
        ("a length that is no multiple of the block", on(_dkdv, (50, 50, 32), (17, 17, 32))),
        ("more keys than queries", on(_dkdv, (50, 90, 32), (32, 96, 32), (1, 70, 16), (96, 192, 32))),
        ("more queries than keys", on(_dkdv, (90, 50, 32), (96, 32, 32), (70, 1, 16))),
        ("a few keys more or less than queries", on(_dkdv, *shifts)),
        ("the scale that it is given", on(_dkdv, (32, 32, 32, 1.5))),
        ("masked scores far above the others", on(_dkdv, (32, 32, 32, 8**-0.5, 1e3))),
        ("tiles above the diagonal are not visited", on(_early_queries, (96, 96, 32))),
        ("the inputs are left as they were", on(untouched, (32, 32, 32)))], fn)


def _causal_inputs(N_q, N_k, BLOCK, scale=8**-0.5, step=0.0):
    """q, k, v, do, lse, delta, scale, BLOCK, float64, D = 8; each key scores `step` more than the one before it."""
    rng = np.random.default_rng(N_q + N_k)
    q, do, k, v = (rng.standard_normal((N, 8)) for N in (N_q, N_q, N_k, N_k))
    q[:, 0], k[:, 0] = 1, k[:, 0] + np.arange(N_k) * step / scale
    o, lse = reference.attention(q, k, v, is_causal=True, scale=scale, return_lse=True)
    return q, k, v, do, lse, (do * o).sum(axis=1), scale, BLOCK


def _dkdv(fn, q, k, v, do, lse, delta, scale, BLOCK):
    want = reference.attention_grads(q, k, v, do, is_causal=True, scale=scale)[1:]
    return differences("dk dv", fn(q, k, v, do, lse, delta, scale, BLOCK), want, 1e-9)


def _early_queries(fn, q, k, v, do, *rest):
    do[:32] = np.nan                                     # 0 * NaN is NaN: a visit leaves its mark
    for name, x in zip(("dk", "dv"), fn(q, k, v, do, *rest)):
        spoilt = np.flatnonzero(np.isnan(x[32:]).any(axis=1)) + 32
        if len(spoilt):
            return f"{name} of key {spoilt[0]} used do of queries 0 to 31, which do not see it: NaN, and so is {name}"
    return ""


# ---------------------------------------------------------------- the gradient of a bias on relative positions

def attention_dbias(fn):
    """fn(q, k, v, bias, do) returns dbias [2 N - 1] for s = q k^T / sqrt(D) + bias[i - j + N - 1], no mask, float64.

    It goes tile by tile. If fn takes BLOCK, its answer must not depend on it.
    """
    on, right = over("N = {}", _bias_inputs), agrees(_diagonal_sums, 1e-9)
    blocks = "BLOCK" in parameters(fn)
    strip = functools.partial(_at_most, 64 * 3000 * 8)   # 64 queries and all keys
    properties("attention_dbias", [
        ("the sums along the diagonals are right", on(right, 2, 16, 64, 128)),
        ("a length that is no multiple of the block", on(right, 1, 50, 67, 100)),
        ("the bias is part of the scores", on(right, (64, 2.0))),
        ("logits of 1e4", on(right, (64, 0.0, 1e4))),
        ("no matrix is held, nor a strip of it", on(strip, (3000, 0.0, 0.0, 4))),
        ("the inputs are left as they were", on(untouched, 64))
    ] + blocks * [("any block size gives the same answer", on(_any_block, 64))], fn)


def _bias_inputs(N, bias=0.0, score=0.0, D=8):
    """q, k, v, bias, do, float64; the bias is random times `bias`, and every score has `score` added to it."""
    rng = np.random.default_rng(N)
    q, k, v, do = rng.standard_normal((4, N, D))
    q[:, 0], k[:, 0] = 1, k[:, 0] + score * D**0.5
    return q, k, v, bias * rng.standard_normal(2 * N - 1), do


def _diagonal_sums(q, k, v, bias, do):
    N = len(q)
    distance = np.arange(N)[:, None] - np.arange(N)[None, :]
    p = softmax(q.shape[1]**-0.5 * q @ k.T + bias[distance + N - 1])
    return np.array([np.trace(_ds(p, do @ v.T), -r) for r in range(1 - N, N)])   # np.trace counts j - i


def _any_block(fn, *inputs):
    want = _diagonal_sums(*inputs)
    found = {n: difference(fn(*inputs, BLOCK=n), want, 1e-9) for n in (16, 48, 200)}
    return first(problem and f"BLOCK = {n}: {problem}" for n, problem in found.items())
