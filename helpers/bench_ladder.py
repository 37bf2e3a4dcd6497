"""The suites of lesson 11's steps and of a warm card, part of helpers/bench.py."""
import functools
import statistics
import subprocess
import time

from helpers import lessons, reference
from helpers.bench_attention import BACKENDS, HIDDEN, TOKENS, fp8_kernel, random_inputs, rows, sdpa
from helpers.device import DEVICE
from helpers.measure import call_times

import torch

SHARED = 226 * 1024                                      # bytes for tiles; barriers take some of the 227 KB


def ladder():
    """Lesson 11's steps, one at a time: one sequence of 16384 tokens, hidden size 2048, forward."""
    v2, lesson = lessons.causal_and_multihead, lessons.fp8
    for D in (64, 128):
        q, k, v = random_inputs(1, HIDDEN // D, TOKENS, D)
        for is_causal in (False, True):
            want = functools.cache(lambda: reference.torch_attention(*(x[-1, -1].double() for x in (q, k, v)),
                                                                     is_causal=is_causal))
            work = 4 * HIDDEN * TOKENS**2 / (2 if is_causal else 1)
            yield from rows(_steps(v2, lesson, D, is_causal), q, k, v, lambda o: o[-1, -1], want, work, batch=1,
                            heads=HIDDEN // D, N=TOKENS, D=D, is_causal=is_causal)


def after_a_rest():
    """Lesson 11's kernel and PyTorch's, D = 128, no mask, N = 16384: 20 calls after 1.5 s of rest, 20 after 2 s of the same."""
    q, k, v = random_inputs(1, HIDDEN // 128, TOKENS, 128)
    want = functools.cache(lambda: reference.torch_attention(*(x[-1, -1].double() for x in (q, k, v))))
    kernels = {"v3": lessons.fp8.flash_attention_v3} | {
        name: sdpa(BACKENDS[name], False) for name in ("SDPA flash", "SDPA cudnn")}
    work = 4 * HIDDEN * TOKENS**2
    yield from rows(kernels, q, k, v, lambda o: o[-1, -1], want, work, times=functools.partial(_busy, work), batch=1,
                    heads=HIDDEN // 128, N=TOKENS, D=128, is_causal=False)


def _busy(work, fn):
    """fn's times under load, its time and TFLOP/s after a rest, and the clock and the power under load."""
    time.sleep(1.5)
    scratch = torch.empty(2**28, dtype=torch.int8, device=DEVICE)
    rested = statistics.median(call_times(fn, 20, scratch))
    call_times(fn, int(2000 / rested), scratch)
    q1, median, q3 = statistics.quantiles(call_times(fn, 20, scratch), n=4, method="inclusive")
    for _ in range(int(1000 / median)):                  # a second of work in the queue, while nvidia-smi looks
        fn()
    seen = subprocess.run(["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits"],
                          capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    torch.cuda.synchronize()
    return dict(rested_ms=rested, rested_tflops=work / rested / 1e9, median_ms=median, q1_ms=q1, q3_ms=q3, calls=20,
                clock_mhz=int(seen[0]), watts=float(seen[1]))


def _steps(v2, lesson, D, is_causal):
    """{step: fn(q, k, v)} for `ladder`."""
    v3 = lambda **options: lambda q, k, v: lesson.launch_v3(q, k, v, is_causal, D**-0.5, **options)[0]
    pointers = lambda tiles: lambda q, k, v: v2.launch_v2(q, k, v, is_causal, D**-0.5, tiles=tiles)[0]
    same, chosen = v2.tile_sizes(D, torch.float16), lesson.tiles_v3(D, TOKENS, is_causal, False, 90)
    same.pop("BLOCK_D")
    steps = {"v2": pointers(None), "descriptors": v3(tiles=same)}
    for stages in (1, 2, 3, 4):
        if (same["BLOCK_M"] + stages * 2 * same["BLOCK_N"]) * D * 2 <= SHARED:
            steps[f"{stages} stage{'s'[:stages > 1]}"] = v3(tiles=same | dict(num_stages=stages))
    steps |= {"tiles": v3(tiles=chosen), "tiles, pointers": pointers(chosen), "tuned": v3(kernel=lesson.tuned_v3_kernel)}
    ws = lesson.tiles_ws(D, TOKENS, TOKENS, is_causal, False)
    return steps | {"specialized": lambda q, k, v: lesson.launch_ws(q, k, v, is_causal, D**-0.5, tiles=ws)[0],
                    "fp8 kernel": fp8_kernel(lesson, is_causal)}
