"""Right and wrong versions of attention with heads, its loop bounds, and sliding windows."""
import numpy as np
import torch

from helpers import check, reference
from mistakes.ways import beyond_the_end, mistaken, when, without_the_rest


def bounds(block, BLOCK_M, BLOCK_N, N_q, N_k, shift=lambda N_q, N_k: N_k - N_q, one=1, unit=None, last=0, least=0):
    see = block * BLOCK_M + shift(N_q, N_k)
    unit = BLOCK_N if unit is None else unit
    return max(least, min(N_k, see + one)) // unit * unit, min(N_k + last, see + BLOCK_M)


TOP_LEFT = dict(shift=lambda N_q, N_k: 0)
BOUNDS = dict(right=[bounds, lambda *a: tuple(max(0, x) for x in bounds(*a))], wrong={
    "as many queries as keys": lambda *a: bounds(*a, one=64),                 # the diagonal taken for a full tile
    "blocks of different size": lambda block, M, N, *a: bounds(block, M, N, *a, unit=M),
    "more keys than queries": [lambda *a: bounds(*a, **TOP_LEFT), lambda *a: bounds(*a, one=0),
                               lambda *a: bounds(*a, one=2)],
    "queries that see no key": [lambda *a: bounds(*a, shift=lambda N_q, N_k: max(0, N_k - N_q)),
                                lambda *a: bounds(*a, least=-999)],
    "a last block beyond the end": lambda *a: bounds(*a, last=999)})


def expand(x, group):
    return x.repeat_interleave(group, 1)


