"""Checks of masks, block maps, scores and packed sequences."""
import numpy as np
import torch
import triton
import triton.language as tl

from helpers import lessons, reference, validate
from helpers.check.core import (difference, differences, everywhere, outside, over, properties, tensor, untouched,
                                unwritten)
from helpers.device import DEVICE


# ---------------------------------------------------------------- a mask

def window_and_first(fn):
    """fn() returns a @triton.jit function mask(b, h, i, j, extra), extra = (N_k - N_q, size, first): a causal window of
    `size` keys, and the keys before `first` besides, as far as they are not later than the query."""
    on = over("N_q = {}, N_k = {}, size {}, first {}")
    properties("make_mask", [
        ("a window", on(_painted, (40, 40, 7, 0), (40, 40, 1, 0))),
        ("the first keys stay", on(_painted, (40, 40, 7, 3))),
        ("no query sees a later key", on(_painted, (40, 40, 5, 12))),
        ("more keys than queries", on(_painted, (20, 50, 7, 0), (20, 50, 7, 3))),
        ("more queries than keys", on(_painted, (50, 20, 7, 0), (50, 20, 7, 3)))], fn)


@triton.jit
def paint_kernel(seen_ptr, extra, N_q, N_k, MASK: tl.constexpr, BLOCK: tl.constexpr):
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (i < N_q) & (j < N_k)
    tl.store(seen_ptr + i * N_k + j, (MASK(0, 0, i, j, extra) & inside).to(tl.int32), mask=inside)


def _painted(fn, N_q, N_k, size, first):
    seen, mask = torch.zeros(N_q, N_k, dtype=torch.int32, device=DEVICE), fn()
    validate.jit_function("the mask", mask, "b h i j extra")
    paint_kernel[1,](seen, (N_k - N_q, size, first), N_q, N_k, MASK=mask, BLOCK=64)
    i, j = np.arange(N_q)[:, None] + N_k - N_q, np.arange(N_k)
    want = (j <= i) & ((j > i - size) | (j < first))
    wrong = np.argwhere(want != seen.cpu().numpy())
    if not len(wrong):
        return ""
    i, j = wrong[0]
    return f"query {i} {'does not see' if want[i, j] else 'sees'} key {j}"


# ---------------------------------------------------------------- a map of tiles

def block_map(fn):
    """fn(seen, BLOCK) returns full, partial: for each block of queries, the numbers of its full and its partial tiles.

    seen: boolean [N_q, N_k]. A tile is full if every query that exists sees all BLOCK keys of it.
    """
    on = over("{}, N_q = {}, N_k = {}, BLOCK = {}", _seen)
    properties("block_map", [
        ("every pair is seen", on(_map, ("all", 8, 8, 4))),
        ("a causal mask", on(_map, ("causal", 8, 8, 4), ("causal", 16, 16, 4))),
        ("tiles of which nothing is seen", on(_map, ("corner", 12, 12, 4))),
        ("one pair is enough, and one is too few", on(_map, ("specks", 12, 12, 4))),
        ("more keys than queries", on(_map, ("causal", 8, 20, 4), ("all", 4, 12, 4))),
        ("a tile that reaches beyond the keys is partial", on(_map, ("all", 8, 10, 4))),
        ("queries that do not exist do not count", on(_map, ("all", 10, 8, 4))),
        ("the mask is left as it was", on(untouched, ("causal", 10, 10, 4)))], fn)


