"""The suite of masks: masked_attention and packed_attention beside FlexAttention, forward and backward."""
import functools

from helpers import lessons, reference
from helpers.bench import clock, kernels
from helpers.bench.attention import BACKWARD_BOUND, HIDDEN, TOKENS, by_autograd
from helpers.bench.run import suite
from helpers.device import DEVICE

import torch
import triton
import triton.language as tl

LENGTHS, HEAD_DIMS = (4096, 16384), (64, 128)
WIDE, CAP = 1024, 30.0                                   # of a window, a prefix, a document on average; of a score
MASKS = "causal", "window", "documents", "prefix", "ALiBi", "soft cap", "packed"
LEVEL = "one length"                                     # packed documents of WIDE tokens each, and the same in a batch
FLASH = "FlexAttention FLASH"                            # its other backend, which needs FlashAttention-4
FLASHED = "causal", "documents", "soft cap"              # it takes half a minute to compile


@triton.jit
def prefix(b, h, i, j, extra):                           # extra: how many keys every query sees
    return (j <= i) | (j < extra[0])


@triton.jit
def alibi(s, b, h, i, j, extra):                         # extra: slopes [heads]
    return s - tl.load(extra[0] + h) * (i.to(tl.float32) - j.to(tl.float32))       # fewer conversions than (i - j)