def heads(q, k, v, pick=expand, shifted=lambda shift: shift):
    """pick(x, group) gives each query head a key head."""
    N_q, N_k = q.shape[2], k.shape[2]
    k, v = (pick(x, q.shape[1] // x.shape[1]) for x in (k, v))
    mask = torch.ones(N_q, N_k, dtype=torch.bool, device=q.device).tril(shifted(N_k - N_q))
    s = (q @ k.mT / 4).masked_fill(~mask, -torch.inf)
    return torch.softmax(s, -1).masked_fill(~mask.any(-1, keepdim=True), 0) @ v


def numbered(x, group, number):
    """Query head h of batch b reads key head number(b, h, kv_heads) of all batches, counted through."""
    B, kv_heads, N, D = x.shape
    at = torch.tensor([[number(b, h, kv_heads) for h in range(kv_heads * group)] for b in range(B)], device=x.device)
    return x.reshape(B * kv_heads, N, D)[at % (B * kv_heads)]


def picking(pick):
    return lambda q, k, v: heads(q, k, v, pick)


def seeing(shifted):
    """The diagonal of the mask stands at shifted(N_k - N_q)."""
    return lambda q, k, v: heads(q, k, v, shifted=shifted)


def as_far_as_queries(q, k, v):
    """Reads key heads as far apart as the heads of queries."""
    steps = k.shape[1] * q.shape[2] * k.shape[3], q.shape[2] * k.shape[3], k.shape[3], 1
    far = [torch.nn.functional.pad(x.flatten(), (0, q.numel())).as_strided(x.shape, steps) for x in (k, v)]
    return heads(q, *far)


HEADS = dict(right=[heads, lambda q, k, v: reference.torch_attention(q, k, v, is_causal=True)], wrong={
    "one head": lambda q, k, v: heads(1.1 * q, k, v),
    "several batches": picking(lambda x, group: expand(x[:1].expand(x.shape), group)),
    "several heads": picking(lambda x, group: expand(x[:, :1].expand(x.shape), group)),
    "grouped heads": [picking(lambda x, group: x.repeat(1, group, 1, 1)),
                      picking(lambda x, group: numbered(x, group, lambda b, h, kv_heads: b * kv_heads + h // 2))],
    "more keys than queries": [seeing(lambda shift: min(0, shift)), seeing(lambda shift: shift - (shift == 1)),
                               *(seeing(lambda shift, r=r: shift + (shift > 0 and shift % 32 == r))
                                 for r in (0, 1, 30, 31))],
    "more queries than keys": [seeing(lambda shift: max(0, shift)), seeing(lambda shift: shift + (shift == -1))],
    "batches, groups and lengths together": [
        picking(lambda x, group: numbered(x, group, lambda b, h, kv_heads: b + h // group)),
        picking(lambda x, group: numbered(x, group, lambda b, h, kv_heads: h // group)), as_far_as_queries],
    "every output element is written": lambda q, k, v: without_the_rest(heads(q, k, v)),
    "nothing is written outside of the tensors": lambda q, k, v: beyond_the_end(heads(q, k, v))})


def window(q, k, v, window, BLOCK=32, start=lambda first, window, BLOCK: max(0, first - window + 1) // BLOCK * BLOCK,
           stop=lambda first, BLOCK, N: min(first + BLOCK, N), mask=-np.inf, more=lambda window, N: 0, all_count=False):
    """Tile by tile, in NumPy. `more` keys than the window are seen; `start` and `stop` bound a block's loop."""
    device, N, window = q.device, len(q), window + more(window, len(q))
    q, k, v = (x.double().cpu().numpy() for x in (q, k, v))
    o = np.zeros_like(q)
    for first in range(0, N, BLOCK):
        rows = np.arange(first, min(first + BLOCK, N))
        m, l, acc = np.full(len(rows), -3e38), np.zeros(len(rows)), np.zeros((len(rows), v.shape[1]))
        for j in range(start(first, window, BLOCK), stop(first, BLOCK, N), BLOCK):
            keys = np.arange(j, min(j + BLOCK, N))
            s = q[rows] @ k[keys].T / q.shape[1]**0.5
            counted = s.copy() if all_count else s
            s[(keys > rows[:, None]) | (keys <= rows[:, None] - window)] = mask
            m_new = np.maximum(m, counted.max(1))
            p = np.exp(s - m_new[:, None])
            l = np.exp(m - m_new) * l + p.sum(1)
            acc = np.exp(m - m_new)[:, None] * acc + p @ v[keys]
            m = m_new
        o[rows] = acc / np.where(l == 0, 1, l)[:, None]
    return torch.tensor(o, dtype=torch.float32, device=device)


windows = mistaken(window)


def late(n):
    return windows(start=lambda first, window, BLOCK: max(0, first - window + 1 + n) // BLOCK * BLOCK)


def exact(first, window, BLOCK):
    return max(0, first - window + 1)


SIZES = 16, 32, 64, 128
WINDOW = dict(right=[*(windows(BLOCK=n) for n in SIZES), *(windows(BLOCK=n, start=exact) for n in SIZES)], wrong={
    "a window of one key": windows(more=lambda window, N: window == 1),
    "a window inside a block": [windows(more=lambda window, N: 1), windows(more=lambda window, N: -(window > 1))],
    "a window across blocks": windows(more=lambda window, N: 32 < window < N),
    "a window that begins with the last key of a block": [late(1), late(2), late(31), *(
        windows(BLOCK=n, start=lambda first, window, BLOCK: max(0, first - window + 2) // BLOCK * BLOCK)
        for n in SIZES)],
    "a window longer than the sequence": windows(more=lambda window, N: min(0, N - 1 - window)),
    "a key outside of the window weighs nothing, however low the scores": [windows(mask=-1e4), windows(mask=-1e9)],
    "a key outside of the window is no row's maximum, however high its score": windows(all_count=True),
    "tiles before the window are not visited": [late(-1), late(-32), late(-64), windows(start=lambda *a: 0)],
    "tiles above the diagonal are not visited": [windows(stop=lambda first, BLOCK, N: N),
                                                 windows(stop=lambda first, BLOCK, N: N, start=exact),
                                                 windows(stop=lambda first, BLOCK, N: min(first + 2 * BLOCK, N))],
    "every output element is written": when(window, lambda q, *_: len(q) > 1, without_the_rest),
    "nothing is written outside of the tensors": lambda *qkv: beyond_the_end(window(*qkv))})

CASES = {check.loop_bounds: BOUNDS, check.attention_heads: HEADS, check.window_attention: WINDOW}
