"""The suite of lesson 11's steps, part of helpers/bench.py."""
import functools

from helpers import notebook, reference
from helpers.bench_attention import HIDDEN, TOKENS, fp8_kernel, random_inputs, rows

import torch

SHARED = 226 * 1024                                      # bytes for tiles; barriers take some of the 227 KB


def ladder():
    """Lesson 11's steps, one at a time: one sequence of 16384 tokens, hidden size 2048, forward."""
    v2, lesson = notebook.load("09_causal_and_multihead"), notebook.load("11_fp8_and_prefetch")
    for D in (64, 128):
        q, k, v = random_inputs(1, HIDDEN // D, TOKENS, D)
        for is_causal in (False, True):
            want = functools.cache(lambda: reference.torch_attention(*(x[-1, -1].double() for x in (q, k, v)),
                                                                     is_causal=is_causal))
            work = 4 * HIDDEN * TOKENS**2 / (2 if is_causal else 1)
            yield from rows(_steps(v2, lesson, D, is_causal), q, k, v, lambda o: o[-1, -1], want, work, batch=1,
                            heads=HIDDEN // D, N=TOKENS, D=D, is_causal=is_causal)


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
    if not is_causal:
        steps["specialized"] = lambda q, k, v: lesson.launch_ws(q, k, v, D**-0.5)
    return steps | {"fp8 kernel": fp8_kernel(lesson, is_causal)}
