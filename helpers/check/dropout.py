"""The check of dropout inside attention, in NumPy, for one head."""
import numpy as np

from helpers import reference
from helpers.check.core import agrees, over, properties, untouched


def attention_with_dropout(fn):
    """fn(q, k, v, keep, dropout_p) returns o [N_q, D], float64: keep [N_q, N_k] is True where a weight is left."""
    on, right = over("N_q = {}, N_k = {}, dropout_p = {}", _inputs), agrees(_expected, 1e-9)
    properties("attention with dropout", [
        ("without dropout it is attention", on(right, (40, 40, 0.0))),
        ("what is left grows by 1 / (1 - dropout_p)", on(right, (40, 40, 0.25), (40, 40, 0.5))),
        ("weights that are dropped count for nothing", on(right, (40, 40, 0.25, "random"), (40, 40, 0.5, "random"))),
        ("the sum l is that of all keys", on(right, (40, 40, 0.25, "not the heaviest"))),
        ("a query that has lost every key gives zeros", on(right, (40, 40, 0.5, "nothing"))),
        ("another number of keys than of queries", on(right, (20, 50, 0.25, "random"), (50, 20, 0.25, "random"))),
        ("logits of 1e4", on(right, (40, 40, 0.25, "random", 1e4))),
        ("the inputs are left as they were", on(untouched, (40, 40, 0.25, "random")))], fn)


def _inputs(N_q, N_k, dropout_p, left="all", score=0.0, D=8):
    """q, k, v, keep, dropout_p: random, and every score has `score` added to it; `left` says which weights are."""
    rng = np.random.default_rng(N_q + N_k)
    q, k, v = (rng.standard_normal((N, D)) for N in (N_q, N_k, N_k))
    q[:, 0], k[:, 0] = 1, k[:, 0] + score * D**0.5
    s = q @ k.T
    keep = {"all": s == s, "random": rng.random(s.shape) >= dropout_p,
            "not the heaviest": s < s.max(axis=1, keepdims=True),
            "nothing": (s == s) & (np.arange(N_q)[:, None] % 3 > 0)}[left]
    return q, k, v, keep, dropout_p


def _expected(q, k, v, keep, dropout_p):
    return reference.attention(q, k, v, keep=keep / (1 - dropout_p))
