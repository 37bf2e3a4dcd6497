"""The check of the kernel that computes the gradient of the queries, in Triton, for one head without a mask."""
import numpy as np

from helpers import reference
from helpers.check.core import agrees, everywhere, outside, over, properties, tensor, untouched, unwritten


def attention_dq(fn):
    """fn(q, k, v, do, lse, delta, scale) returns dq [N_q, D] like q and do, float32, no mask: k, v [N_k, D]."""
    on, right = over("N_q = {}, N_k = {}", _inputs), agrees(_expected)
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


def _inputs(N_q, N_k, scale=0.25, score=0.0, D=16):
    """q, k, v, do, lse, delta, scale. With a score, keys have it or half of it, key 0 the larger: all the weight."""
    rng = np.random.default_rng(N_q + N_k)
    q, do, k, v = (rng.standard_normal((N, D)) for N in (N_q, N_q, N_k, N_k))
    if score:
        q, k = np.zeros_like(q), np.zeros_like(k)
        q[:, 0], k[:, 0], k[0, 0] = score / scale, *((0.5, 1) if score > 0 else (1, 0.5))
    o, lse = reference.attention(q, k, v, scale=scale, return_lse=True)
    return *map(tensor, (q, k, v, do, lse, (do * o).sum(1))), scale


def _expected(q, k, v, do, lse, delta, scale):
    return reference.attention_grads(q, k, v, do, scale=scale)[0]