def cuts(N: int) -> torch.Tensor:
    """Where documents of WIDE tokens on average begin, and the end: int32 on the device."""
    inner = torch.randperm(N - 1, generator=torch.Generator().manual_seed(1))[:N // WIDE - 1] + 1
    return torch.tensor([0, *sorted(inner.tolist()), N], dtype=torch.int32, device=DEVICE)


@suite(seconds=260)
def masks():
    """A window of 1024, documents of 1024 tokens on average, a prefix of 1024, ALiBi, a soft cap of 30, and packed
    documents, of other lengths and of one, all causal, in float16: 16384 tokens in all, hidden size 2048: CUDA graphs.
    TFLOP/s of the scores that are seen."""
    for D in HEAD_DIMS:
        for N in LENGTHS:
            for name in (*MASKS, LEVEL)[:len(MASKS) + (N == TOKENS)]:
                yield from _jobs(name, N, D)


def _jobs(name, N, D):
    """Forward and backward of ours and of its peers, for one mask and shape."""
    shape = B, heads, _, _ = TOKENS // N, HIDDEN // D, N, D
    made = functools.cache(functools.partial(_made, name, *shape))
    names = ["ours", "FlexAttention"] + [FLASH] * ((N, D) == (TOKENS, 128) and name in FLASHED)
    if name in ("packed", LEVEL):
        names = ["ours"] + ["in a batch"] * (name == LEVEL) + [kernels.FA4]
    for who in names:
        attend = functools.cache(functools.partial(_attention, who, made))         # compiled once for both ways
        for way in ("forward", "backward"):
            facts = dict(name=who, **kernels.version(who), mask=name, way=way, dtype="float16", batch=B, heads=heads, N=N,
                         D=D)
            yield facts, functools.partial(kernels.tolerant, who.removesuffix(" FLASH"), _measured, who, way, made, attend)


def _made(name, B, heads, N, D):
    """What all rows of one mask and shape share: inputs, the exact result of the last head, and the work."""
    i, j = torch.arange(N, device=DEVICE)[:, None], torch.arange(N, device=DEVICE)
    offsets = cuts(N) if name != LEVEL else torch.arange(0, N + 1, WIDE, dtype=torch.int32, device=DEVICE)
    slopes = 2.0**(-8 * torch.arange(1, heads + 1, device=DEVICE) / heads)
    begin = offsets[torch.searchsorted(offsets, j.to(torch.int32), right=True) - 1]
    seen = {"window": (j <= i) & (j > i - WIDE), "prefix": (j <= i) | (j < WIDE)}.get(name, j <= i)
    if name in ("documents", "packed", LEVEL):
        seen = seen & (j >= begin[:, None])
    change = {"ALiBi": lambda s: s - slopes[-1] * (i - j), "soft cap": lambda s: CAP * torch.tanh(s / CAP)}.get(name)
    *inputs, do = torch.randn(4, B, N, heads, D, device=DEVICE).to(torch.float16).transpose(2, 3)
    if name not in ("packed", LEVEL):                    # whose rows lie one behind the other, each with all heads
        inputs, do = [x.contiguous() for x in inputs], do.contiguous()
    inputs = [x.detach().requires_grad_() for x in inputs]
    head = [x[-1, -1:].detach().double().requires_grad_() for x in inputs]
    o, _ = reference.masked_attention(*head, seen, change)
    exact = [o.detach()[0], *(x[0] for x in torch.autograd.grad(o, head, do[-1, -1:].double()))]
    return inputs, do.detach(), exact, 4 * B * heads * D * int(seen.sum()), (name, offsets, slopes, begin)


def _attention(who, made):
    """fn(q, k, v) of that name."""
    inputs, *_, what = made()
    make = {"ours": _ours, "in a batch": _in_a_batch, "FlexAttention": _flex, kernels.FA4: _fa4,
            FLASH: functools.partial(_flex, options=dict(BACKEND="FLASH"))}
    return make[who](*inputs[0].shape[1:3], *what)


def _measured(who, way, made, attend):
    inputs, do, exact, work, what = made()
    where = f"{what[0]}, N = {do.shape[2]}"
    if way == "forward":                                 # as in training: lse is stored
        launch, facts = clock.replayed(lambda: functools.partial(attend(), *inputs))
        error = clock.verified(who, launch()[-1, -1].detach(), exact[0], kernels.BOUNDS[torch.float16], where)
        return dict(relative_error=error, **clock.rate(work, launch) | facts)
    launch, facts = clock.replayed(lambda: by_autograd(attend(), inputs, do))
    error = max(clock.verified(f"{x} of {who}", dx[-1, -1], want, BACKWARD_BOUND, where)
                for x, dx, want in zip(("dq", "dk", "dv"), launch(), exact[1:]))
    return dict(relative_error=error, **clock.rate(2.5 * work, launch) | facts)  # five products, where forward has two


def _ours(heads, N, name, offsets, slopes, begin):
    """fn(q, k, v), with a map and a score that are made now."""
    lesson = lessons.masks_and_scores
    if name in ("packed", LEVEL):
        return _packed(lambda q, k, v, starts: lesson.packed_attention(q, k, v, starts, starts, is_causal=True), offsets)
    mask, extra = {"window": (lesson.window, (0, WIDE)), "documents": (lesson.documents, (begin,)),
                   "prefix": (prefix, (WIDE,))}.get(name, (lesson.causal, (0,)))
    score = {"ALiBi": (alibi, lesson.straight, (slopes,)),
             "soft cap": (lesson.soft_cap, lesson.soft_cap_derivative, (CAP,))}.get(name)
    BLOCK = 128 if heads > 16 and name not in ("window", "documents") else 64      # D = 64, and most tiles are full
    return functools.partial(lesson.masked_attention, mask=lesson.block_map(mask, N, N, extra, BLOCK=BLOCK),
                             score=score and lesson.score_change(*score))


def _packed(attend, offsets):
    """fn(q, k, v) for batches [B, heads, N, D] that lie one behind the other, by attend(q, k, v, starts) of rows."""
    @functools.cache                                     # or each call would have starts that no map was made of
    def starts(batch):
        return torch.cat([offsets[:-1] + n * offsets[-1] for n in range(batch)] + [offsets[-1:] * batch])

    def fn(q, k, v):
        B, heads, N, D = q.shape
        o = attend(*(x.transpose(1, 2).reshape(-1, heads, D) for x in (q, k, v)), starts(B))
        return o.view(B, N, heads, D).transpose(1, 2)
    return fn


def _in_a_batch(heads, N, name, *_):
    """fn(q, k, v) of documents of one length, in a batch: the same kernel, which does not know of packing."""
    attend = _ours(heads, WIDE, "causal", *_)

    def fn(q, k, v):
        o = attend(*(x.transpose(1, 2).reshape(-1, WIDE, *x.shape[1::2]).transpose(1, 2) for x in (q, k, v)))
        return o.transpose(1, 2).reshape(-1, N, *q.shape[1::2]).transpose(1, 2)
    return fn


def _fa4(heads, N, name, offsets, *_):
    """fn(q, k, v) of packed documents by FlashAttention-4. ImportError where it is not installed."""
    longest = offsets.diff().max().item()

    def attend(q, k, v, starts):
        return kernels.by_fa4("flash_attn_varlen_func", q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts,
                              max_seqlen_q=longest, max_seqlen_k=longest, causal=True)
    return _packed(attend, offsets)


def _flex(heads, N, name, offsets, slopes, begin, options=None):
    """fn(q, k, v) by FlexAttention, compiled at its first call."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    torch.compiler.reset()                               # or the eighth shape would be one recompilation too many
    masks = {"window": lambda b, h, i, j: (j <= i) & (j > i - WIDE), "prefix": lambda b, h, i, j: (j <= i) | (j < WIDE),
             "documents": lambda b, h, i, j: (j <= i) & (j >= begin[i])}
    score = {"ALiBi": lambda s, b, h, i, j: s - slopes[h] * (i - j),
             "soft cap": lambda s, b, h, i, j: CAP * torch.tanh(s / CAP)}.get(name)
    mask = create_block_mask(masks.get(name, lambda b, h, i, j: j <= i), None, None, N, N, device=DEVICE)
    return functools.partial(torch.compile(flex_attention, dynamic=False), block_mask=mask, score_mod=score,
                             kernel_options=options)
