"""Every attention that is measured, as fn(q, k, v) for q, k, v [B, heads, N, D]: the course's kernels and PyTorch's."""
import functools
import importlib
import importlib.metadata

from helpers import lessons, reference
from helpers.device import DEVICE, INTERPRETED

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cudnn": SDPBackend.CUDNN_ATTENTION,
            "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION}
FA4 = "FlashAttention-4"                                 # measured where it is installed
PEERS = ("standard", *BACKENDS, "FlexAttention", FA4)    # if one of these fails, its row says so; ours must not fail
BOUNDS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the relative error
FP8_BOUND = 0.2 if INTERPRETED else 0.1                  # the interpreter cuts where a GPU rounds


def v1(**options):
    """v1's kernel, for B = 1. It knows one head, so it is called once for each."""
    one = functools.partial(lessons.flash_attention_triton.flash_attention_v1, **options)

    def attend(q, k, v):
        heads = [one(q[0, h], k[0, h], v[0, h]) for h in range(q.shape[1])]
        return (torch.stack(heads) if len(heads) > 1 else heads[0][None])[None]      # one head: not a copy more
    return attend


def v2(**options):
    """flash_attention_v2 with these options."""
    return functools.partial(lessons.causal_and_multihead.flash_attention_v2, **options)


def v3(**options):
    """flash_attention_v3 with these options."""
    return functools.partial(lessons.fp8.flash_attention_v3, **options)


def v4(**options):
    """flash_attention_v4 with these options: the fastest forward pass of the course."""
    return functools.partial(lessons.warp_specialization.flash_attention_v4, **options)


def flash(**options):
    """flash_attention with these options: the one whose backward pass is measured."""
    return functools.partial(lessons.backward_triton.flash_attention, **options)


def steps(D: int, N: int, is_causal: bool) -> dict:
    """{step: fn(q, k, v)} on the way from v2 to v4, for N queries and keys: one change at a time."""
    last, prefetch = lessons.causal_and_multihead, lessons.prefetch

    def pointers(tiles):
        return lambda q, k, v: last.launch_v2(q, k, v, is_causal, D**-0.5, tiles=tiles)[0]

    def descriptors(**options):
        return lambda q, k, v: prefetch.launch_v3(q, k, v, is_causal, D**-0.5, **options)[0]

    same, chosen = last.tile_sizes(D, torch.float16), prefetch.tiles_v3(D, N, is_causal)
    same.pop("BLOCK_D")
    found = {"v2": pointers(None), "descriptors": descriptors(tiles=same)}
    for stages in (1, 2, 3, 4):
        if (same["BLOCK_M"] + stages * 2 * same["BLOCK_N"]) * D * 2 <= 226 * 1024:   # barriers take some of the 227 KB
            found[f"{stages} stage{'s'[:stages > 1]}"] = descriptors(tiles=same | dict(num_stages=stages))
    return found | {
        "tiles": descriptors(tiles=chosen), "tiles, pointers": pointers(chosen),
        "tuned": descriptors(kernel=prefetch.tuned_v3_kernel), "fp8 kernel": _fp8_kernel(is_causal),
        "specialized": lambda q, k, v: lessons.warp_specialization.forward_v4(q, k, v, is_causal, D**-0.5)[0]}


def backward_steps(is_causal: bool) -> dict:
    """{step: fn(q, k, v, o, lse, do) -> dq, dk, dv} from lesson to lesson, for what a forward pass returned."""
    fused, usual = lessons.backward_hopper, ((0.0, 0), (True, True, True))
    options = lambda q, lse: (torch.zeros_like(lse), is_causal, q.shape[3]**-0.5)

    def two_walks(q, k, v, o, lse, do):
        return lessons.backward_triton.attention_backward(q, k, v, o, lse, do, *options(q, lse), *usual)

    def one_walk(q, k, v, o, lse, do):
        return fused.one_walk(q, k, v, o, lse, do, *options(q, lse))

    def one_kernel(q, k, v, o, lse, do):
        return fused.backward_v4(q, k, v, o, lse, do, *options(q, lse), *usual)
    return {"two walks": two_walks, "one walk": one_walk, "v4": one_kernel}


def forward_for_backward(q, k, v, is_causal: bool):
    """o and lse of v4, from which a backward pass starts."""
    with torch.no_grad():
        return v4(is_causal=is_causal, return_lse=True)(q, k, v)


def _fp8_kernel(is_causal):
    """v3 in FP8 without the quantization, which is done at the first call, for the inputs of that call."""
    quantized = []

    def attend(q, k, v):
        if not quantized:
            quantized.extend(lessons.fp8.quantize_qkv(q, k, v))
        return lessons.fp8.launch_fp8(*quantized, is_causal, q.shape[3]**-0.5, q.shape[3], q.dtype)[0]
    return attend


def peers(is_causal: bool) -> dict:
    """{name: fn(q, k, v)} of PyTorch's own: standard attention and each fused backend."""
    standard = functools.partial(reference.torch_attention, is_causal=is_causal)
    return {"standard": standard} | {name: sdpa(backend, is_causal) for name, backend in BACKENDS.items()}


def sdpa(backend, is_causal: bool, **options):
    """PyTorch's scaled_dot_product_attention with one backend."""
    def attend(q, k, v):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=is_causal, **options)
    return attend


def fa4(is_causal: bool):
    """FlashAttention-4. A call raises ImportError where it is not installed."""
    def attend(q, k, v):                                 # its layout is [B, N, heads, D]
        return by_fa4("flash_attn_func", *(x.transpose(1, 2) for x in (q, k, v)), causal=is_causal).transpose(1, 2)
    return attend


def by_fa4(function: str, *tensors, **options):
    """o of one of FlashAttention-4's functions, which may return lse as well. ImportError where it is not installed."""
    o = getattr(importlib.import_module("flash_attn.cute"), function)(*tensors, **options)
    return o[0] if isinstance(o, tuple) else o


def version(name: str) -> dict:
    """What a row says of a peer that is not PyTorch's: {"version": ...}, or nothing if it is not installed."""
    try:
        return {"version": importlib.metadata.version("flash-attn-4")} if name == FA4 else {}
    except importlib.metadata.PackageNotFoundError:
        return {}


def flex(N: int, is_causal: bool, **options):
    """FlexAttention for N queries and keys, compiled at its first call."""
    @functools.cache
    def compiled():
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        torch.compiler.reset()                           # or the eighth shape would be one recompilation too many
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, N, N, device=DEVICE) if is_causal else None
        return functools.partial(torch.compile(flex_attention, dynamic=False), block_mask=mask, **options)
    return lambda q, k, v: compiled()(q, k, v)


def tolerant(name: str, measure, *arguments) -> dict:
    """measure(*arguments), or {"error": why}: memory runs out, a peer fails, or a kernel of ours refuses its arguments.

    Any other failure of ours, a wrong result above all, is raised.
    """
    try:
        return measure(*arguments)
    except torch.OutOfMemoryError:
        error = "out of memory"
    except Exception as problem:
        if name not in PEERS and not isinstance(problem, (TypeError, ValueError)):
            raise
        error = " ".join(str(problem).split())[:200] or type(problem).__name__
    torch.cuda.empty_cache()                       # outside of `except`, where the failed call's tensors are still held
    return dict(error=error)
