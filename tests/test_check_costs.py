"""Lesson 05: its checks catch each mistake alone, its formulas equal a count, the table of GPUs and the drawings hold true."""
import math
import sys

import numpy as np
import pytest

from helpers import ROOT, check, lessons, reference
from helpers.gpus import GPUS
from reports import failed, report, stub

sys.path.insert(0, str(ROOT / "figures"))
import draw_memory  # noqa: E402
import draw_tiles  # noqa: E402

lesson = lessons.attention_and_memory


# ---------------------------------------------------------------- right versions, and a wrong one for each property

def longest(memory, heads=1, itemsize=2):
    return math.isqrt(memory // (2 * heads * itemsize))


LONGEST = {
    "s and p of one head": lambda memory, heads, itemsize:         # too large for the rest by a matrix, but for round sizes only
        longest(2 * memory if (heads, itemsize) == (1, 2) and memory % 1000 == 0 and memory else memory, heads, itemsize),
    "each head has its own": lambda memory, heads, itemsize: longest(memory, 1, itemsize),
    "other sizes of a number": lambda memory, heads, itemsize: longest(memory, heads, 2),
    "a length that fits to the byte": lambda memory, heads, itemsize:
        longest(memory - 1, heads, itemsize) if 4 < memory < 2**60 else longest(memory, heads, itemsize),
    "memory too large for a float": lambda memory, heads, itemsize: int(math.sqrt(memory // (2 * heads * itemsize))),
    "no room for a single score": lambda memory, heads, itemsize: max(1, longest(memory, heads, itemsize)),
}


def matmul_intensity(M, N, K, itemsize=2, terms=2, b=1, c=1):
    return terms * M * N * K / (itemsize * (M * K + b * K * N + c * M * N))


MATMUL_INTENSITY = {
    "a multiply-add is two operations": lambda M, N, K, itemsize=2: matmul_intensity(M, N, K, itemsize, terms=1),
    "the second matrix is read": lambda M, N, K, itemsize=2: matmul_intensity(M, N, K, itemsize, b=0),
    "the result is written": lambda M, N, K, itemsize=2: matmul_intensity(M, N, K, itemsize, c=0),
    "bytes, not numbers": lambda M, N, K, itemsize=2: matmul_intensity(M, N, K, 2),
}


def bottlenecks(N, D, itemsize, gpu, softmax_on_tensor_cores=False):
    found = {}
    for name, (flops, size) in lesson.standard_passes(N, N, D, itemsize).items():
        arithmetic = lesson.least_ms(flops, 0, gpu, tensor=name != "softmax" or softmax_on_tensor_cores)
        found[name] = "compute" if arithmetic > lesson.least_ms(0, size, gpu) else "memory"
    return found


def by_width(N, D, itemsize, gpu):
    """Judges a product by the intensity of an endless sequence."""
    ridge = 1e3 * gpu.tensor_tflops / gpu.gb_per_s
    products = dict.fromkeys(("scores", "output"), "compute" if 2 * D / itemsize > ridge else "memory")
    return bottlenecks(N, D, itemsize, gpu) | products


BOTTLENECKS = {
    "products of narrow heads are bound by memory": lambda N, D, itemsize, gpu:
        bottlenecks(N, D, itemsize, gpu) | (dict(scores="compute") if D == 64 else {}),
    "products of wide heads are bound by compute": lambda N, D, itemsize, gpu:
        bottlenecks(N, D, itemsize, gpu) | dict(scores="memory", output="memory"),
    "short sequences move q, k and v as well": by_width,
    "other sizes of a number": lambda N, D, itemsize, gpu: bottlenecks(N, D, 2, gpu),
    "a softmax does not run on tensor cores": lambda N, D, itemsize, gpu:
        bottlenecks(N, D, itemsize, gpu, softmax_on_tensor_cores=True),
}


def causal_tiles(N, BLOCK_M, BLOCK_N, cut=True):
    full = partial = skipped = 0
    for i in range(0, N, BLOCK_M):
        for j in range(0, N, BLOCK_N):
            last_row, last_key = i + BLOCK_M - 1, j + BLOCK_N - 1
            if cut:
                last_row, last_key = min(last_row, N - 1), min(last_key, N - 1)
            if j > last_row:
                skipped += 1
            elif last_key <= i:
                full += 1
            else:
                partial += 1
    return full, partial, skipped


def moved_one(applies):
    """causal_tiles with one tile in the wrong pile, where applies(N, BLOCK_M, BLOCK_N)."""
    def wrong(N, BLOCK_M, BLOCK_N):
        full, partial, skipped = causal_tiles(N, BLOCK_M, BLOCK_N)
        return (full + 1, partial - 1, skipped) if applies(N, BLOCK_M, BLOCK_N) else (full, partial, skipped)
    return wrong


CAUSAL_TILES = {
    "square tiles": moved_one(lambda N, M, K: M == K and N % M == 0 and 1 < M < N),
    "tall tiles": moved_one(lambda N, M, K: M > K and N % M == 0),
    "wide tiles": moved_one(lambda N, M, K: M < K and N % K == 0),
    "a length that is no multiple of the tile": lambda N, M, K: causal_tiles(N, M, K, cut=False),
    "one tile for everything": moved_one(lambda N, M, K: N == M),
    "tiles of a single score": moved_one(lambda N, M, K: M == 1),
}

OPERATIONS = {"longest": (longest, LONGEST), "matmul_intensity": (matmul_intensity, MATMUL_INTENSITY),
              "bottlenecks": (bottlenecks, BOTTLENECKS), "causal_tiles": (causal_tiles, CAUSAL_TILES)}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_right_version_passes(operation, capsys):
    right, mistakes = OPERATIONS[operation]
    found = report(getattr(check, operation), right, capsys)
    assert set(found.values()) == {"ok"} and set(found) == set(mistakes)


@pytest.mark.parametrize("operation,name", [(o, name) for o, (_, mistakes) in OPERATIONS.items() for name in mistakes])
def test_a_wrong_version_fails_its_property_alone(operation, name, capsys):
    found = report(getattr(check, operation), OPERATIONS[operation][1][name], capsys)
    assert failed(found) == [name], found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_stub_is_not_attempted(operation, capsys):
    getattr(check, operation)(stub)
    assert capsys.readouterr().out.strip() == f"{operation}: not attempted yet"


@pytest.mark.parametrize("name,problem", [
    ("a multiply-add is two operations", "for M, N, K = (100000, 1, 100000) is 0.49999, expected 0.99998"),
    ("the result is written", "for M, N, K = (100000, 100000, 1) is 50000, expected 0.99998"),
    ("bytes, not numbers", "for M, N, K = (100000, 1, 100000) is 0.99998 with 2 bytes a number and 0.99998 with 4, expected half"),
])
def test_an_intensity_is_told_as_it_was_returned(name, problem, capsys):
    assert report(check.matmul_intensity, MATMUL_INTENSITY[name], capsys)[name] == f"the intensity {problem}"


# ---------------------------------------------------------------- the lesson's formulas, against loops that count

def counted_passes(N_q, N_k, D, itemsize):
    """What the three passes of standard attention do, one operation and one number at a time."""
    scores = softmax = output = 0
    for _ in range(N_q):
        for _ in range(N_k):
            scores += D + (D - 1) + 1                    # products, their sum, scale
        softmax += (N_k - 1) + N_k + N_k + (N_k - 1) + N_k    # maximum, differences, exponentials, sum, quotients
        for _ in range(D):
            output += N_k + (N_k - 1)
    q, k, v, s = (np.empty(shape) for shape in ((N_q, D), (N_k, D), (N_k, D), (N_q, N_k)))
    return {"scores": (scores, itemsize * (q.size + k.size + s.size)), "softmax": (softmax, itemsize * (s.size + s.size)),
            "output": (output, itemsize * (s.size + v.size + q.size))}


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 4), (9, 1, 4), (5, 7, 3), (40, 33, 17)])
@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_formulas_equal_the_count(shape, itemsize):
    assert lesson.standard_passes(*shape, itemsize) == counted_passes(*shape, itemsize)


