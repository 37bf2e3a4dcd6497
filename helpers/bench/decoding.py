"""The suite of decoding: one query against a cache, the course's kernel beside PyTorch's, in GB/s of keys and values."""
import functools
import time

from helpers import lessons, reference
from helpers.bench import clock, kernels
from helpers.bench.run import suite
from helpers.device import DEVICE

import torch

HEADS, D = 32, 128
BATCHES, KV_HEADS, LENGTHS = (1, 16, 64), (32, 8, 1), (2048, 8192, 32768, 131072)
MOST = 2**34                                             # bytes of keys and values
USUAL = (16, 8, 8192)                                    # batch, key heads, keys: where all page sizes and eight bits go
FLEX = [USUAL, (1, 8, 8192)]                             # torch.compile takes some ten seconds for each
SHORT, CALLS = 8192, 200                                 # one sequence of so many keys at most: the host is timed, too


@suite(seconds=90)
def decoding():
    """One query of 32 heads of 128 for each sequence, float16, against a cache, contiguous and in pages: CUDA graphs."""
    for B in BATCHES:
        for kv_heads in KV_HEADS:
            for N in LENGTHS:
                if 4 * B * kv_heads * N * D <= MOST:
                    yield from _beside(B, kv_heads, N)


def _beside(B, kv_heads, N):
    """The jobs of one shape: rows with GB/s, of a CUDA graph's replays; for a short cache also ms of an eager call."""
    q, k, v = (torch.randn(B, h, n, D, dtype=torch.float16, device=DEVICE)
               for h, n in ((HEADS, 1), (kv_heads, N), (kv_heads, N)))
    want = functools.cache(lambda: reference.last_head(q, k, v))
    for name, make in _calls(q, k, v).items():
        facts = dict(name=name, dtype="float8_e4m3fn" if "FP8" in name else "float16", batch=B, heads=HEADS,
                     kv_heads=kv_heads, N=N, D=D)
        yield facts, functools.partial(kernels.tolerant, name, _step, name, make, want, k)


def _calls(q, k, v):
    """{name: a function that makes the call}: it makes pages, bytes or a compiled function only when it is asked."""
    shape = (len(q), *k.shape[1:3])
    lengths = torch.full(shape[:1], k.shape[2], dtype=torch.int32, device=DEVICE)
    pages = [page for page in (16, 32, 64, 128, 256) if (shape == USUAL or page == 64) and page <= k.shape[2]]
    calls = {"ours": lambda: functools.partial(lessons.decoding.decode_attention, q, k, v, lengths)}
    calls |= {f"ours, pages of {page}": functools.partial(_in_pages, q, k, v, lengths, page) for page in pages}
    if shape == USUAL:
        calls["ours, FP8"] = lambda: _in_eight_bits(q, k, v, lengths)
    peers = {name: kernels.sdpa(kernels.BACKENDS[name], False, enable_gqa=True) for name in ("SDPA flash", "SDPA cudnn")}
    if shape in FLEX:
        peers["FlexAttention"] = kernels.flex(k.shape[2], False, enable_gqa=True)
    peers[kernels.FA4] = kernels.fa4(False)
    return calls | {name: lambda fn=fn: functools.partial(fn, q, k, v) for name, fn in peers.items()}


def _in_pages(q, k, v, lengths, page):
    B, kv_heads, N, _ = k.shape
    n = N // page
    order = torch.randperm(B * n, device=DEVICE)
    caches = []
    for x in (k, v):
        cache = torch.empty(B * n, kv_heads, page, D, dtype=x.dtype, device=DEVICE)
        cache[order] = x.unflatten(2, (n, page)).transpose(1, 2).flatten(0, 1)
        caches.append(cache)
    return functools.partial(lessons.decoding.decode_attention, q, *caches, lengths, block_table=order.view(B, n).int())


def _in_eight_bits(q, k, v, lengths):
    (k8, k_scales), (v8, v_scales) = lessons.decoding.quantize_rows(k), lessons.decoding.quantize_rows(v)
    return functools.partial(lessons.decoding.decode_attention, q, k8, v8, lengths, scales=torch.stack((k_scales, v_scales)))


def _step(name, make, want, k):
    (B, _, N, _), eight = k.shape, "FP8" in name
    launch, facts = clock.replayed(make)
    error = clock.verified(name, launch()[-1, -1], want(), kernels.FP8_BOUND if eight else kernels.BOUNDS[k.dtype], f"N = {N}")
    moved = 2 * k.numel() * (1 + 4 / D) if eight else 4 * k.numel()          # scales of 4 bytes a row
    row = dict(relative_error=error, **clock.rate(moved, launch, "gb_per_s") | facts)
    return row | dict(call_ms=in_a_row(make())) if B == 1 and N <= SHORT else row


def in_a_row(call):
    """Wall-clock ms of an eager call, the host's time included: of CALLS in a row, until the GPU has done the last."""
    for _ in range(2):                                   # the first time to warm up
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / CALLS
