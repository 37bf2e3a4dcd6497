"""The suites of lessons 08, 09 and 11, part of helpers/bench.py: attention kernels, forward, beside PyTorch's."""
import functools

from helpers import lessons, reference
from helpers.bench_run import row
from helpers.device import DEVICE, INTERPRETED
from helpers.measure import timing, verified

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cudnn": SDPBackend.CUDNN_ATTENTION,
            "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION}
PEERS = ("standard", *BACKENDS, "FlexAttention")         # if one of these fails, its row says so; ours must not fail
TOKENS, HIDDEN = 16384, 2048                             # in all: shorter sequences mean larger batches
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384]
ONE_HEAD = [*LENGTHS, 32768]
FLEX_LENGTHS = [4096, 16384]                             # torch.compile takes some ten seconds for each


def flash_attention_v1():
    """Lesson 08's kernel against standard attention and PyTorch's fused ones: one head, forward, no mask."""
    v1 = lessons.flash_attention_triton.flash_attention_v1
    one_head = lambda fn: lambda q, k, v: fn(q[None, None], k[None, None], v[None, None])[0, 0]
    kernels = {"standard": reference.torch_attention, "v1": v1}
    kernels |= {name: one_head(sdpa(backend, False)) for name, backend in BACKENDS.items()}
    for D in (64, 128, 256):
        for N in ONE_HEAD:
            q, k, v = random_inputs(N, D)
            want = functools.cache(lambda: reference.torch_attention(q[:256].double(), k.double(), v.double()))
            yield from rows(kernels, q, k, v, lambda o: o[:256], want, 4 * N * N * D, N=N, D=D, heads=1)


def flash_attention_v2():
    """Lesson 09's kernel against the same: 16384 tokens in all, hidden size 2048, forward, with and without a causal mask."""
    v2 = lessons.causal_and_multihead.flash_attention_v2
    yield from _many_heads(lambda D, N, is_causal: {
        "v2": lambda q, k, v: v2(q, k, v, is_causal=is_causal), **peers(is_causal)})


def flash_attention_v3():
    """Lesson 11's kernel, in float16 and in FP8, against v2 and PyTorch's: 16384 tokens in all, hidden size 2048, forward."""
    v2 = lessons.causal_and_multihead.flash_attention_v2
    lesson = lessons.fp8
    v3 = lesson.flash_attention_v3
    yield from _many_heads(lambda D, N, is_causal: {
        "v2": lambda q, k, v: v2(q, k, v, is_causal=is_causal),
        "v3": lambda q, k, v: v3(q, k, v, is_causal=is_causal),
        "v3 fp8": lambda q, k, v: v3(q, k, v, is_causal=is_causal, precision="fp8"),
        "v3 fp8 kernel": fp8_kernel(lesson, is_causal), **peers(is_causal),
        **({"FlexAttention": flex(N, is_causal)} if N in FLEX_LENGTHS else {})})


def fp8_kernel(lesson, is_causal):
    """v3 in FP8 without the quantization, which is done at the first call, for the inputs of that call."""
    quantized = []

    def attend(q, k, v):
        if not quantized:
            quantized.extend(lesson.quantize(q, k, v))
        return lesson.launch_best(*quantized[0], is_causal, q.shape[3]**-0.5, quantized[1], q.shape[3], q.dtype)[0]
    return attend


def _many_heads(kernels):
    for D in (64, 128):
        for N in LENGTHS:
            B, heads = TOKENS // N, HIDDEN // D
            q, k, v = random_inputs(B, heads, N, D)
            for is_causal in (False, True):
                want = functools.cache(lambda: reference.torch_attention(*(x[-1, -1].double() for x in (q, k, v)),
                                                                         is_causal=is_causal))
                work = 4 * B * heads * N * N * D / (2 if is_causal else 1)
                yield from rows(kernels(D, N, is_causal), q, k, v, lambda o: o[-1, -1], want, work,
                                batch=B, heads=heads, N=N, D=D, is_causal=is_causal)


def random_inputs(*shape, dtype=torch.float16):
    """q, k and v of one shape, normally distributed."""
    return torch.randn(3, *shape, device=DEVICE).to(dtype)


BOUNDS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of the relative error
FP8_BOUND = 0.2 if INTERPRETED else 0.1                  # the interpreter cuts where a GPU rounds


def rows(kernels: dict, q, k, v, part, want, work: float, times=None, **facts):
    """A row for each of kernels, {name: fn(q, k, v)}: facts, error, TFLOP/s by `work` operations, and times.

    part(fn(q, k, v)) is compared with want(), float64, before times(call) takes them (measure.timing if None).
    """
    dtype, where = str(q.dtype).removeprefix("torch."), ", ".join(f"{key} = {value}" for key, value in facts.items())
    for name, fn in kernels.items():
        def measure():
            bound = FP8_BOUND if "fp8" in name else BOUNDS[q.dtype]
            error = verified(name, part(fn(q, k, v)), want(), bound, where)
            taken = (times or timing)(lambda: fn(q, k, v))
            return dict(relative_error=error, tflops=work / taken["median_ms"] / 1e9, **taken)
        yield row(dict(name=name, dtype="float8_e4m3fn" if "fp8" in name else dtype, **facts), lambda: tolerant(name, measure))


def tolerant(name: str, measure) -> dict:
    """measure(), or {"error": why} if memory runs out, if a peer fails, or if a kernel of ours refuses its arguments.

    Any other failure of ours, a wrong result above all, ends the suite.
    """
    try:
        return measure()
    except torch.OutOfMemoryError:
        error = "out of memory"
    except Exception as problem:
        if name not in PEERS and not isinstance(problem, (TypeError, ValueError)):
            raise
        error = " ".join(str(problem).split())[:200] or type(problem).__name__
    torch.cuda.empty_cache()                             # outside of `except`, where the failed call's tensors are still held
    return dict(error=error)


def peers(is_causal: bool) -> dict:
    """{name: fn(q, k, v)} of PyTorch's own: each fused backend, and standard attention."""
    standard = lambda q, k, v: reference.torch_attention(q, k, v, is_causal=is_causal)
    return {"standard": standard} | {name: sdpa(backend, is_causal) for name, backend in BACKENDS.items()}


def sdpa(backend, is_causal):
    """PyTorch's scaled_dot_product_attention with one backend."""
    def attend(q, k, v):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    return attend


def flex(N, is_causal):
    """FlexAttention for N queries and keys, compiled at its first call."""
    @functools.cache
    def compiled():
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        torch.compiler.reset()                           # or the eighth shape would be one recompilation too many
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, N, N, device=DEVICE) if is_causal else None
        return functools.partial(torch.compile(flex_attention, dynamic=False), block_mask=mask)
    return lambda q, k, v: compiled()(q, k, v)
