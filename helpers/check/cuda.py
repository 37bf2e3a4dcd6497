"""Checks of kernels in CUDA C++: one function per operation. Each takes the text of a kernel, supplies the main
program, and prints a line per property. It never raises: what a compiler or a run finds wrong is a failed property.
Each docstring begins with the kernel that is wanted.
"""
import numpy as np

from helpers.check.cuda_core import cuda_properties

# ---------------------------------------------------------------- what a kernel moved, as cuda.traffic counts it


def _coalesced(kind):
    def count(moved):
        sectors, asked = moved[f"{kind}_sectors"], moved[f"{kind}_bytes"]
        enough = -(-asked // 32)
        return f"{asked} bytes touch {sectors} sectors, and would fit into {enough}" if sectors > enough else ""
    return f"global {kind}s are coalesced", count


def _bank_conflicts(moved):
    passes, requests = (sum(moved[f"shared_{kind}_{unit}"] for kind in ("load", "store"))
                        for unit in ("wavefronts", "requests"))
    return f"{requests} requests to shared memory take {passes} passes" if passes > requests else ""


def _sectors(moved):
    return (f"its loads touch {moved['load_sectors']} sectors and its stores {moved['store_sectors']}, where "
            f"{moved['load_bytes'] // 32} and {moved['store_bytes'] // 32} would do")


def _loads_at_most(bound):
    return lambda moved: f"{moved['loads']} loads, where {bound} would do" if moved["loads"] > bound else ""


# ---------------------------------------------------------------- the operations

VECTOR = {"every value that was written is right": [(1024,), (4096,)],
          "written values are right at a length that is no multiple of the block": [(1000,), (31,), (4097,)],
          "a single element": [(1,)]}
MATRIX = {"every value that was written is right": [(64, 64)],
          "rows and columns that fill no block": [(33, 40), (40, 33), (70, 5)], "a single element": [(1, 1)]}
GRID = "dim3(unsigned(m[1] + 31) / 32, unsigned(m[0] + 31) / 32)"


def _random(*shape):
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


def _sum(n):
    a, b = _random(2, n)
    return a, b, a + b


def _scaled_sum(n):
    x, y = _random(2, n)
    return x, y, 2.5 * x + y


def _transposed(M, N):
    a = _random(M, N)
    return a, a.T


def _product(M, N, K):
    a, b = _random(M, K), _random(K, N)
    return a, b, a.astype(np.float64) @ b


def vector_add(source):
    """vec_add(const float* a, const float* b, float* c, int n): c = a + b, a thread for an element, blocks of 256."""
    cuda_properties("vec_add", source, "vec_add<<<unsigned(m[0] + 255) / 256, 256>>>(p[0], p[1], p[2], m[0]);",
                    _sum, VECTOR)


def scale_add(source):
    """scale_add(float a, const float* x, const float* y, float* z, int n): z = a x + y, blocks of 256 threads."""
    launch = "scale_add<<<unsigned(m[0] + 255) / 256, 256>>>(2.5f, p[0], p[1], p[2], m[0]);"
    cuda_properties("scale_add", source, launch, _scaled_sum, VECTOR)


def stride_add(source):
    """stride_add(const float* a, const float* b, float* c, int n): c = a + b on any grid, blocks of 64 threads."""
    sizes = {"every value that was written is right": [(1024, 16)],
             "fewer threads than elements": [(1024, 4), (1000, 3), (4097, 1)],
             "more threads than elements": [(100, 16), (1, 2)]}
    cuda_properties("stride_add", source, "stride_add<<<unsigned(m[1]), 64>>>(p[0], p[1], p[2], m[0]);",
                    lambda n, blocks: _sum(n), sizes, counts=[_coalesced("load"), _coalesced("store")],
                    counted=(1024, 4))


def transpose(source, tiled=False):
    """transpose(const float* a, float* b, int M, int N): b [N, M] is a [M, N] transposed, blocks of 32 x 32 threads.

    tiled: it goes through shared memory, so that loads and stores are coalesced, without bank conflicts."""
    launch = f"transpose<<<{GRID}, dim3(32, 32)>>>(p[0], p[1], m[0], m[1]);"
    counts = [_coalesced("load"), _coalesced("store"), ("no bank conflicts", _bank_conflicts)]
    cuda_properties("transpose", source, launch, _transposed, MATRIX, tiled, counts if tiled else [], (64, 64),
                    tell=None if tiled else _sectors)


def matmul(source):
    """matmul(const float* a, const float* b, float* c, int M, int N, int K): c = a b through tiles of 32 x 32.

    a is [M, K], b [K, N], c [M, N], all row by row; a block of 32 x 32 threads for each tile of c."""
    launch = f"matmul<<<{GRID}, dim3(32, 32)>>>(p[0], p[1], p[2], m[0], m[1], m[2]);"
    sizes = {"every value that was written is right": [(64, 64, 64)],
             "sizes that are no multiple of the tile": [(50, 40, 70), (33, 65, 31)], "a single element": [(1, 1, 1)]}
    counts = [("at most 2 N^3 / 32 loads from global memory", _loads_at_most(2 * 64**3 // 32)), _coalesced("load"),
              _coalesced("store"), ("no bank conflicts", _bank_conflicts)]
    cuda_properties("matmul", source, launch, _product, sizes, True, counts, (64, 64, 64))