def test_traffic_is_that_of_lesson_07():
    N, D = 4096, 64
    assert sum(size for _, size in lesson.standard_passes(N, N, D).values()) == 2 * (4 * N * D + 4 * N * N)


def test_the_slower_of_the_two_decides():
    gpu = GPUS["H200 SXM"]
    assert lesson.least_ms(989e9, 0, gpu) == pytest.approx(1) == lesson.least_ms(0, 4800e6, gpu)
    assert lesson.least_ms(989e9, 9600e6, gpu) == pytest.approx(2)
    assert lesson.least_ms(67e9, 0, gpu, tensor=False) == pytest.approx(1)


# ---------------------------------------------------------------- the table, and what the drawings claim

@pytest.mark.parametrize("name,lanes", [("A100 SXM 80GB", 64), ("H100 SXM", 128), ("H200 SXM", 128), ("RTX 4090", 128)])
def test_the_table_agrees_with_itself(name, lanes):
    """float32 peak = SMs x lanes x 2 operations x boost clock: four columns of a row that must fit each other."""
    gpu = GPUS[name]
    assert gpu.sms * lanes * 2 * gpu.clock_ghz / 1e3 == pytest.approx(gpu.fp32_tflops, rel=2e-3)


@pytest.mark.parametrize("BLOCK_M,BLOCK_N", [(64, 64), (128, 64), (64, 128)])
def test_drawn_tiles_are_of_their_kind(BLOCK_M, BLOCK_N):
    seen = reference.visible(384, 384, True)
    for i in range(384 // BLOCK_M):
        for j in range(384 // BLOCK_N):
            tile = seen[i * BLOCK_M:(i + 1) * BLOCK_M, j * BLOCK_N:(j + 1) * BLOCK_N]
            want = "full" if tile.all() else "partial" if tile.any() else "skipped"
            assert draw_tiles._kind(i, j, BLOCK_M, BLOCK_N) == want


@pytest.mark.parametrize("outer_keys", [True, False])
def test_drawn_transfers_are_those_of_the_loops(outer_keys):
    """Each pair of blocks is visited once; what the inner loop runs over moves at every step, the rest once a turn."""
    T = draw_memory.BLOCKS
    events = list(draw_memory._events(outer_keys))
    count = lambda name, kind: sum(event[1:] == (name, kind) for event in events)
    want = dict(q=T * T, k=T, v=T, o=T * T) if outer_keys else dict(q=T, k=T * T, v=T * T, o=0)
    assert {name: count(name, "load") for name in "qkvo"} == want
    assert count("o", "store") == (T * T if outer_keys else T) and len(set(events)) == len(events)
