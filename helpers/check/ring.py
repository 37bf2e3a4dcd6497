"""Checks of a sequence on several GPUs: merging two ranks' results, transfers that take their time, balanced shards."""
import copy

import numpy as np

from helpers import reference
from helpers.check.core import differences, first, over, properties, untouched

inf = np.inf


# ---------------------------------------------------------------- merging

OUTPUTS = np.random.default_rng(20).standard_normal((3, 4, 3)).astype(np.float32)
LSE = np.array([[0.0, 1.0, -1.0, 0.5], [np.log(3), 0.0, 1.0, -2.0], [0.25, 2.0, 0.0, 1.0]], np.float32)


def merge_ranks(fn):
    """fn(o_a, lse_a, o_b, lse_b) returns o [N, D] and lse [N], float32, of the keys of two ranks together."""
    a, b, _ = LSE
    far, blind = np.array([8e3, -8e3, 0, 0], np.float32), np.array([-inf, 0, 0, 0], np.float32)
    half = OUTPUTS.astype(np.float16)
    merged = over("", lambda *arguments: copy.deepcopy(arguments))
    properties("merge_ranks", [
        ("every row has weights of its own", merged(_merged, (*_pair(a, b), ("o",)))),
        ("lse is that of all keys", merged(_merged, (*_pair(a, b), ("lse",)))),
        ("lse of 8e3, of either sign", merged(_merged, (*_pair(a + far, b + far), None, 1e-3))),       # steps of float32
        ("lse far below 0", merged(_merged, (*_pair(a - 1e30, b - 2e30), None))),
        ("lse far apart give no inf and no NaN", merged(_merged, _pair(a, b + 200), _pair(a + 200, b))),
        ("a row that one rank has no key for", merged(_merged, _pair(a + blind, b), _pair(a, b + blind))),
        ("a row that neither has a key for", merged(_merged, _pair(a + blind, b + blind))),
        ("the result stays float32", merged(_stays, (half[0], a, half[1], b))),
        ("what comes first makes no difference", _any_order),
        ("the inputs are left as they were", merged(untouched, _pair(a, b)))], fn)


def _pair(lse_a, lse_b):
    o_a, o_b = (np.where(lse[:, None] == -inf, 0, o).astype(np.float32) for lse, o in zip((lse_a, lse_b), OUTPUTS))
    return o_a, lse_a, o_b, lse_b


def _together(o_a, lse_a, o_b, lse_b):
    o, lse = np.array([o_a, o_b], np.float64), np.array([lse_a, lse_b], np.float64)
    m = np.where(np.isinf(lse.max(0)), 0, lse.max(0))
    p = np.exp(lse - m)
    l = p.sum(0)
    with np.errstate(divide="ignore"):
        return (p[:, :, None] * o).sum(0) / np.where(l == 0, 1, l)[:, None], m + np.log(l)


def _merged(fn, o_a, lse_a, o_b, lse_b, look=None, tolerance=1e-6):
    want = _together(o_a, lse_a, o_b, lse_b)
    return differences("o lse", fn(o_a, lse_a, o_b, lse_b), want, tolerance, look)


def _stays(fn, *pair):
    want = _together(*pair)
    o, lse = (np.asarray(x) for x in fn(*pair))
    types = [f"{name} is {x.dtype}, expected float32" for name, x in (("o", o), ("lse", lse)) if x.dtype != np.float32]
    return first((*types, differences("o lse", (o, lse), want, 1e-6)))


def _any_order(fn):
    a, b, c = zip(OUTPUTS, LSE)
    one, other = fn(*fn(*a, *b), *c), fn(*a, *fn(*c, *b))
    return differences("o lse", one, other, 1e-6)


# ---------------------------------------------------------------- transfers

