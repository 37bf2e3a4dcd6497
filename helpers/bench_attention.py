"""The suites of lessons 08 and 09, part of helpers/bench.py: attention kernels beside PyTorch's."""
from helpers import notebook, reference
from helpers.measure import timing, verified

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cudnn": SDPBackend.CUDNN_ATTENTION,
            "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION}


def flash_attention_v1():
    """Lesson 08's kernel against standard attention and PyTorch's fused ones: one head, forward, no mask."""
    v1 = notebook.load("08_flash_attention_triton").flash_attention_v1
    one_head = lambda fn: lambda q, k, v: fn(q[None, None], k[None, None], v[None, None])[0, 0]
    kernels = {"standard": reference.torch_attention, "v1": v1}
    kernels |= {name: one_head(sdpa(backend, False)) for name, backend in BACKENDS.items()}
    for D in (64, 128, 256):
        for N in (512, 1024, 2048, 4096, 8192, 16384, 32768):
            q, k, v = torch.randn(3, N, D, device="cuda").to(torch.float16)
            want = reference.torch_attention(q[:256].double(), k.double(), v.double())
            for name, fn in kernels.items():
                error = verified(name, fn(q, k, v)[:256], want, 2e-3, f"N = {N}, D = {D}")
                row = timing(lambda: fn(q, k, v))
                yield dict(name=name, dtype="float16", N=N, D=D, heads=1, relative_error=error,
                           tflops=4 * N * N * D / row["median_ms"] / 1e9, **row)


def flash_attention_v2():
    """Lesson 09's kernel against the same: 16384 tokens in all, hidden size 2048, forward, with and without a causal mask."""
    v2 = notebook.load("09_causal_and_multihead").flash_attention_v2
    for D in (64, 128):
        for N in (512, 1024, 2048, 4096, 8192, 16384):
            B, heads = 16384 // N, 2048 // D
            q, k, v = torch.randn(3, B, heads, N, D, device="cuda").to(torch.float16)
            for is_causal in (False, True):
                want = reference.torch_attention(*(x[-1, -1].double() for x in (q, k, v)), is_causal=is_causal)
                kernels = {"v2": lambda q, k, v: v2(q, k, v, is_causal=is_causal)}
                kernels |= {name: sdpa(backend, is_causal) for name, backend in BACKENDS.items()}
                kernels["standard"] = lambda q, k, v: reference.torch_attention(q, k, v, is_causal=is_causal)
                for name, fn in kernels.items():
                    error = verified(name, fn(q, k, v)[-1, -1], want, 2e-3, f"N = {N}, D = {D}, is_causal = {is_causal}")
                    row = timing(lambda: fn(q, k, v))
                    work = 4 * B * heads * N * N * D / (2 if is_causal else 1)
                    yield dict(name=name, dtype="float16", batch=B, heads=heads, N=N, D=D, is_causal=is_causal,
                               relative_error=error, tflops=work / row["median_ms"] / 1e9, **row)


def sdpa(backend, is_causal):
    """PyTorch's scaled_dot_product_attention with one backend."""
    def attend(q, k, v):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    return attend
