"""The checks for attention with batches, heads, masks and windows, part of helpers/check.py."""
import numpy as np
import torch

from helpers import reference
from helpers.check.attention import _all_equal
from helpers.device import DEVICE
from helpers.check.core import difference, everywhere, guarded, outside, properties, unwritten


def loop_bounds(fn):
    """fn(block, BLOCK_M, BLOCK_N, N_q, N_k) returns (full, stop): where the full causal tiles of a block of queries end,
    and where its keys end, both counted in keys."""
    properties("loop_bounds", [
        ("as many queries as keys", _bounds((0, 64, 64, 256, 256), (1, 64, 64, 256, 256), (3, 64, 64, 256, 256))),
        ("blocks of different size", _bounds((1, 128, 32, 512, 512), (2, 32, 128, 512, 512), (3, 32, 128, 512, 512))),
        ("more keys than queries", _bounds((0, 64, 64, 128, 300), (1, 64, 64, 128, 310), (0, 64, 64, 128, 191),
                                           (0, 64, 64, 128, 190))),
        ("queries that see no key", _bounds((0, 64, 64, 256, 64), (2, 64, 64, 256, 65))),
        ("a last block beyond the end", _bounds((3, 64, 64, 200, 200)))], fn)


def _bounds(*cases):
    def case(fn):
        for block, BLOCK_M, BLOCK_N, N_q, N_k in cases:
            first = block * BLOCK_M + N_k - N_q           # the last key that the first query of the block sees
            stop = max(0, min(N_k, first + BLOCK_M))
            full = max(0, min(N_k, first + 1)) // BLOCK_N * BLOCK_N
            got = tuple(max(0, int(x)) for x in fn(block, BLOCK_M, BLOCK_N, N_q, N_k))
            if got != (full, stop):
                return f"block {block} of {BLOCK_M} x {BLOCK_N}, N_q = {N_q}, N_k = {N_k}: {got}, expected {(full, stop)}"
        return ""
    return case


def attention_heads(fn):
    """fn(q, k, v) returns causal attention o [B, heads, N_q, D] for q like it and k, v [B, kv_heads, N_k, D], float32."""
    properties("causal attention with heads", [
        ("one head", _heads((1, 1, 1, 64, 64))),
        ("several batches", _heads((3, 1, 1, 64, 64))),
        ("several heads", _heads((1, 3, 3, 64, 64))),
        ("grouped heads", _heads((1, 4, 2, 64, 64), (1, 6, 2, 64, 64))),
        ("more keys than queries", _heads((1, 1, 1, 50, 90))),
        ("more queries than keys", _heads((1, 1, 1, 90, 50))),
        ("every output element is written", _everywhere(unwritten, _shaped(2, 2, 2, 64, 64), _shaped(1, 4, 2, 50, 90))),
        ("nothing is written outside of the tensors", _everywhere(outside, _shaped(1, 4, 2, 50, 90), _shaped(1, 1, 1, 90, 50)))
    ], fn)


def _heads(*shapes):
    def case(fn):
        for B, heads, kv_heads, N_q, N_k in shapes:
            q, k, v = _shaped(B, heads, kv_heads, N_q, N_k)
            problem = difference(fn(q, k, v), reference.attention(q, k, v, is_causal=True))
            if problem:
                return f"heads {heads}, kv_heads {kv_heads}, N_q = {N_q}, N_k = {N_k}: {problem}"
        return ""
    return case


def _shaped(B, heads, kv_heads, N_q, N_k):
    rng = np.random.default_rng(B + heads + N_q)
    return [_tensor(rng.standard_normal((B, h, N, 16))) for h, N in ((heads, N_q), (kv_heads, N_k), (kv_heads, N_k))]


def _everywhere(problem, *cases):
    return everywhere(problem, lambda inputs: f"q of shape {list(inputs[0].shape)}", *cases)


def window_attention(fn):
    """fn(q, k, v, window) returns o: query i sees the last `window` keys up to its own. float32 tensors [N, D].

    A block has as many keys as queries, a power of two up to 128.
    """
    properties("sliding-window attention", [
        ("a window of one key", _window((*_matrices(64), 1))),
        ("a window inside a block", _window((*_matrices(64), 5))),
        ("a window across blocks", _window((*_matrices(200), 50), (*_matrices(130), 33))),
        ("a window longer than the sequence", _window((*_matrices(64), 100))),
        ("a key outside of the window weighs nothing, however low the scores", _window((*_low_scores(64), 7))),
        ("tiles before the window are not visited", _visits("before")),
        ("tiles above the diagonal are not visited", _visits("after")),
        ("every output element is written", _everywhere(unwritten, (*_matrices(64), 5), (*_matrices(50), 5))),
        ("nothing is written outside of the tensors", _everywhere(outside, (*_matrices(50), 5), (*_matrices(1), 1)))], fn)


def _window(*cases):
    def case(fn):
        for *inputs, window in cases:
            problem = difference(fn(*inputs, window), _windowed(*(x.double().cpu().numpy() for x in inputs), window))
            if problem:
                return f"N = {len(inputs[0])}, window {window}: {problem}"
        return ""
    return case


def _matrices(N):
    return [_tensor(x) for x in np.random.default_rng(N).standard_normal((3, N, 16))]


def _low_scores(N):
    return [_tensor(x) for x in _all_equal(N, score=-1e30)]


def _windowed(q, k, v, window):
    s = np.where(np.tri(len(q)) * (1 - np.tri(len(q), k=-window)) > 0, q @ k.T / 4, -np.inf)
    p = np.exp(s - s.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True) @ v


def _visits(side):
    """A case that looks for tiles which no query of a block sees, "before" or "after" the keys of the window.

    Every 16 keys have a column of v to themselves. Their values in it are NaN: 0 * NaN is NaN, so a visit leaves its mark.
    Rows with the same marks are one block, as far as they lie in the same 128. The window reaches back 128 keys, so that
    with any BLOCK up to 128 the first key of a block's first query begins a tile.
    """
    N, window, step = 512, 129, 16

    def case(fn):
        row, key = np.arange(N)[:, None], np.arange(N)
        q, k = np.random.default_rng(0).standard_normal((2, N, N // step))
        v = np.where(key[:, None] // step == np.arange(N // step), np.nan, 0)
        visited = np.isnan(fn(*map(_tensor, (q, k, v)), window).cpu().numpy())                   # [N, N // step]
        seen = ((key <= row) & (key > row - window)).reshape(N, -1, step).any(2)
        for i in range(N):
            near = slice(i // 128 * 128, i // 128 * 128 + 128)
            block = (visited[near] == visited[i]).all(1)
            wasted = np.flatnonzero(visited[i] & ~seen[near][block].any(0))
            wasted = wasted[wasted < i // step] if side == "before" else wasted[wasted > i // step]
            if len(wasted):
                first = wasted[0] * step
                return (f"window {window}: row {i} multiplied values of keys {first} to {first + step - 1}, "
                        "which no query of its block sees")
        return ""
    return case


def _tensor(x):
    return guarded(torch.tensor(x, dtype=torch.float32, device=DEVICE))
