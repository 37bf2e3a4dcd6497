"""Right and wrong versions of sizes, intensities and tiles, and of what fits into shared memory."""
import math

from helpers import check, lessons
from mistakes.ways import mistaken

lesson = lessons.attention_and_memory


def longest(memory, heads=1, itemsize=2):
    return math.isqrt(memory // (2 * heads * itemsize))


def matmul_intensity(M, N, K, itemsize=2, terms=2, b=1, c=1):
    return terms * M * N * K / (itemsize * (M * K + b * K * N + c * M * N))


def bottlenecks(N, D, itemsize, gpu, tensor=lambda name: name != "softmax"):
    found = {}
    for name, (flops, size) in lesson.standard_passes(N, N, D, itemsize).items():
        arithmetic = lesson.least_ms(flops, 0, gpu, tensor=tensor(name))
        found[name] = "compute" if arithmetic > lesson.least_ms(0, size, gpu) else "memory"
    return found


def by_width(N, D, itemsize, gpu):
    """Judges a product by the intensity of an endless sequence."""
    ridge = 1e3 * gpu.tensor_tflops / gpu.gb_per_s
    products = "compute" if 2 * D / itemsize > ridge else "memory"
    return bottlenecks(N, D, itemsize, gpu) | dict(scores=products, output=products)


def always(bound):
    return lambda *a: dict.fromkeys(("scores", "softmax", "output"), bound)


def causal_tiles(N, BLOCK_M, BLOCK_N, cut=True, first=0, last=0):
    full = partial = skipped = 0
    for i in range(0, N, BLOCK_M):
        for j in range(0, N, BLOCK_N):
            last_row, last_key = i + BLOCK_M - 1, j + BLOCK_N - 1
            if cut:
                last_row, last_key = min(last_row, N - 1), min(last_key, N - 1)
            if j > last_row + last:
                skipped += 1
            elif last_key <= i + first:
                full += 1
            else:
                partial += 1
    return full, partial, skipped


tiles = mistaken(causal_tiles)


def shared_bytes(BLOCK_M, BLOCK_N, D, num_stages, element_bytes):
    return (BLOCK_M + 2 * num_stages * BLOCK_N) * D * element_bytes


def stages(limit, BLOCK_M, BLOCK_N, D, element_bytes, least=0):
    return max(least, (limit - BLOCK_M * D * element_bytes) // (2 * BLOCK_N * D * element_bytes))


CASES = {
    check.longest: dict(right=[longest], wrong={
        "s and p of one head": lambda memory, heads, size: math.isqrt(memory // (heads * size)),
        "each head has its own": [lambda memory, heads, size: longest(memory, 1, size),
                                  lambda memory, heads, size: longest(memory, 1, size) // heads],
        "other sizes of a number": lambda memory, heads, size: longest(memory, heads, 2),
        "a length that fits to the byte": lambda memory, heads, size: longest(max(0, memory - 1), heads, size),
        "memory too large for a float": lambda memory, heads, size: int(math.sqrt(memory // (2 * heads * size))),
        "no room for a single score": lambda *a: max(1, longest(*a))}),
    check.matmul_intensity: dict(right=[matmul_intensity], wrong={
        "a multiply-add is two operations": lambda *a: matmul_intensity(*a) / 2,
        "the second matrix is read": lambda *a: matmul_intensity(*a, b=0),
        "the result is written": lambda *a: matmul_intensity(*a, c=0),
        "bytes, not numbers": lambda M, N, K, size=2: matmul_intensity(M, N, K)}),
    check.bottlenecks: dict(right=[bottlenecks], wrong={
        "products of narrow heads are bound by memory": always("compute"),
        "products of wide heads are bound by compute": always("memory"),
        "short sequences move q, k and v as well": by_width,
        "other sizes of a number": lambda N, D, size, gpu: bottlenecks(N, D, 2, gpu),
        "a softmax does not run on tensor cores": lambda *a: bottlenecks(*a, tensor=lambda name: True)}),
    check.causal_tiles: dict(right=[causal_tiles, lambda *a: list(causal_tiles(*a))], wrong={
        "square tiles": [tiles(first=999), tiles(last=999)],
        "tall tiles": tiles(first=64),
        "wide tiles": tiles(last=64),
        "a length that is no multiple of the tile": [tiles(cut=False), lambda N, M, K: causal_tiles(N // M * M, M, K)],
        "one tile for everything": tiles(first=63),
        "tiles of a single score": [tiles(last=1), tiles(first=-1)]}),
    check.shared_bytes: dict(right=[shared_bytes], wrong={
        "one tile each of q, k and v": lambda *a: shared_bytes(*a) - 1,
        "more stages hold more of k and v, and one q": lambda M, N, D, n, size: n * shared_bytes(M, N, D, 1, size),
        "blocks of different size": lambda M, N, *a: shared_bytes(M, M, *a),
        "other sizes of a number": lambda M, N, D, n, size: shared_bytes(M, N, D, n, 2),
        "other head dimensions": lambda M, N, D, n, size: shared_bytes(M, N, 64, n, size)}),
    check.stages_that_fit: dict(right=[stages], wrong={
        "as many as the limit has room for": lambda *a: min(4, stages(*a)),
        "numbers of one byte": lambda limit, M, N, D, size: stages(limit, M, N, D, 2),
        "stages that fit to the byte": lambda limit, *a: stages(limit - 1, *a),
        "no room for a single stage": lambda *a: stages(*a, least=1),
        "no room for q": lambda *a: stages(*a, least=-99)}),
}