class Late:
    """A transfer that is half done until it is waited for."""

    def __init__(self, whole):
        self.whole = whole
        self.received = [np.concatenate([x[:len(x) // 2], np.zeros_like(x[len(x) // 2:])]) for x in whole]
        self.ended = False

    def wait(self):
        for here, there in zip(self.received, self.whole):
            here[:] = there
        self.ended = True


class Neighbours:
    """The other ranks of a ring, who do as they should: hand_on(k, v) gives what the rank before this one sends."""

    def __init__(self, q, shards, rank):
        self.q, self.shards, self.rank, self.posted, self.problem, self.waiting = q, shards, rank, 0, "", 0

    def hand_on(self, k, v):
        size = len(self.shards)
        whole = [self.shards[(self.rank - self.posted - back) % size] for back in (0, 1)]
        if not all(np.array_equal(x, y) for x, y in zip((k, v), whole[0])):
            self.problem = self.problem or f"at hand_on number {self.posted + 1}, k and v were not those of this step"
        self.posted += 1
        self.transfer = Late(whole[1])
        return self.transfer

    def attend(self, q, k, v):
        self.waiting += self.posted > 0 and not self.transfer.ended
        return reference.attention(q, k, v, return_lse=True)


def ring_of_ranks(fn):
    """fn(q, k, v, size, hand_on, attend, merge) returns o and lse of this rank's q and the keys of all ranks."""
    properties("ring_of_ranks", [
        ("one rank", lambda fn: _gone_round(fn, 1)),
        ("two ranks", lambda fn: _gone_round(fn, 2)),
        ("four ranks", lambda fn: _gone_round(fn, 4)),
        ("what is handed on has arrived", lambda fn: _gone_round(fn, 3, "sent")),
        ("transfers run while this rank computes", lambda fn: _gone_round(fn, 4, "overlap")),
        ("nothing travels that nobody needs", lambda fn: _gone_round(fn, 4, "posted"))], fn)


def _gone_round(fn, size, look="result"):
    rng, rank = np.random.default_rng(size), size // 2
    q = rng.standard_normal((6, 4))
    shards = [tuple(rng.standard_normal((2, 6, 4))) for _ in range(size)]
    ring = Neighbours(q, shards, rank)
    got = fn(q, *(x.copy() for x in shards[rank]), size, ring.hand_on, ring.attend, _together)
    if look == "sent":
        return ring.problem
    if look == "posted":
        return "" if ring.posted == size - 1 else f"{ring.posted} transfers among {size} ranks, expected {size - 1}"
    if look == "overlap":
        return "" if ring.waiting >= size - 1 else (
            f"{ring.waiting} of {size - 1} transfers were under way while this rank computed")
    k, v = (np.concatenate(parts) for parts in zip(*shards))
    return differences("o lse", got, reference.attention(q, k, v, return_lse=True), 1e-9)


# ---------------------------------------------------------------- shards

SIZES = (1, 6), (2, 16), (3, 12), (4, 32)                # ranks, N


def shards(fn):
    """fn(N, size) returns for each rank the positions of its tokens, so that a causal ring has equal work everywhere."""
    on = over("{0} ranks, N = {1}", lambda size, N: (size, N))
    properties("shards", [
        ("a list for each rank", on(_lists, *SIZES)),
        ("every position has one rank", on(_partition, *SIZES)),
        ("as many positions on each rank", on(_as_many, *SIZES)),
        ("positions rise within a rank", on(_rising, *SIZES)),
        ("the same work in every step", on(_balanced_steps, *SIZES))], fn)


def _given(fn, size, N):
    return [np.asarray(x) for x in fn(N, size)]


def _lists(fn, size, N):
    found = _given(fn, size, N)
    return "" if len(found) == size and all(x.ndim == 1 for x in found) else (
        f"it returned {len(found)} lists, expected {size} of positions")


def _partition(fn, size, N):
    places = np.sort(np.concatenate(_given(fn, size, N)))
    return "" if np.array_equal(places, np.arange(N)) else f"the positions are {places.tolist()}, taken together"


def _as_many(fn, size, N):
    lengths = [len(x) for x in _given(fn, size, N)]
    return "" if len(set(lengths)) == 1 else f"the ranks have {lengths} positions"


def _rising(fn, size, N):
    return first(f"rank {rank} has {x.tolist()}" for rank, x in enumerate(_given(fn, size, N)) if (np.diff(x) <= 0).any())


def _work(found):
    """Scores that are not masked, [rank, step]."""
    size = len(found)
    return np.array([[(found[rank][:, None] >= found[(rank - step) % size]).sum() for step in range(size)]
                     for rank in range(size)])


def _balanced_steps(fn, size, N):
    work = _work(_given(fn, size, N))
    return first(f"in step {step} the ranks compute {work[:, step].tolist()} scores" for step in range(size)
                 if len(set(work[:, step].tolist())) > 1)
