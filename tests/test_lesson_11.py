"""What lesson 11 says of its measurements is what was recorded."""
import pytest

import books
from helpers import bench

PROSE = " ".join(books.prose("fp8").split())
CASES = [(D, is_causal) for D in (64, 128) for is_causal in (False, True)]
LADDER = {(r["name"], r["D"], r["is_causal"]): r["tflops"] for r in bench.recorded("ladder")["rows"]}
SPEEDS = {(r["name"], r["N"], r["D"], r["is_causal"]): r["tflops"] for r in bench.recorded("flash_attention_v3")["rows"]
          if "tflops" in r}
STEPS = {"v2, pointers": "v2", "descriptors, same tiles": "descriptors", "1 stage": "1 stage", "2 stages": "2 stages",
         "3 stages": "3 stages", "4 stages": "4 stages", "other tiles": "tiles", "those tiles with pointers": "tiles, pointers",
         "tuned": "tuned", "warp specialization": "specialized", "FP8, the kernel alone": "fp8 kernel"}


@pytest.mark.parametrize("step", STEPS)
def test_the_table_of_the_ladder(step):
    cells = PROSE.split(f"| {step} |")[-1].split("|")         # the prediction, four rates, a remark
    assert [int(cell) for cell in cells[1:5]] == [round(LADDER[STEPS[step], *case]) for case in CASES]


def ratios(ours, peer, lengths, Ds):
    return [SPEEDS[ours, N, D, is_causal] / SPEEDS[peer, N, D, is_causal] for N in lengths for D in Ds for is_causal in (False, True)]


def span(*sizes):
    return books.span(ratios(*sizes), 2)


LONG = (4096, 8192, 16384)


def test_the_aims_are_met():
    assert min(ratios("v3", "SDPA flash", LONG, [64, 128])) >= 1.4 and min(ratios("v3", "SDPA cudnn", LONG, [64, 128])) >= 0.95
    assert min(ratios("v3", "SDPA flash", [512, 1024, 2048], [64, 128])) >= 1
    assert min(ratios("v3 fp8", "v3", [8192, 16384], [128])) >= 1.2


@pytest.mark.parametrize("words", [
    f"v3 has {span('v3', 'SDPA flash', LONG, [128])} times the speed of PyTorch's FlashAttention-2 for `D = 128`, and "
    f"{span('v3', 'SDPA flash', LONG, [64])} times for `D = 64`",
    f"It has {span('v3', 'SDPA cudnn', LONG, [128])} of cuDNN's speed for `D = 128` and "
    f"{span('v3', 'SDPA cudnn', LONG, [64])} for `D = 64`",
    f"{sum(r >= 1 for r in ratios('v3', 'SDPA cudnn', LONG, [64, 128]))} of 12 points are there",
    f"at `N = 512` to 2048 v3 has {span('v3', 'SDPA cudnn', [512, 1024, 2048], [64, 128])} of its speed, and at `N = 512` "
    f"{span('v3', 'SDPA flash', [512], [64, 128])} times that of FlashAttention-2",
    f"in this record it has {SPEEDS['v3', 512, 128, True] / SPEEDS['SDPA flash', 512, 128, True]:.2f}.",
    f"is {span('v3 fp8', 'v3', [8192, 16384], [128])} times our float16 for `D = 128`",
    f"at `N = 512` FP8 has {span('v3 fp8', 'v3', [512], [64, 128])} of the speed",
    f"ran at {SPEEDS['v3', 16384, 128, False]:.0f} here"])
def test_prose_and_records_agree(words):
    assert words in PROSE
