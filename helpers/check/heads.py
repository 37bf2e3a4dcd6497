"""Checks of attention with batches, heads, a causal mask and windows."""
import functools

import numpy as np

from helpers import reference
from helpers.check.attention import equal_scores, one_large
from helpers.check.core import agrees, everywhere, outside, over, properties, tensor, unwritten


def loop_bounds(fn):
    """fn(block, BLOCK_M, BLOCK_N, N_q, N_k) returns (full, stop): where the full causal tiles of a block of queries
    end, and where its keys end, both counted in keys. A negative stop counts as 0; a walk begins at full."""
    on, more = over("block {} of {} x {}, N_q = {}, N_k = {}"), [(0, 64, 64, 128, N_k) for N_k in range(129, 260)]
    properties("loop_bounds", [
        ("as many queries as keys", on(_bounds, (0, 64, 64, 256, 256), (1, 64, 64, 256, 256), (3, 64, 64, 256, 256))),
        ("blocks of different size", on(_bounds, (1, 128, 32, 512, 512), *((n, 32, 128, 512, 512) for n in (2, 3)))),
        ("more keys than queries", on(_bounds, *more, (1, 64, 64, 128, 310))),
        ("queries that see no key", on(_bounds, (0, 64, 64, 256, 64), (2, 64, 64, 256, 65))),
        ("a last block beyond the end", on(_bounds, (3, 64, 64, 200, 200)))], fn)


def _bounds(fn, block, BLOCK_M, BLOCK_N, N_q, N_k):
    first = block * BLOCK_M + N_k - N_q                   # the last key that the first query of the block sees
    want = max(0, min(N_k, first + 1)) // BLOCK_N * BLOCK_N, max(0, min(N_k, first + BLOCK_M))
    full, stop = map(int, fn(block, BLOCK_M, BLOCK_N, N_q, N_k))
    got = full, max(0, stop)
    return "" if got == want else f"{got}, expected {want}"


def attention_heads(fn):
    """fn(q, k, v) returns causal attention o [B, heads, N_q, D] of q like o and k, v [B, kv_heads, N_k, D], float32."""
    on = over("B = {}, heads = {}, kv_heads = {}, N_q = {}, N_k = {}", shaped)
    right = agrees(functools.partial(reference.attention, is_causal=True))
    beside = 1, 2, *(block + n for block in (16, 32, 64) for n in (-2, -1, 0, 1))     # a block, a little less or more
    properties("causal attention with heads", [
        ("one head", on(right, (1, 1, 1, 64, 64))),
        ("several batches", on(right, (3, 1, 1, 64, 64))),
        ("several heads", on(right, (1, 3, 3, 64, 64))),
        ("grouped heads", on(right, (1, 4, 2, 64, 64), (1, 6, 2, 64, 64))),
        ("more keys than queries", on(right, (1, 1, 1, 50, 90), *((1, 1, 1, 8, 8 + shift) for shift in beside))),
        ("more queries than keys", on(right, (1, 1, 1, 90, 50), *((1, 1, 1, 66, 66 - shift) for shift in beside))),
        ("batches, groups and lengths together", on(right, (2, 4, 2, 20, 40), (2, 2, 2, 40, 20))),
        ("every output element is written", on(everywhere(unwritten), (2, 2, 2, 32, 32), (1, 2, 1, 50, 90))),
        ("nothing is written outside of the tensors",
         on(everywhere(outside), (1, 2, 1, 50, 90), (1, 1, 1, 90, 50)))], fn)


def shaped(B, heads, kv_heads, N_q, N_k):
    """Random tensors q [B, heads, N_q, 16], and k, v [B, kv_heads, N_k, 16]."""
    rng = np.random.default_rng(B + heads + N_q)
    return [tensor(rng.standard_normal((B, h, N, 16))) for h, N in [(heads, N_q)] + 2 * [(kv_heads, N_k)]]


def window_attention(fn):
    """fn(q, k, v, window) returns o: query i sees the last `window` keys up to its own. float32 tensors [N, D].

    A block has as many keys as queries, a power of two up to 128.
    """
    on, right = over("N = {}, window {}", _windowed_inputs), agrees(windowed)
    properties("sliding-window attention", [
        ("a window of one key", on(right, (64, 1))),
        ("a window inside a block", on(right, (64, 5))),
        ("a window across blocks", on(right, (200, 50), (130, 33))),
        ("a window that begins with the last key of a block",
         on(right, (160, 2), (160, 3), (70, 18), (100, 34), (140, 66))),
        ("a window longer than the sequence", on(right, (64, 100))),
        ("a key outside of the window weighs nothing, however low the scores", on(right, (64, 7, -1e30))),
        ("a key outside of the window is no row's maximum, however high its score",
         over("N = {}, window {}", lambda N, window, key: (*map(tensor, one_large(N, key, 1e4)), window))(
             right, (64, 7, 0), (64, 7, -1))),
        ("tiles before the window are not visited", functools.partial(_visits, "before")),
        ("tiles above the diagonal are not visited", functools.partial(_visits, "after")),
        ("every output element is written", on(everywhere(unwritten), (64, 5), (50, 5))),
        ("nothing is written outside of the tensors", on(everywhere(outside), (50, 5), (1, 1)))], fn)


def _windowed_inputs(N, window, score=None):
    qkv = np.random.default_rng(N).standard_normal((3, N, 16)) if score is None else equal_scores(N, score)
    return *map(tensor, qkv), window


def windowed(q, k, v, window):
    """Attention in which each query sees its own key and those right before it, `window` in all, in float64."""
    q, k, v = (x.double().cpu().numpy() for x in (q, k, v))
    s = np.where(np.tri(len(q)) * (1 - np.tri(len(q), k=-window)) > 0, q @ k.T / q.shape[1]**0.5, -np.inf)
    p = np.exp(s - s.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True) @ v


N, WINDOW, STEP = 512, 129, 16                           # the window reaches back 128 keys: see _visits


@functools.lru_cache(maxsize=1)
def _visited(fn):
    """Boolean [N, N // STEP]: which rows multiplied values of which 16 keys, of a window of WINDOW.

    Every 16 keys have a column of v to themselves, with values of NaN: 0 * NaN is NaN, so a visit leaves its mark.
    """
    q, k = np.random.default_rng(0).standard_normal((2, N, N // STEP))
    v = np.where(np.arange(N)[:, None] // STEP == np.arange(N // STEP), np.nan, 0)
    return np.isnan(fn(*map(tensor, (q, k, v)), WINDOW).cpu().numpy())


def _visits(side, fn):
    """A problem: fn visits tiles which no query of a block sees, "before" or "after" the keys of the window.

    Rows with the same marks are one block, as far as they lie in the same 128. The window is such that with any BLOCK
    up to 128 the first key of a block's first query begins a tile.
    """
    row, key, visited = np.arange(N)[:, None], np.arange(N), _visited(fn)
    seen = ((key <= row) & (key > row - WINDOW)).reshape(N, -1, STEP).any(2)
    for i in range(N):
        close = slice(i // 128 * 128, i // 128 * 128 + 128)
        block = (visited[close] == visited[i]).all(1)
        wasted = np.flatnonzero(visited[i] & ~seen[close][block].any(0))
        wasted = wasted[wasted < i // STEP] if side == "before" else wasted[wasted > i // STEP]
        if len(wasted):
            first = wasted[0] * STEP
            return (f"window {WINDOW}: row {i} multiplied values of keys {first} to {first + STEP - 1}, "
                    "which no query of its block sees")
    return ""
