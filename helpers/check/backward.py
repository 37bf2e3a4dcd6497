"""The checks for the backward pass, part of helpers/check.py: the softmax's gradient, dK and dV in blocks, a bias."""
import inspect
import tracemalloc

import numpy as np
import torch

from helpers import reference
from helpers.device import DEVICE
from helpers.check.core import difference, guarded, outside, properties, unwritten


def _memory(N, *inputs):
    def case(fn):
        tracemalloc.start()
        try:
            fn(*inputs)
            peak, limit = tracemalloc.get_traced_memory()[1], N * N * 8 // 4     # a quarter of a float64 matrix
        finally:
            tracemalloc.stop()
        return f"{peak / 1e6:.1f} MB at its peak, expected less than {limit / 1e6:.1f} MB" if peak >= limit else ""
    return case


def _untouched(names, *inputs):
    def case(fn):
        given = [np.copy(x) for x in inputs]
        fn(*given)
        changed = [name for name, x, y in zip(names.split(), given, inputs) if not np.array_equal(x, y)]
        return f"{changed[0]} was changed" if changed else ""
    return case


def _agree(title, got, want, tolerance=1e-5):
    """"" if the (dk, dv) that fn returned are right, else the first difference, behind a title."""
    problems = ((name, difference(x, y, tolerance)) for name, x, y in zip(("dk", "dv"), got, want, strict=True))
    return next((f"{title}{name}: {problem}" for name, problem in problems if problem), "")


# ---------------------------------------------------------------- the softmax's gradient

