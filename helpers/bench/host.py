"""The suites of the host: the first call of a kernel, which compiles, and what each later call costs before it runs."""
import functools
import tempfile
import time
from pathlib import Path

from helpers import process, reference
from helpers.bench import clock, kernels
from helpers.bench.attention import random_inputs, versions
from helpers.bench.run import suite
from helpers.device import DEVICE

import torch
from torch.nn.functional import scaled_dot_product_attention

FIRST = dict(batch=4, heads=8, N=512, D=32)              # the sizes at which one of the claims was made
SHORT = dict(batch=1, heads=8, N=256, D=64)              # done on the GPU before the host has launched it
ROUNDS, CALLS = 200, 50                                  # timed calls: so many times so many in a row
FNS = {"standard": lambda: reference.torch_attention, "v2": kernels.v2, "v3": kernels.v3, "v4": kernels.v4}


@suite(seconds=45)
def first_call():
    """The first call in a new process, Triton's cache empty and filled, beside later ones: 4 x 8 heads of 512 x 32."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FNS:
            for state in ("empty", "filled") if name != "standard" else ("none",):
                yield (dict(name=name, dtype="float16", cache=state, **FIRST),
                       functools.partial(_elsewhere, name, state, Path(folder) / name))


def _elsewhere(name, state, cache):
    if state == "filled" and not cache.exists():         # after an interruption
        _elsewhere(name, "empty", cache)
    torch.cuda.empty_cache()                             # the other process needs some of it
    return process.call("helpers.bench.host", "first_and_second", name, TRITON_CACHE_DIR=str(cache))


def first_and_second(name: str) -> dict:
    """Wall-clock ms of the first and the second call in this process, and the steady state by CUDA events."""
    fn, (q, k, v) = FNS[name](), random_inputs(*FIRST.values())
    want = reference.last_head(q, k, v)                  # starts cuBLAS and the driver
    ms = []
    for _ in range(2):
        _wait()
        start = time.perf_counter()
        o = fn(q, k, v)
        _wait()
        ms.append(1e3 * (time.perf_counter() - start))
    clock.verified(name, o[-1, -1], want, kernels.BOUNDS[q.dtype], "the first call")
    return dict(first_ms=ms[0], second_ms=ms[1], **clock.timing(lambda: fn(q, k, v)))


def _wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@suite(seconds=8)
def launch():
    """What the host takes for a call that the GPU does not keep waiting: 8 heads of 256 x 64, forward, wall clock."""
    inputs = random_inputs(*SHORT.values())
    for is_causal in (False, True):
        want = reference.last_head(*inputs, is_causal=is_causal)
        pytorch = functools.partial(scaled_dot_product_attention, is_causal=is_causal)
        calls = {name: functools.partial(fn, *inputs)
                 for name, fn in {**versions(is_causal=is_causal), "SDPA": pytorch}.items()}
        taken = functools.cache(functools.partial(_in_turn, calls))
        for name, call in calls.items():
            yield (dict(name=name, dtype="float16", is_causal=is_causal, **SHORT),
                   functools.partial(_launched, name, call, want, taken))


def _launched(name, call, want, taken):
    """Median and quartiles of the wall-clock time of a call in ms."""
    error = clock.verified(name, call()[-1, -1], want, kernels.BOUNDS[torch.float16], "a launch")
    return dict(relative_error=error, calls=ROUNDS * CALLS, **clock.quartiles(taken()[name]))


def _in_turn(calls):
    """The ms that each of `calls` takes, in all rounds: in turn, since a host that is slow for a while is so for all."""
    ms = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()                                       # what the one before left in the caches is not timed
            _wait()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            ms[name].append(1e3 * (time.perf_counter() - start) / CALLS)
    return ms
