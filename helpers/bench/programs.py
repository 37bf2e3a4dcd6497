"""The suites of everything that is not attention: vector addition, the CUDA programs, softmax and matrix products."""
import functools
import re

from helpers import cuda, lessons
from helpers.bench import clock
from helpers.bench.run import suite
from helpers.device import DEVICE

import torch

VECTORS = [2**power for power in range(12, 29, 2)]
CUDA_RUNS = ([("vec_add.cu", [2**power]) for power in range(12, 29, 4)]
             + [("matrix_add_mul.cu", [n, n, n]) for n in (256, 1024, 4096)]
             + [("matrix_add_mul.cu", [16384, 16384, 32])]          # large enough for the additions to leave the caches
             + [("attention.cu", [N, N, 16]) for N in (1024, 4096, 16384)])
CUDA_TIME = re.compile(r"^\[gpu\] (.+): ([\d.]+) ms \(([\d.]+) to ([\d.]+) in \d+ runs\), ([\d.]+) (GB/s|TFLOP/s)$",
                       re.MULTILINE)
ELEMENTS = 2**28                                       # of the softmax's input: 1 GiB, far more than the L2 cache holds
LENGTHS = [128, 512, 2048, 8192, 16384, 32768, 131072]  # of a row
SIZES = [1024, 2048, 4095, 4096, 8192]                   # 4095: rows that begin at odd addresses
SMALL_TILES = dict(BLOCK_M=32, BLOCK_N=32, BLOCK_K=32, GROUP=8)   # the tile of CUDA/matrix_add_mul.cu


@suite(seconds=10)
def vector_add():
    """Triton's add against PyTorch's and against a copy, float32, from 2^12 to 2^28 elements."""
    add = lessons.vector_add_triton.add
    for n in VECTORS:
        x, y = torch.randn(2, n, device=DEVICE)
        z = torch.full_like(x, float("nan"))
        torch.testing.assert_close(add(x, y), x + y, rtol=0, atol=0)
        for name, fn, moved in (("copy", functools.partial(z.copy_, x), 8 * n),
                                ("torch", functools.partial(torch.add, x, y, out=z), 12 * n),
                                ("triton", functools.partial(add, x, y), 12 * n)):
            yield dict(name=name, dtype="float32", n=n), functools.partial(clock.rate, moved, fn, "gb_per_s")


@suite(seconds=41)
def cuda_programs():
    """The programs of CUDA/, compiled for this GPU. They check their results and time themselves, L2 is not flushed."""
    arch = "sm_%d%d" % torch.cuda.get_device_capability()
    for program, arguments in CUDA_RUNS:
        facts = dict(program=program, arguments=arguments, arch=arch)
        yield facts, functools.partial(_cuda_run, **facts)


def _cuda_run(program, arguments, arch):
    return cuda_times(cuda.run(program, *arguments, emulate=False, arch=arch))


def cuda_times(printed: str) -> list:
    """The timed lines of a CUDA program's output, as dictionaries."""
    return [{"name": name, "median_ms": float(median), "q1_ms": float(q1), "q3_ms": float(q3),
             "gb_per_s" if unit == "GB/s" else "tflops": float(rate)}
            for name, median, q1, q3, rate, unit in CUDA_TIME.findall(printed)]


@suite(seconds=24)
def softmax_and_matmul():
    """The row softmax (float32, GB/s of one read and one write of the matrix) and the matrix product (float16)."""
    yield from _softmax(lessons.softmax_triton)
    yield from _matmul(lessons.matmul_triton)


def _softmax(lesson):
    for N in LENGTHS:
        x = torch.randn(ELEMENTS // N, N, device=DEVICE)
        want = torch.softmax(x[:256].double(), dim=1)
        for name, fn in {"copy": torch.empty_like(x).copy_, "five steps": lesson.softmax_in_steps,
                         "torch": functools.partial(torch.softmax, dim=1), "triton": lesson.softmax}.items():
            exact, call = x[:256].double() if name == "copy" else want, functools.partial(fn, x)
            yield (dict(operation="softmax", name=name, dtype="float32", rows=len(x), N=N),
                   functools.partial(_checked, name, call, exact, 2e-6, 2 * x.nbytes, "gb_per_s", N))


def _matmul(lesson):
    fns = {"naive": lesson.naive_matmul, "tile of 32": functools.partial(lesson.matmul, tiles=SMALL_TILES),
           "autotuned": lesson.matmul, "torch": torch.matmul}
    for n in SIZES:
        a, b = torch.randn(2, n, n, device=DEVICE).to(torch.float16)
        want = a[:256].double() @ b.double()
        for name, fn in fns.items():
            call, kernel = functools.partial(fn, a, b), lesson.tuned_matmul_kernel if name == "autotuned" else None
            yield (dict(operation="matmul", name=name, dtype="float16", n=n),
                   functools.partial(_checked, name, call, want, 1e-3, 2 * n**3, "tflops", n, kernel))


def _checked(name, fn, want, bound, work, unit, size, tuned=None):
    error = clock.verified(name, fn()[:256], want, bound, f"size {size}")
    found = dict(relative_error=error, **clock.rate(work, fn, unit))
    return found | ({"tile": str(tuned.best_config)} if tuned else {})
