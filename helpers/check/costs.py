"""Checks of sizes, intensities and tiles, and of what fits into shared memory, each against a count of its own."""
import functools

import numpy as np

from helpers import reference
from helpers.check.core import equal, first, near, over, properties
from helpers.records.gpus import GPUS


# ---------------------------------------------------------------- the longest sequence

def longest(fn):
    """fn(memory, heads, itemsize) returns the largest N whose two [N, N] matrices a head fit into memory bytes."""
    lengths = functools.partial(equal, "longest", _longest)
    properties("longest", [
        ("s and p of one head", lengths((80 * 10**9, 1, 2), (24 * 10**9, 1, 2), (1000, 1, 2))),
        ("each head has its own", lengths((141 * 10**9, 32, 2), (10**6, 3, 2))),
        ("other sizes of a number", lengths((10**9, 1, 1), (10**9, 1, 4))),
        ("a length that fits to the byte", lengths(*((4 * N * N - less, 1, 2) for N in (7, 4096) for less in (0, 1)))),
        ("memory too large for a float", lengths((4 * (2**60 + 1)**2, 1, 2), (4 * (2**60 + 1)**2 - 1, 1, 2))),
        ("no room for a single score", lengths((0, 1, 2), (3, 1, 2)))], fn)


def _longest(memory, heads, itemsize):
    low, high = 0, 1 << 80                               # by bisection, in whole numbers
    while low < high:
        N = (low + high + 1) // 2
        low, high = (N, high) if 2 * heads * N * N * itemsize <= memory else (low, N - 1)
    return low


# ---------------------------------------------------------------- arithmetic intensity

# Shapes in which one matrix outweighs the others by 1e5, so that forgetting one of the others does not show
ONLY_A, ONLY_B, ONLY_C = (10**5, 1, 10**5), (1, 10**5, 10**5), (10**5, 10**5, 1)


def matmul_intensity(fn):
    """fn(M, N, K, itemsize=2) returns the operations a byte of [M, K] x [K, N], each matrix crossing memory once."""
    on = over("M, N, K = {}, {}, {}")
    properties("matmul_intensity", [
        ("a multiply-add is two operations", on(_intensity, ONLY_A)),
        ("the second matrix is read", on(_intensity, ONLY_B)),
        ("the result is written", on(_intensity, ONLY_C)),
        ("bytes, not numbers", on(_bytes, ONLY_A))], fn)


def _intensity(fn, M, N, K):
    return near("the intensity with 1 byte a number", fn(M, N, K, 1), 2 * M * N * K / (M * K + K * N + M * N), 1e-3)


def _bytes(fn, *shape):
    return first(near(f"the intensity with {2 * len(size) + 2} bytes a number", fn(*shape, *size), fn(*shape, 1) / times, 1e-3)
                 for size, times in (((), 2), ((4,), 4)))


# ---------------------------------------------------------------- memory or compute

H200, A100 = GPUS["H200 SXM"], GPUS["A100 SXM 80GB"]


def bottlenecks(fn):
    """fn(N, D, itemsize, gpu) returns {"scores", "softmax", "output": "memory" or "compute"}, gpu from GPUS."""
    slow = H200._replace(fp32_tflops=1)
    properties("bottlenecks", [
        ("products of narrow heads are bound by memory", _bound("memory", (4096, 64, 2, H200), (32768, 64, 2, A100))),
        ("products of wide heads are bound by compute",
         _bound("compute", *((16384, 256, 2, gpu) for gpu in (A100, H200)))),
        ("short sequences move q, k and v as well", _bound("memory", (64, 256, 2, H200), (128, 256, 2, A100))),
        ("other sizes of a number", _bound("memory", (16384, 256, 4, H200))),
        ("a softmax does not run on tensor cores",
         lambda fn: _bound("memory", (4096, 64, 2, H200), passes=["softmax"])(fn)
         or _bound("compute", (4096, 64, 2, slow), passes=["softmax"])(fn))], fn)


