"""The checks of lesson 05, part of helpers/check.py: sizes, intensities and tiles, each against a count of its own."""
import numpy as np

from helpers import reference
from helpers.gpus import GPUS
from helpers.check.core import properties


def _equal(name, cases, want):
    """A case that calls fn with each tuple of arguments and compares the result with want(*arguments)."""
    def case(fn):
        for arguments in cases:
            got, expected = fn(*arguments), want(*arguments)
            if got != expected:
                return f"{name}{arguments} is {got}, expected {expected}"
        return ""
    return case


# ---------------------------------------------------------------- the longest sequence

def _longest(memory, heads, itemsize):
    low, high = 0, 1 << 80                               # by bisection, in whole numbers
    while low < high:
        N = (low + high + 1) // 2
        low, high = (N, high) if 2 * heads * N * N * itemsize <= memory else (low, N - 1)
    return low


def _lengths(*cases):
    return _equal("longest", cases, _longest)


LONGEST = [("s and p of one head", _lengths((80 * 10**9, 1, 2), (24 * 10**9, 1, 2), (1000, 1, 2))),
           ("each head has its own", _lengths((141 * 10**9, 32, 2), (10**6, 3, 2))),
           ("other sizes of a number", _lengths((10**9, 1, 1), (10**9, 1, 4))),
           ("a length that fits to the byte", _lengths(*((4 * N * N - short, 1, 2) for N in (7, 4096) for short in (0, 1)))),
           ("memory too large for a float", _lengths((4 * (2**60 + 1)**2, 1, 2), (4 * (2**60 + 1)**2 - 1, 1, 2))),
           ("no room for a single score", _lengths((0, 1, 2), (3, 1, 2)))]


def longest(fn):
    """fn(memory, heads, itemsize) returns the largest N whose two [N, N] matrices of every head fit into memory bytes."""
    properties("longest", LONGEST, fn)


# ---------------------------------------------------------------- arithmetic intensity

# Shapes in which one matrix outweighs the others by 1e5, so that forgetting one of the others does not show
ONLY_A, ONLY_B, ONLY_C = (10**5, 1, 10**5), (1, 10**5, 10**5), (10**5, 10**5, 1)


def _near(got, want):
    return abs(got - want) <= 1e-3 * want


def _intensity(M, N, K):
    return M * N * K / (M * K + K * N + M * N)           # of numbers of 2 bytes


def _wrong(shape, got):
    return f"the intensity for M, N, K = {shape} is {got:.6g}, expected {_intensity(*shape):.6g}"


def _operations(fn):
    got = fn(*ONLY_A)
    return "" if _near(got, _intensity(*ONLY_A)) else _wrong(ONLY_A, got)


def _counts(shape):
    """The matrix that outweighs the others is counted; compared with ONLY_A, so that it alone decides."""
    def case(fn):
        got = fn(*shape)
        return "" if _near(got / fn(*ONLY_A), 1.0) else _wrong(shape, got)
    return case


def _bytes(fn):
    two, four = fn(*ONLY_A, 2), fn(*ONLY_A, 4)
    if _near(four / two, 0.5):
        return ""
    return f"the intensity for M, N, K = {ONLY_A} is {two:.6g} with 2 bytes a number and {four:.6g} with 4, expected half"


MATMUL_INTENSITY = [("a multiply-add is two operations", _operations), ("the second matrix is read", _counts(ONLY_B)),
                    ("the result is written", _counts(ONLY_C)), ("bytes, not numbers", _bytes)]


def matmul_intensity(fn):
    """fn(M, N, K, itemsize=2) returns the operations a byte of [M, K] x [K, N], each matrix crossing memory once."""
    properties("matmul_intensity", MATMUL_INTENSITY, fn)


# ---------------------------------------------------------------- memory or compute

H200, A100 = GPUS["H200 SXM"], GPUS["A100 SXM 80GB"]


def _bound(want, *cases, passes=("scores", "output")):
    def case(fn):
        for N, D, itemsize, gpu in cases:
            got = fn(N, D, itemsize, gpu)
            for name in passes:
                if got[name] != want:
                    return (f"N = {N}, D = {D}, {itemsize} bytes a number, {gpu.tensor_tflops} and {gpu.fp32_tflops} TFLOP/s, "
                            f"{gpu.gb_per_s} GB/s: {name} is bound by {got[name]!r}, expected {want!r}")
        return ""
    return case


def _softmax(fn):
    plain, slow = _bound("memory", (4096, 64, 2, H200), passes=["softmax"]), H200._replace(fp32_tflops=1)
    return plain(fn) or _bound("compute", (4096, 64, 2, slow), passes=["softmax"])(fn)


BOTTLENECKS = [("products of narrow heads are bound by memory", _bound("memory", (4096, 64, 2, H200), (32768, 64, 2, A100))),
               ("products of wide heads are bound by compute", _bound("compute", (16384, 256, 2, A100), (16384, 256, 2, H200))),
               ("short sequences move q, k and v as well", _bound("memory", (64, 256, 2, H200), (128, 256, 2, A100))),
               ("other sizes of a number", _bound("memory", (16384, 256, 4, H200))),
               ("a softmax does not run on tensor cores", _softmax)]


def bottlenecks(fn):
    """fn(N, D, itemsize, gpu) returns {"scores", "softmax", "output": "memory" or "compute"}, gpu from helpers.gpus."""
    properties("bottlenecks", BOTTLENECKS, fn)


# ---------------------------------------------------------------- tiles under a causal mask

def _tiles(N, BLOCK_M, BLOCK_N):
    seen, counts = reference.visible(N, N, True), {"full": 0, "partial": 0, "skipped": 0}
    for i in range(0, N, BLOCK_M):
        for j in range(0, N, BLOCK_N):
            tile = seen[i:i + BLOCK_M, j:j + BLOCK_N]
            counts["full" if np.all(tile) else "partial" if np.any(tile) else "skipped"] += 1
    return tuple(counts.values())


def _counted(*cases):
    return _equal("causal_tiles", cases, _tiles)


CAUSAL_TILES = [("square tiles", _counted((384, 64, 64), (256, 32, 32))), ("tall tiles", _counted((384, 128, 64), (256, 128, 16))),
                ("wide tiles", _counted((384, 64, 128), (256, 16, 128))),
                ("a length that is no multiple of the tile", _counted((100, 32, 32), (65, 64, 64), (97, 16, 48), (33, 64, 32))),
                ("one tile for everything", _counted((64, 64, 64))), ("tiles of a single score", _counted((5, 1, 1)))]


def causal_tiles(fn):
    """fn(N, BLOCK_M, BLOCK_N) returns how many tiles of a causal [N, N] matrix are full, partial and skipped."""
    properties("causal_tiles", CAUSAL_TILES, fn)
