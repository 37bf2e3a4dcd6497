"""Right and wrong answers to the exercises on several GPUs."""
import numpy as np

from helpers import check
from mistakes.ways import mistaken


# ---------------------------------------------------------------- merging

def merge(o_a, lse_a, o_b, lse_b, lse=lambda m, l: m + np.log(l), top=np.maximum, weight=lambda x: x,
          blind=lambda m: np.where(m == -np.inf, 0, m), divide=lambda o, l: o / np.where(l == 0, 1, l)[:, None]):
    m = blind(top(lse_a, lse_b))
    a, b = weight(np.exp(lse_a - m)), weight(np.exp(lse_b - m))
    l = a + b
    with np.errstate(divide="ignore"):
        return divide(a[:, None] * o_a + b[:, None] * o_b, l), lse(m, l)


merges = mistaken(merge)


def by_logaddexp(o_a, lse_a, o_b, lse_b):
    lse = np.logaddexp(lse_a, lse_b)
    safe = np.where(lse == -np.inf, 0, lse)
    return np.exp(lse_a - safe)[:, None] * o_a + np.exp(lse_b - safe)[:, None] * o_b, lse


def by_difference(o_a, lse_a, o_b, lse_b):
    """With a row that neither has a key for mended, and the other case forgotten."""
    difference = np.where(lse_a == lse_b, 0, lse_b - lse_a)
    share = 1 / (1 + np.exp(-difference))
    return o_a + share[:, None] * (o_b - o_a), lse_a + np.log1p(np.exp(difference))


def in_place(o_a, lse_a, o_b, lse_b):
    o, lse = merge(o_a, lse_a, o_b, lse_b)
    o_a[:] = o
    return o_a, lse


MERGE = dict(right=[merge, by_logaddexp], wrong={
    "every row has weights of its own": [merges(weight=lambda x: 0 * x + x.mean()), merges(divide=lambda o, l: o)],
    "lse is that of all keys": [merges(lse=lambda m, l: m), merges(lse=lambda m, l: np.log(l))],
    "lse of 8e3, of either sign": [merges(top=lambda a, b: np.zeros_like(a))],
    "lse far below 0": [merges(blind=lambda m, low=low: np.maximum(m, low)) for low in (-1e4, -1e9)],
    "lse far apart give no inf and no NaN": [merges(top=lambda a, b: a), merges(top=lambda a, b: b)],
    "a row that one rank has no key for": by_difference,
    "a row that neither has a key for": [merges(blind=lambda m: m), merges(divide=lambda o, l: o / l[:, None])],
    "the result stays float32": [lambda *pair: tuple(x.astype(pair[0].dtype) for x in merge(*pair)),
                                 lambda *pair: tuple(x.astype(np.float64) for x in merge(*pair))],
    "what comes first makes no difference": lambda o_a, lse_a, o_b, lse_b: (merge(o_a, lse_a, o_b, lse_b)[0], lse_b),
    "the inputs are left as they were": in_place})


# ---------------------------------------------------------------- transfers

def go_round(q, k, v, size, hand_on, attend, merge, wait_first=True, post_first=True, last=1, check_in=True):
    o, lse = None, None
    for step in range(size):
        here = [k, v]
        going = step + last < size
        transfer = hand_on(k, v) if going and post_first else None
        found = attend(q, *here)
        o, lse = found if step == 0 else merge(o, lse, *found)
        if going and not post_first:
            transfer = hand_on(k, v)
        if transfer:
            if wait_first:
                transfer.wait()
            k, v = (x.copy() for x in transfer.received)
            if not wait_first:
                transfer.wait()
    return o, lse


rounds = mistaken(go_round)


def waits_for_the_next(q, k, v, size, hand_on, attend, merge):
    """The lesson's bug: it waits for the transfer that it began last, not for the one whose tensors it takes."""
    o, lse = attend(q, k, v)
    transfer = hand_on(k, v) if size > 1 else None
    for step in range(1, size):
        k, v = transfer.received
        if step + 1 < size:
            transfer = hand_on(k, v)
        o, lse = merge(o, lse, *attend(q, k, v))
        transfer.wait()
    return o, lse


def never_merges_its_own(q, k, v, size, *a):
    o, lse = go_round(q, k, v, size, *a)
    return (2 * o, lse) if size == 1 else (o, lse)


def only_two(q, k, v, size, *a):
    return go_round(q, k, v, min(size, 2), *a)


RING = dict(right=[go_round], wrong={
    "one rank": never_merges_its_own,
    "two ranks": [rounds(wait_first=False), waits_for_the_next],
    "four ranks": [only_two, rounds(wait_first=False)],
    "what is handed on has arrived": [rounds(wait_first=False), waits_for_the_next],
    "transfers run while this rank computes": rounds(post_first=False),
    "nothing travels that nobody needs": rounds(last=0)})


# ---------------------------------------------------------------- shards

def zigzag(N, size, order=lambda x: x):
    chunks = np.split(np.arange(N), 2 * size)
    return [order(np.concatenate((chunks[rank], chunks[2 * size - 1 - rank]))) for rank in range(size)]


def upside_down(N, size):
    return zigzag(N, size)[::-1]


def striped(N, size):
    return [np.arange(rank, N, size) for rank in range(size)]


def contiguous(N, size):
    return np.split(np.arange(N), size)


def folded(N, size):
    """Position by position instead of chunk by chunk: balanced as well, but every block needs a mask."""
    return [np.array([x for x in range(N) if x % (2 * size) in (rank, 2 * size - 1 - rank)]) for rank in range(size)]


def uneven(N, size):
    found = zigzag(N, size)
    return [np.concatenate((found[0], found[-1][-1:])), *found[1:-1], found[-1][:-1]] if size > 1 else found


SHARDS = dict(right=[zigzag, upside_down, folded], wrong={
    "a list for each rank": lambda N, size: np.split(np.arange(N), 2 * size),
    "every position has one rank": lambda N, size: [np.arange(N // size)] * size,
    "as many positions on each rank": uneven,
    "positions rise within a rank": lambda N, size: zigzag(N, size, lambda x: x[::-1]),
    "the same work in every step": [contiguous, striped]})

CASES = {check.merge_ranks: MERGE, check.ring_of_ranks: RING, check.shards: SHARDS}
