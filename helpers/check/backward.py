"""Checks of backward kernels in Triton, without a mask: dK and dV of grouped heads, dQ of one head."""
import numpy as np

from helpers import reference
from helpers.check.core import (agrees, differences, everywhere, outside, over, properties, tensor, untouched,
                                unwritten)
from helpers.check.kernels import one_owner


def grouped_dkdv(fn):
    """fn(q, k, v, do, lse, delta) returns dk, dv, float32, no mask: q [B, heads, N_q, D], k [B, kv_heads, N_k, D]."""
    on = over("B = {}, heads = {}, kv_heads = {}, N_q = {}, N_k = {}", grouped_inputs)
    groups = over("", grouped_inputs)(_sums, (1, 4, 2, 64, 64), (1, 6, 2, 64, 64), (2, 4, 1, 64, 64))
    lengths = (1, 1, 1, 50, 50), (1, 2, 2, 17, 33), (1, 1, 1, 64, 1)
    properties("grouped_dkdv", [
        ("one head", on(_dkdv, (1, 1, 1, 64, 64))),
        ("several batches", on(_dkdv, (3, 1, 1, 64, 64))),
        ("several heads", on(_dkdv, (1, 3, 3, 64, 64))),
        ("grouped heads", groups),
        ("more keys than queries", on(_dkdv, (1, 1, 1, 32, 96), (1, 1, 1, 32, 33))),
        ("more queries than keys", on(_dkdv, (1, 1, 1, 96, 32), (1, 1, 1, 33, 32))),
        ("a length that is no multiple of the block", on(_dkdv, *lengths)),
        ("batches, heads and lengths together", on(_dkdv, (2, 2, 2, 20, 40))),
        ("every number is written by one program", on(one_owner("dk dv"), (2, 4, 2, 20, 50))),
        ("every output element is written", on(everywhere(unwritten), *lengths)),
        ("nothing is written outside of the tensors", on(everywhere(outside), *lengths, (1, 4, 2, 50, 50))),
        ("the inputs are left as they were", on(untouched, (1, 2, 2, 32, 32)))], fn)


def grouped_inputs(B, heads, kv_heads, N_q, N_k):
    """Random tensors q, k, v, do, and what the forward pass saved: lse, delta."""
    rng = np.random.default_rng(B + heads + kv_heads + N_q + N_k)
    q, do, k, v = (rng.standard_normal((B, h, N, 16)) for h, N in ((heads, N_q),) * 2 + ((kv_heads, N_k),) * 2)
    o, lse = reference.attention(q, k, v, return_lse=True)
    return [*map(tensor, (q, k, v, do, lse, (do * o).sum(-1)))]


def _dkdv(fn, q, k, v, do, lse, delta):
    return differences("dk dv", fn(q, k, v, do, lse, delta), reference.attention_grads(q, k, v, do)[1:])


def _sums(fn, q, k, *rest):
    """Names no number: where programs race, the wrong one differs from run to run, and with it a notebook's output."""
    heads, kv_heads = q.shape[1], k.shape[1]
    problem = _dkdv(fn, q, k, *rest)
    return problem and (f"{heads} query heads, {kv_heads} key heads: {problem[:2]} is not the sum over each group of "
                        f"{heads // kv_heads}")


# ---------------------------------------------------------------- the gradient of the queries

def attention_dq(fn):
    """fn(q, k, v, do, lse, delta, scale) returns dq [N_q, D] like q and do, float32, no mask: k, v [N_k, D]."""
    on, right = over("N_q = {}, N_k = {}", _one_head), agrees(_dq)
    lengths = (50, 50), (17, 33), (1, 1)
    properties("attention_dq", [
        ("one tile", on(right, (16, 16))),
        ("several tiles of keys", on(right, (32, 160))),
        ("several tiles of queries", on(right, (128, 32))),
        ("lengths that are no multiple of the block", on(right, *lengths)),
        ("more keys than queries", on(right, (20, 90), (1, 70))),
        ("more queries than keys", on(right, (90, 20), (70, 1))),
        ("keys beyond the end add nothing, however low the scores", on(right, (50, 50, 0.25, -1e4))),
        ("the scale that it is given", on(right, (64, 64, 1.5))),
        ("logits of 1e4", on(right, (64, 64, 0.25, 1e4))),
        ("every output element is written", on(everywhere(unwritten), (64, 64), *lengths)),
        ("nothing is written outside of the tensors", on(everywhere(outside), (64, 64), *lengths)),
        ("the inputs are left as they were", on(untouched, (64, 64)))], fn)


def _one_head(N_q, N_k, scale=0.25, score=0.0, D=16):
    """q, k, v, do, lse, delta, scale. With a score, keys have it or half of it, key 0 the larger: all the weight."""
    rng = np.random.default_rng(N_q + N_k)
    q, do, k, v = (rng.standard_normal((N, D)) for N in (N_q, N_q, N_k, N_k))
    if score:
        q, k = np.zeros_like(q), np.zeros_like(k)
        q[:, 0], k[:, 0], k[0, 0] = score / scale, *((0.5, 1) if score > 0 else (1, 0.5))
    o, lse = reference.attention(q, k, v, scale=scale, return_lse=True)
    return *map(tensor, (q, k, v, do, lse, (do * o).sum(1))), scale


def _dq(q, k, v, do, lse, delta, scale):
    return reference.attention_grads(q, k, v, do, scale=scale)[0]
