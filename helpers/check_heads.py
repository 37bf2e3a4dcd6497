"""The checks for attention with batches, heads, masks and windows, part of helpers/check.py."""
import numpy as np
import torch

from helpers import reference
from helpers.device import DEVICE
from helpers.properties import difference, guarded, properties


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
        ("more queries than keys", _heads((1, 1, 1, 90, 50)))], fn)


def _heads(*shapes):
    def case(fn):
        for B, heads, kv_heads, N_q, N_k in shapes:
            rng = np.random.default_rng(B + heads + N_q)
            q, k, v = (_tensor(rng.standard_normal((B, h, N, 16))) for h, N in ((heads, N_q), (kv_heads, N_k), (kv_heads, N_k)))
            problem = difference(fn(q, k, v), reference.attention(q, k, v, is_causal=True))
            if problem:
                return f"heads {heads}, kv_heads {kv_heads}, N_q = {N_q}, N_k = {N_k}: {problem}"
        return ""
    return case


def window_attention(fn):
    """fn(q, k, v, window) returns o: query i sees the last `window` keys up to its own. float32 tensors [N, D]."""
    properties("sliding-window attention", [
        ("a window of one key", _window((64, 1))),
        ("a window inside a block", _window((64, 5))),
        ("a window across blocks", _window((200, 50), (130, 33))),
        ("a window longer than the sequence", _window((64, 100))),
        ("tiles before the window are not visited", _far_keys)], fn)


def _window(*cases):
    def case(fn):
        for N, window in cases:
            q, k, v = np.random.default_rng(N).standard_normal((3, N, 16))
            problem = difference(fn(*map(_tensor, (q, k, v)), window), _windowed(q, k, v, window))
            if problem:
                return f"N = {N}, window {window}: {problem}"
        return ""
    return case


def _windowed(q, k, v, window):
    s = np.where(np.tri(len(q)) * (1 - np.tri(len(q), k=-window)) > 0, q @ k.T / 4, -np.inf)
    p = np.exp(s - s.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True) @ v


def _far_keys(fn):
    q, k, v = np.random.default_rng(0).standard_normal((3, 256, 16))
    v[:64] = np.nan                                      # 0 * NaN is NaN: a visit leaves its mark
    spoilt = [row for row, o in enumerate(fn(*map(_tensor, (q, k, v)), 10)[192:], 192) if not (o == o).all()]
    return f"row {spoilt[0]} multiplied values of keys 0 to 63: they are NaN, and so is the row" if spoilt else ""


def _tensor(x):
    return guarded(torch.tensor(x, dtype=torch.float32, device=DEVICE))