def _softmax(s):
    p = np.exp(s - s.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def _ds(p, dp):
    return p * (dp - (p * dp).sum(axis=1, keepdims=True))


def _rows(p, dp):
    return lambda fn: difference(fn(p.copy(), dp.copy()), _ds(p, dp), tolerance=1e-9)


P, DP = _softmax(np.random.default_rng(0).standard_normal((4, 4))), np.random.default_rng(1).standard_normal((4, 4))
LONG = np.full((1, 2000), 1 / 2000)
SOFTMAX_BACKWARD = [("one row", _rows(P[:1], DP[:1])),
                    ("the rows do not mix", _rows(P, DP)),
                    ("dp that is the same for all keys gives zeros", _rows(P, np.full((4, 4), 3.0))),
                    ("a probability of 0 gives 0", _rows(np.tile([0.25, 0, 0.75], (3, 1)), np.tile([1.0, 2, -4], (3, 1)))),
                    ("no Jacobian is built", _memory(2000, LONG, np.cos(np.arange(2000.0))[None])),
                    ("the inputs are left as they were", _untouched("p dp", P, DP))]


@np.errstate(all="ignore")                               # a wrong answer is reported, not warned about
def softmax_backward(fn):
    """fn(p, dp) returns ds [N_q, N_k]: the gradient of the scores, from each row's softmax p and its gradient dp."""
    properties("softmax_backward", SOFTMAX_BACKWARD, fn)


# ---------------------------------------------------------------- dK and dV in blocks, causal

def _causal_inputs(N_q, N_k, scale=8**-0.5, step=0.0):
    """q, k, v, do, lse, delta, scale, float64, D = 8; each key scores `step` more than the one before it."""
    rng = np.random.default_rng(N_q + N_k)
    q, do, k, v = (rng.standard_normal((N, 8)) for N in (N_q, N_q, N_k, N_k))
    q[:, 0], k[:, 0] = 1, k[:, 0] + np.arange(N_k) * step / scale
    o, lse = reference.attention(q, k, v, is_causal=True, scale=scale, return_lse=True)
    return q, k, v, do, lse, (do * o).sum(axis=1), scale


def _dkdv(*shapes, **options):
    def case(fn):
        for N_q, N_k, BLOCK in shapes:
            q, k, v, do, *saved, scale = _causal_inputs(N_q, N_k, **options)
            want = reference.attention_grads(q, k, v, do, is_causal=True, scale=scale)[1:]
            problem = _agree(f"N_q = {N_q}, N_k = {N_k}, blocks of {BLOCK}: ",
                             fn(*map(np.copy, (q, k, v, do, *saved)), scale, BLOCK), want, 1e-9)
            if problem:
                return problem
        return ""
    return case


def _early_queries(fn):
    q, k, v, do, *saved = _causal_inputs(96, 96)
    do[:32] = np.nan                                     # 0 * NaN is NaN: a visit leaves its mark
    for name, x in zip(("dk", "dv"), fn(q, k, v, do, *saved, 32)):
        spoilt = np.flatnonzero(np.isnan(x[32:]).any(axis=1)) + 32
        if len(spoilt):
            return f"{name} of key {spoilt[0]} used do of queries 0 to 31, which do not see it: they are NaN, and so is {name}"
    return ""


BLOCKED_DKDV = [("one block", _dkdv((16, 16, 16))),
                ("several blocks", _dkdv((96, 96, 32), (64, 64, 16))),
                ("a length that is no multiple of the block", _dkdv((50, 50, 32), (17, 17, 32))),
                ("more keys than queries", _dkdv((50, 90, 32), (32, 96, 32), (1, 70, 16), (96, 192, 32))),
                ("more queries than keys", _dkdv((90, 50, 32), (96, 32, 32), (70, 1, 16))),
                ("the scale that it is given", _dkdv((32, 32, 32), scale=1.5)),
                ("masked scores far above the others", _dkdv((32, 32, 32), step=1e3)),
                ("tiles above the diagonal are not visited", _early_queries),
                ("the inputs are left as they were", _untouched("q k v do lse delta", *_causal_inputs(32, 32), 32))]


@np.errstate(all="ignore")
def blocked_dkdv(fn):
    """fn(q, k, v, do, lse, delta, scale, BLOCK) returns dk, dv of causal attention, float64: q [N_q, D], k [N_k, D]."""
    properties("blocked_dkdv", BLOCKED_DKDV, fn)


# ---------------------------------------------------------------- the gradient of a bias on relative positions

def _bias_inputs(N, bias=0.0, score=0.0, D=8):
    """q, k, v, bias, do, float64; the bias is random times `bias`, and every score has `score` added to it."""
    rng = np.random.default_rng(N)
    q, k, v, do = rng.standard_normal((4, N, D))
    q[:, 0], k[:, 0] = 1, k[:, 0] + score * D**0.5
    return q, k, v, bias * rng.standard_normal(2 * N - 1), do


def _diagonal_sums(q, k, v, bias, do):
    N = len(q)
    distance = np.arange(N)[:, None] - np.arange(N)[None, :]
    p = _softmax(q.shape[1]**-0.5 * q @ k.T + bias[distance + N - 1])
    return np.array([np.trace(_ds(p, do @ v.T), -r) for r in range(1 - N, N)])   # np.trace counts j - i


def _dbias(*lengths, blocks=({},), **options):
    def case(fn):
        for N in lengths:
            inputs = _bias_inputs(N, **options)
            for block in blocks:
                problem = difference(fn(*map(np.copy, inputs), **block), _diagonal_sums(*inputs), tolerance=1e-9)
                if problem:
                    return ", ".join(f"{name} = {n}" for name, n in dict(N=N, **block).items()) + f": {problem}"
        return ""
    return case


DBIAS = [("the sums along the diagonals are right", _dbias(2, 16, 64, 128)),
         ("a length that is no multiple of the block", _dbias(1, 50, 67, 100)),
         ("the bias is part of the scores", _dbias(64, bias=2.0)),
         ("logits of 1e4", _dbias(64, score=1e4)),
         ("no N x N matrix is held", _memory(3000, *_bias_inputs(3000, D=4))),
         ("the inputs are left as they were", _untouched("q k v bias do", *_bias_inputs(64)))]
ANY_BLOCK = ("any block size gives the same answer", _dbias(64, blocks=[dict(BLOCK=n) for n in (16, 48, 200)]))


@np.errstate(all="ignore")
def attention_dbias(fn):
    """fn(q, k, v, bias, do) returns dbias [2 N - 1] for s = q k^T / sqrt(D) + bias[i - j + N - 1], no mask, float64.

    If fn takes BLOCK, its answer must not depend on it.
    """
    properties("attention_dbias", DBIAS + [ANY_BLOCK] * ("BLOCK" in inspect.signature(fn).parameters), fn)


# ---------------------------------------------------------------- dK and dV of grouped heads, in Triton

def _right(shape, got, inputs, want):
    return _agree(f"B, heads, kv_heads, N_q, N_k = {shape}: ", got, want)


def _grouped(*shapes, look=_right):
    def case(fn):
        for shape in shapes:
            B, heads, kv_heads, N_q, N_k = shape
            rng = np.random.default_rng(sum(shape))
            q, do, k, v = (rng.standard_normal((B, h, N, 16)) for h, N in ((heads, N_q),) * 2 + ((kv_heads, N_k),) * 2)
            o, lse = reference.attention(q, k, v, return_lse=True)
            inputs = [guarded(torch.tensor(x, dtype=torch.float32, device=DEVICE))
                      for x in (q, k, v, do, lse, (do * o).sum(-1))]
            problem = look(shape, fn(*inputs), inputs, reference.attention_grads(q, k, v, do)[1:])
            if problem:
                return problem
        return ""
    return case


def _sums(shape, got, inputs, want):
    """Names no number: where programs race, the wrong one differs from run to run, and with it a notebook's output."""
    problem = _agree("", got, want)
    group = shape[1] // shape[2]
    return problem and f"{shape[1]} query heads, {shape[2]} key heads: {problem[:2]} is not the sum over each group of {group}"


def _each(problem):
    return lambda shape, got, inputs, want: next((f"N_q = {shape[3]}, N_k = {shape[4]}: {found}" for found in
                                                  map(problem, (*got, *inputs)) if found), "")


LENGTHS = (1, 1, 1, 50, 50), (1, 2, 2, 17, 33), (1, 1, 1, 64, 1)
GROUPED_DKDV = [("one head", _grouped((1, 1, 1, 64, 64))),
                ("several batches", _grouped((3, 1, 1, 64, 64))),
                ("several heads", _grouped((1, 3, 3, 64, 64))),
                ("grouped heads", _grouped((1, 4, 2, 64, 64), (1, 6, 2, 64, 64), (2, 4, 1, 64, 64), look=_sums)),
                ("more keys than queries", _grouped((1, 1, 1, 32, 96))),
                ("more queries than keys", _grouped((1, 1, 1, 96, 32))),
                ("a length that is no multiple of the block", _grouped(*LENGTHS)),
                ("every output element is written", _grouped(*LENGTHS, look=_each(unwritten))),
                ("nothing is written outside of the tensors", _grouped(*LENGTHS, (1, 4, 2, 50, 50), look=_each(outside)))]


def grouped_dkdv(fn):
    """fn(q, k, v, do, lse, delta) returns dk, dv, float32, no mask: q [B, heads, N_q, D], k [B, kv_heads, N_k, D]."""
    properties("grouped_dkdv", GROUPED_DKDV, fn)
