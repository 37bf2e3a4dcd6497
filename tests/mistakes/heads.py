"""Right and wrong versions of attention with heads, its loop bounds, and sliding windows."""
import numpy as np
import torch

from helpers import check, reference
from helpers.check.heads import windowed
from mistakes.ways import beyond_the_end, when, without_the_rest


def bounds(block, BLOCK_M, BLOCK_N, N_q, N_k, shift=lambda N_q, N_k: N_k - N_q, one=1, unit=None, last=0):
    see = block * BLOCK_M + shift(N_q, N_k)
    unit = BLOCK_N if unit is None else unit
    return max(0, min(N_k, see + one)) // unit * unit, min(N_k + last, see + BLOCK_M)


TOP_LEFT = dict(shift=lambda N_q, N_k: 0)
BOUNDS = dict(right=[bounds, lambda *a: tuple(max(0, x) for x in bounds(*a))], wrong={
    "as many queries as keys": lambda *a: bounds(*a, one=64),                                  # the diagonal taken for a full tile
    "blocks of different size": lambda block, M, N, *a: bounds(block, M, N, *a, unit=M),
    "more keys than queries": [lambda *a: bounds(*a, **TOP_LEFT), lambda *a: bounds(*a, one=0), lambda *a: bounds(*a, one=2)],
    "queries that see no key": lambda *a: bounds(*a, shift=lambda N_q, N_k: max(0, N_k - N_q)),
    "a last block beyond the end": lambda *a: bounds(*a, last=999)})


def expand(x, group):
    return x.repeat_interleave(group, 1)


def heads(q, k, v, pick=expand, seen=None):
    """pick(x, group) gives each query head a key head; seen(N_q, N_k) is the diagonal of the mask."""
    N_q, N_k = q.shape[2], k.shape[2]
    k, v = (pick(x, q.shape[1] // x.shape[1]) for x in (k, v))
    mask = torch.ones(N_q, N_k, dtype=torch.bool, device=q.device).tril(seen(N_q, N_k) if seen else N_k - N_q)
    s = (q @ k.mT / 4).masked_fill(~mask, -torch.inf)
    return torch.softmax(s, -1).masked_fill(~mask.any(-1, keepdim=True), 0) @ v


def numbered(x, group, number):
    """Query head h of batch b reads key head number(b, h, kv_heads) of all batches, counted through."""
    B, kv_heads, N, D = x.shape
    at = torch.tensor([[number(b, h, kv_heads) for h in range(kv_heads * group)] for b in range(B)], device=x.device)
    return x.reshape(B * kv_heads, N, D)[at % (B * kv_heads)]


def picking(pick):
    return lambda q, k, v: heads(q, k, v, pick)


def as_far_as_queries(q, k, v):
    """Reads key heads as far apart as the heads of queries."""
    N_q, (B, kv_heads, N_k, D) = q.shape[2], k.shape
    far = lambda x: torch.nn.functional.pad(x.flatten(), (0, q.numel())).as_strided(x.shape, (kv_heads * N_q * D, N_q * D, D, 1))
    return heads(q, far(k), far(v))


HEADS = dict(right=[heads, lambda q, k, v: reference.torch_attention(q, k, v, is_causal=True)], wrong={
    "one head": lambda q, k, v: heads(1.1 * q, k, v),
    "several batches": picking(lambda x, group: expand(x[:1].expand(x.shape), group)),
    "several heads": picking(lambda x, group: expand(x[:, :1].expand(x.shape), group)),
    "grouped heads": [picking(lambda x, group: x.repeat(1, group, 1, 1)),
                      picking(lambda x, group: numbered(x, group, lambda b, h, kv_heads: b * kv_heads + h // 2))],
    "more keys than queries": [lambda q, k, v: heads(q, k, v, seen=lambda N_q, N_k: 0 if N_k > N_q else N_k - N_q),
                               lambda q, k, v: heads(q, k, v, seen=lambda N_q, N_k: N_k - N_q - (N_k == N_q + 1))],
    "more queries than keys": lambda q, k, v: heads(q, k, v, seen=lambda N_q, N_k: max(0, N_k - N_q)),
    "batches, groups and lengths together": [picking(lambda x, group: numbered(x, group, lambda b, h, kv_heads: b + h // group)),
                                             picking(lambda x, group: numbered(x, group, lambda b, h, kv_heads: h // group)), as_far_as_queries],
    "every output element is written": lambda q, k, v: without_the_rest(heads(q, k, v)),
    "nothing is written outside of the tensors": lambda q, k, v: beyond_the_end(heads(q, k, v))})


def window(q, k, v, window, more=lambda window, N: 0, low=False, waste=None, start=None):
    """more(window, N): keys that are seen too many; start(block, window): where the loop over keys begins."""
    N = len(q)
    o = windowed(q, k, torch.nan_to_num(v), N if low and k.min() < -1e9 else window + more(window, N))
    if waste is not None:
        o[waste(N) @ np.isnan(v.cpu().numpy()) > 0] = np.nan
    if start:                                            # a row in a block of 32 sees what is left of its window
        row = np.arange(N)
        left = np.minimum(window, row + 1 - np.maximum(0, start(row // 32 * 32, window)) // 32 * 32)
        for size in np.unique(left):
            o[left == size] = windowed(q, k, torch.nan_to_num(v), size)[left == size] if size > 0 else 0
    return torch.tensor(o, dtype=q.dtype, device=q.device)


def windows(**mistake):
    return lambda *qkv: window(*qkv, **mistake)


WINDOW = dict(right=[window, windows(start=lambda first, window: first - window + 1)], wrong={
    "a window of one key": windows(more=lambda window, N: window == 1),
    "a window inside a block": [windows(more=lambda window, N: 1), windows(more=lambda window, N: -(window > 1))],
    "a window across blocks": windows(more=lambda window, N: 32 < window < N),
    "a window that begins with the last key of a block": [windows(start=lambda first, window: first - window + n) for n in (2, 3, 32)],
    "a window longer than the sequence": windows(more=lambda window, N: min(0, N - 1 - window)),
    "a key outside of the window weighs nothing, however low the scores": windows(low=True),
    "tiles before the window are not visited": windows(waste=np.tri),
    "tiles above the diagonal are not visited": windows(waste=lambda N: np.tri(N).T),
    "every output element is written": when(window, lambda q, *_: len(q) > 1, without_the_rest),
    "nothing is written outside of the tensors": lambda *qkv: beyond_the_end(window(*qkv))})

CASES = {check.loop_bounds: BOUNDS, check.attention_heads: HEADS, check.window_attention: WINDOW}
