"""The suite of lesson 04, part of helpers/bench.py: softmax against PyTorch's and a copy, matrix products against cuBLAS."""
from helpers import lessons
from helpers.bench_run import row
from helpers.device import DEVICE
from helpers.measure import timing, verified

import torch

ELEMENTS = 2**28                                         # of the softmax's input: 1 GiB, far more than the L2 cache holds
LENGTHS = [128, 512, 2048, 8192, 16384, 32768, 131072]  # of a row
SIZES = [1024, 2048, 4095, 4096, 8192]                   # 4095: rows that begin at odd addresses
SMALL_TILES = dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, GROUP=8)   # the tile of CUDA/matrix_add_mul.cu


def softmax_and_matmul():
    """Lesson 04's row softmax (float32, GB/s of one read and one write of the matrix) and matrix product (float16)."""
    lesson = lessons.matmul_triton
    yield from _softmax(lesson)
    yield from _matmul(lesson)


def _softmax(lesson):
    for N in LENGTHS:
        x = torch.randn(ELEMENTS // N, N, device=DEVICE)
        z = torch.empty_like(x)
        want = torch.softmax(x[:256].double(), dim=1)
        kernels = {"five steps": lesson.softmax_in_steps, "torch": lambda x: torch.softmax(x, dim=1), "triton": lesson.softmax}
        timed = {"copy": lambda: z.copy_(x)} | {name: lambda fn=fn: fn(x) for name, fn in kernels.items()}
        for name, fn in timed.items():
            def measure():
                error = verified(name, fn()[:256], x[:256].double() if name == "copy" else want, 2e-6, f"N = {N}")
                times = timing(fn)
                return dict(relative_error=error, gb_per_s=2 * x.numel() * x.element_size() / times["median_ms"] / 1e6, **times)
            yield row(dict(operation="softmax", name=name, dtype="float32", rows=len(x), N=N), measure)


def _matmul(lesson):
    kernels = {"naive": lesson.naive_matmul, "tile of 32": lambda a, b: lesson.matmul(a, b, tiles=SMALL_TILES),
               "autotuned": lesson.matmul, "torch": torch.matmul}
    for n in SIZES:
        a, b = torch.randn(2, n, n, device=DEVICE).to(torch.float16)
        want = a[:256].double() @ b.double()
        for name, fn in kernels.items():
            def measure():
                error = verified(name, fn(a, b)[:256], want, 1e-3, f"n = {n}")
                times = timing(lambda: fn(a, b))
                chosen = {"tile": str(lesson.tuned_matmul_kernel.best_config)} if name == "autotuned" else {}
                return dict(relative_error=error, tflops=2 * n**3 / times["median_ms"] / 1e9, **times, **chosen)
            yield row(dict(operation="matmul", name=name, dtype="float16", n=n), measure)