def _seen(kind, N_q, N_k, BLOCK):
    i, j = np.arange(N_q)[:, None], np.arange(N_k)
    return {"all": i + j >= 0, "causal": j <= i + N_k - N_q, "corner": (i >= 4) & (j >= 8),
            "specks": (i == 1) & (j == 2) | (i // 4 == j // 4) & (i >= 4) & ((i != 6) | (j != 5))}[kind], BLOCK


def _map(fn, seen, BLOCK):
    (N_q, N_k), want = seen.shape, ([], [])
    for i in range(0, N_q, BLOCK):
        tiles = [seen[i:i + BLOCK, j:j + BLOCK] for j in range(0, N_k, BLOCK)]
        full = [n for n, tile in enumerate(tiles) if tile.all() and tile.shape[1] == BLOCK]
        want[0].append(full)
        want[1].append([n for n, tile in enumerate(tiles) if tile.any() and n not in full])
    got = fn(seen.copy(), BLOCK)
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        return f"it returned {type(got).__name__}, expected full and partial"
    for name, ours, theirs in zip(("full", "partial"), want, got):
        theirs = [sorted(map(int, row)) for row in theirs]
        if ours != theirs:
            return f"{name} is {theirs}, expected {ours}"
    return ""


# ---------------------------------------------------------------- a change of scores

def alibi(fn):
    """fn() returns change(s, b, h, i, j, extra) and derivative(ds, s, b, h, i, j, extra, gradients), @triton.jit
    functions, extra = (slopes [heads], N_k - N_q): each score loses its head's slope times i + N_k - N_q - j."""
    on = over("B = {}, heads = {}, N_q = {}, N_k = {}", _alibi)
    properties("make_alibi", [
        ("one head", on(_output, (1, 1, 20, 20))),
        ("several heads", on(_output, (1, 3, 20, 20))),
        ("more keys than queries", on(_output, (1, 1, 10, 30))),
        ("the gradients of q, k and v", on(_gradients, (1, 2, 20, 20))),
        ("the gradient of the slopes", on(_slopes, (1, 2, 20, 20))),
        ("several batches, tiles and lengths", on(_slopes, (2, 1, 20, 40)))], fn)


def _alibi(B, heads, N_q, N_k):
    """Leaves q, k, v and slopes in float32; do; and o, lse and the gradients of the leaves as they should be."""
    rng = np.random.default_rng(B + heads + N_q)
    q, k, v, do = (tensor(rng.standard_normal((B, heads, N, 16))) for N in (N_q, N_k, N_k, N_q))
    leaves = [x.requires_grad_() for x in (q, k, v, tensor(rng.uniform(0.05, 0.5, heads)))]
    i, j = torch.arange(N_q, device=DEVICE)[:, None] + N_k - N_q, torch.arange(N_k, device=DEVICE)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    o, lse = reference.masked_attention(*exact[:3], j <= i, lambda s: s - exact[3][:, None, None] * (i - j))
    return leaves, do, [o.detach(), lse.detach(), *torch.autograd.grad(o, exact, do.double())]


def _attend(fn, q, k, v, slopes):
    lesson, shift = lessons.masks_and_scores, k.shape[2] - q.shape[2]
    score = lesson.score_change(*fn(), (slopes, shift))
    return lesson.masked_attention(q, k, v, mask=lesson.block_map(lesson.causal, q.shape[2], k.shape[2], (shift,)),
                                   score=score, return_lse=True)


def _output(fn, leaves, do, want):
    return differences("o lse", _attend(fn, *(x.detach() for x in leaves)), want)


def _gradients(fn, leaves, do, want):
    leaves[3].requires_grad_(False)
    return differences("dq dk dv", torch.autograd.grad(_attend(fn, *leaves)[0], leaves[:3], do), want[2:5])


def _slopes(fn, leaves, do, want):
    return difference(torch.autograd.grad(_attend(fn, *leaves)[0], leaves[3], do)[0], want[5], 1e-4)


# ---------------------------------------------------------------- packed sequences

def packed_attention(fn):
    """fn(q, k, v, offsets_q, offsets_k) returns o [total_q, heads, D] of sequences one behind the other, float32."""
    on = over("{} and {} rows, heads = {}", _packed)
    whole, ends = ((32,), (32,), 1), ((20, 50, 7), (20, 50, 7), 1)
    properties("packed attention", [
        ("one sequence", on(_sequences, whole)),
        ("sequences of whole tiles", on(_sequences, ((32, 64), (32, 64), 1))),
        ("sequences that end inside a tile", on(_sequences, ends)),
        ("several heads", on(_sequences, ((32, 64), (32, 64), 3))),
        ("queries and keys of different number", on(_sequences, ((32, 64), (64, 32), 1))),
        ("an empty sequence", on(_sequences, ((32, 0, 64), (32, 0, 64), 1))),
        ("queries without a key get zeros", on(_sequences, ((32, 32), (32, 0), 1))),
        ("all of that together", on(_sequences, ((20, 0, 70, 9, 3), (33, 5, 50, 0, 3), 2))),
        ("every output element is written", on(everywhere(unwritten), ends)),
        ("nothing is written outside of the tensors", on(everywhere(outside), ends))], fn)


def _packed(rows, keys, heads):
    rng = np.random.default_rng(sum(rows))
    q, k, v = (tensor(rng.standard_normal((sum(N), heads, 16))) for N in (rows, keys, keys))
    return q, k, v, *(torch.tensor([0, *np.cumsum(N)], dtype=torch.int32, device=DEVICE) for N in (rows, keys))


def _sequences(fn, q, k, v, offsets_q, offsets_k):
    want = torch.zeros(q.shape, dtype=torch.float64)
    for a, b, c, d in zip(*(x.tolist() for x in (offsets_q[:-1], offsets_q[1:], offsets_k[:-1], offsets_k[1:]))):
        if b > a and d > c:
            heads = (x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))
            want[a:b] = torch.tensor(reference.attention(*heads)).transpose(0, 1)
    return difference(fn(q, k, v, offsets_q, offsets_k), want)
