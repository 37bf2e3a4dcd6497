"""v4's kernels, launched again and again on a Hopper GPU: does every launch give the bits of the first? Not part of `make test`.

    python tests/endurance.py 20                 for so many seconds, in six processes side by side
    compute-sanitizer --tool memcheck python tests/endurance.py
    compute-sanitizer --tool synccheck --num-cuda-barriers 65536 python tests/endurance.py
                                                 each kernel once, for a tool that looks on

New memory is full of NaN. o, dk and dv must have the same bits each time, dq, whose parts come in any order, the same
numbers within 2^-10 of the largest.
"""
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from attention import inputs, nan_in_new_memory          # (before torch: helpers.device says why)

import torch

from helpers.lessons import backward_hopper, warp_specialization

PROCESSES = 6
CASES = [(D, is_causal) for D in (64, 128, 256) for is_causal in (False, True)]


def call(D, is_causal, q, k, v, do):
    """o, dk, dv, and dq: one launch of the forward kernel and one of the backward kernel."""
    tiles = warp_specialization.tiles_ws(D, 2**14, 2**14, is_causal, False)
    o, lse = warp_specialization.launch_ws(q, k, v, is_causal, D**-0.5, tiles=tiles)
    dq, dk, dv = backward_hopper.launch_backward(q, k, v, o, lse, do, torch.zeros_like(lse), is_causal, D**-0.5)
    return o, dk, dv, dq


def endure(seconds):
    """Launch until the time is over; print how often, and how many results were off."""
    calls = [(D, is_causal, *inputs(2, 4, 2, 300, 260, D, torch.float16, more=1)) for D, is_causal in CASES]
    first, end, launches, wrong = [call(*arguments) for arguments in calls], time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        for arguments, (*exact, near) in zip(calls, first):
            with nan_in_new_memory():
                *same, dq = call(*arguments)
            off = torch.stack([(x != y).any() for x, y in zip(same, exact)]).any()
            off |= ~((dq - near).nan_to_num(9).abs().max() <= 2**-10 * near.nan_to_num(0, 0, 0).abs().max())
            launches, wrong = launches + 2, wrong + off.int()
        torch.cuda.synchronize()
    print(f"{launches} launches, {int(wrong)} results off", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        for D, is_causal in CASES:
            call(D, is_causal, *inputs(1, 2, 1, 150, 140, D, torch.float16, more=1))
        torch.cuda.synchronize()
    elif len(sys.argv) == 2:
        children = [subprocess.Popen([sys.executable, __file__, sys.argv[1], "child"]) for _ in range(PROCESSES)]
        sys.exit(max(child.wait() for child in children))
    else:
        endure(float(sys.argv[1]))
