"""The suites of lesson 13, part of helpers/bench.py: what others have claimed of Triton kernels, in their sizes or near them."""
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers import ROOT, lessons, reference
from helpers.bench_attention import BACKENDS, BOUNDS, peers, random_inputs, rows, sdpa, tolerant
from helpers.bench_run import row
from helpers.device import DEVICE
from helpers.measure import timing, verified

import torch

BATCHES, HEADS, D_HEAD = [1, 2, 4, 8], 8, 64
LENGTHS = [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
COMPARED = 256                                           # queries, the last ones: a float64 reference of all would not fit


def lengths_and_batches():
    """Time against sequence length for batches of 1 to 8: 8 heads of 64, forward, no mask, float16."""
    kernels = {"standard": reference.torch_attention, "v2": v2(), "v3": v3(), "SDPA flash": sdpa(BACKENDS["SDPA flash"], False)}
    for batch in BATCHES:
        for N in LENGTHS:
            yield from _compared(kernels, (batch, HEADS, N, D_HEAD))


SHAPES_256 = [(1, 256), (2, 128), (8, 32)]               # heads, features of a head: a model dimension of 256
TABLE_LENGTH = 8192


def table_8192():
    """Time and peak memory of every version at N = 8192: a model dimension of 256 as 1, 2 and 8 heads, forward, no mask, float16."""
    for heads, D in SHAPES_256:
        kernels = {"standard": reference.torch_attention, "v1, 1-D grid": v1(tiles=dict(BLOCK_V=D)), "v1": v1(),
                   "v2": v2(), "v3": v3(), **({"v3 fp8": v3(precision="fp8")} if D == 128 else {})}
        kernels |= {name: sdpa(backend, False) for name, backend in BACKENDS.items()}
        yield from _compared(kernels, (1, heads, TABLE_LENGTH, D))


SHAPES = [(4, 8, 512, 32), (1, 16, 8192, 128)]           # batch, heads, N, D
PRODUCT = 8192


def types():
    """float32, float16, bfloat16 and FP8: matrix products, then attention with its difference from standard attention."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        facts = dict(name="matrix product", dtype=str(dtype).removeprefix("torch."), n=PRODUCT)
        yield row(facts, lambda: tolerant("standard", lambda: _product(dtype)))
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            kernels = {**peers(False), "v2": v2(), "v3": v3()}
            if dtype == torch.float16 and shape[3] in (64, 128):
                kernels["v3 fp8"] = v3(precision="fp8")
            if dtype == torch.float32:                   # these two take half precision only
                del kernels["SDPA flash"], kernels["SDPA cudnn"]
            yield from _compared(kernels, shape, dtype, differences=True)


def _product(dtype):
    a, b = (torch.randn(PRODUCT, PRODUCT, device=DEVICE).to(dtype) for _ in range(2))
    one = torch.ones((), device=DEVICE)
    fp8 = lambda: torch._scaled_mm(a, b.T, scale_a=one, scale_b=one, out_dtype=torch.float16)
    fn = fp8 if dtype == torch.float8_e4m3fn else lambda: a @ b.T
    verified("the product", fn()[:256], a[:256].double() @ b.T.double(), 1e-2, str(dtype))
    times = timing(fn)
    return dict(tflops=2 * PRODUCT**3 / times["median_ms"] / 1e9, **times)


def _compared(kernels, shape, dtype=torch.float16, differences=False):
    """Rows for one shape [B, heads, N, D]; the last queries of the last head are compared."""
    B, heads, N, D = shape
    q, k, v = random_inputs(*shape, dtype=dtype)
    want = functools.cache(lambda: reference.torch_attention(q[-1, -1, -COMPARED:].double(), *(x[-1, -1].double() for x in (k, v))))
    for found in rows(kernels, q, k, v, lambda o: o[-1, -1, -COMPARED:], want, 4 * B * heads * N * N * D,
                      batch=B, heads=heads, N=N, D=D, is_causal=False):
        if differences and "error" not in found and "largest_difference" not in found:
            o, standard = kernels[found["name"]](q, k, v), reference.torch_attention(q, k, v)
            found |= dict(largest_difference=(o.double() - standard.double()).abs().max().item(),
                          largest_value=standard.abs().max().item())
        yield found


# ---------------------------------------------------------------- the first call

FIRST = dict(batch=4, heads=8, N=512, D=32)              # the sizes at which one of the claims was made


def first_call():
    """The first call in a new process, with Triton's cache empty and filled, beside the steady state: 4 x 8 heads of 512 x 32."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("standard", "v2", "v3"):
            cache = Path(folder) / name
            for state in ("empty", "filled") if name != "standard" else ("none",):
                yield row(dict(name=name, dtype="float16", cache=state, **FIRST), lambda: _in_a_process(name, state, cache))


def _in_a_process(name, state, cache):
    if state == "filled" and not cache.exists():         # after an interruption
        _in_a_process(name, "empty", cache)
    torch.cuda.empty_cache()                             # the other process needs some of it
    done = subprocess.run([sys.executable, "-m", "helpers.bench_claims", name], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "TRITON_CACHE_DIR": str(cache)})
    if done.returncode:
        raise RuntimeError(f"the first call of {name} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def first_and_second(name: str) -> dict:
    """Wall-clock ms of the first and the second call in this process, and the steady state by CUDA events."""
    fn = {"standard": lambda: reference.torch_attention, "v2": v2, "v3": v3}[name]()
    q, k, v = random_inputs(*FIRST.values())
    want = reference.torch_attention(q[-1, -1].float(), k[-1, -1].float(), v[-1, -1].float())   # starts cuBLAS and the driver
    ms = []
    for _ in range(2):
        _wait()
        start = time.perf_counter()
        o = fn(q, k, v)
        _wait()
        ms.append(1e3 * (time.perf_counter() - start))
    verified(name, o[-1, -1], want, BOUNDS[q.dtype], "the first call")
    return dict(first_ms=ms[0], second_ms=ms[1], **timing(lambda: fn(q, k, v)))


def _wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------- the course's kernels, one signature

def v1(**options):
    """Lesson 08's kernel as fn(q, k, v) for [1, heads, N, D]. It knows one head, so it is called once for each."""
    one = lessons.flash_attention_triton.flash_attention_v1
    def attend(q, k, v):
        if q.shape[1] == 1:
            return one(q[0, 0], k[0, 0], v[0, 0], **options)[None, None]
        return torch.stack([one(q[0, h], k[0, h], v[0, h], **options) for h in range(q.shape[1])])[None]
    return attend


def v2():
    """Lesson 09's kernel."""
    return lessons.causal_and_multihead.flash_attention_v2


def v3(**options):
    """Lesson 11's kernel with these options."""
    return functools.partial(lessons.fp8.flash_attention_v3, **options)


if __name__ == "__main__":
    print(json.dumps(first_and_second(sys.argv[1])))