def _bound(want, *cases, passes=("scores", "output")):
    def problem(fn, N, D, itemsize, gpu):
        got = fn(N, D, itemsize, gpu)
        return next((f"N = {N}, D = {D}, {itemsize} bytes a number, {gpu.tensor_tflops} and {gpu.fp32_tflops} TFLOP/s, "
                     f"{gpu.gb_per_s} GB/s: {name} is bound by {got[name]!r}, expected {want!r}"
                     for name in passes if got[name] != want), "")
    return over("")(problem, *cases)


# ---------------------------------------------------------------- tiles under a causal mask

def causal_tiles(fn):
    """fn(N, BLOCK_M, BLOCK_N) returns how many tiles of a causal [N, N] matrix are full, partial and skipped."""
    counted = functools.partial(equal, "causal_tiles", _tiles)
    properties("causal_tiles", [
        ("square tiles", counted((384, 64, 64), (256, 32, 32))),
        ("tall tiles", counted((384, 128, 64), (256, 128, 16))),
        ("wide tiles", counted((384, 64, 128), (256, 16, 128))),
        ("a length that is no multiple of the tile", counted((100, 32, 32), (65, 64, 64), (97, 16, 48), (33, 64, 32))),
        ("one tile for everything", counted((64, 64, 64))),
        ("tiles of a single score", counted((5, 1, 1)))], fn)


def _tiles(N, BLOCK_M, BLOCK_N):
    seen, counts = reference.visible(N, N, True), {"full": 0, "partial": 0, "skipped": 0}
    for i in range(0, N, BLOCK_M):
        for j in range(0, N, BLOCK_N):
            tile = seen[i:i + BLOCK_M, j:j + BLOCK_N]
            counts["full" if np.all(tile) else "partial" if np.any(tile) else "skipped"] += 1
    return tuple(counts.values())


# ---------------------------------------------------------------- what fits into shared memory

def shared_bytes(fn):
    """fn(BLOCK_M, BLOCK_N, D, num_stages, element_bytes) returns the bytes of a tile of q and stages of k and v."""
    sizes = functools.partial(equal, "shared_bytes", _shared_bytes)
    properties("shared_bytes", [
        ("one tile each of q, k and v", sizes((64, 64, 64, 1, 2), (128, 128, 64, 1, 2))),
        ("more stages hold more of k and v, and one q", sizes((64, 64, 64, 2, 2), (64, 64, 64, 3, 2))),
        ("blocks of different size", sizes((128, 64, 64, 1, 2), (64, 128, 64, 1, 2))),
        ("other sizes of a number", sizes((64, 64, 64, 1, 1), (64, 64, 64, 1, 4))),
        ("other head dimensions", sizes((64, 64, 128, 1, 2), (64, 64, 256, 1, 2)))], fn)


def stages_that_fit(fn):
    """fn(limit, BLOCK_M, BLOCK_N, D, element_bytes) returns the largest num_stages that fits into limit bytes, or 0."""
    stages = functools.partial(equal, "stages_that_fit", _stages)
    properties("stages_that_fit", [
        ("as many as the limit has room for", stages((100_000, 128, 64, 64, 2), (232_448, 128, 128, 64, 2))),
        ("numbers of one byte", stages((100_000, 128, 64, 64, 1))),
        ("stages that fit to the byte", stages((81_920, 128, 64, 64, 2), (81_919, 128, 64, 64, 2))),
        ("no room for a single stage", stages((32_767, 128, 64, 64, 2), (20_000, 128, 64, 64, 2))),
        ("no room for q", stages((10_000, 128, 16, 64, 2), (0, 128, 64, 64, 2)))], fn)


def _stages(limit, BLOCK_M, BLOCK_N, D, size):
    return max([n for n in range(1, 100) if _shared_bytes(BLOCK_M, BLOCK_N, D, n, size) <= limit], default=0)


def _shared_bytes(BLOCK_M, BLOCK_N, D, num_stages, element_bytes):
    q, k, v = BLOCK_M * D, num_stages * BLOCK_N * D, num_stages * BLOCK_N * D
    return element_bytes * (q + k + v)
