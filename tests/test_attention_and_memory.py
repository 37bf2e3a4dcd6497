"""Attention and memory: the formulas equal a count, the table of GPUs and the drawings hold true."""
import sys

import numpy as np
import pytest

from helpers import ROOT, lessons, reference
from helpers.records.gpus import GPUS

sys.path.insert(0, str(ROOT / "figures"))
import draw_memory
import draw_tiles

lesson = lessons.attention_and_memory


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
    return {"scores": (scores, itemsize * (q.size + k.size + s.size)), "softmax": (softmax, itemsize * 2 * s.size),
            "output": (output, itemsize * (s.size + v.size + q.size))}


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 4), (9, 1, 4), (5, 7, 3), (40, 33, 17)])
@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_formulas_equal_the_count(shape, itemsize):
    assert lesson.standard_passes(*shape, itemsize) == counted_passes(*shape, itemsize)


def test_traffic_is_that_of_standard_attention():
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
