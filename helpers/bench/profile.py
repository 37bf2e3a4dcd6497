"""The suite `profile`: why a kernel takes its time, and whether it is right, by the tools of NVIDIA, PyTorch and Triton.

Each tool runs in a process of its own, with a time limit. Where one is missing or fails, its row says so ("error").
"""
import concurrent.futures
import functools
import json
import sys

from helpers import lessons, process
from helpers.bench import clock, kernels, ncu
from helpers.bench.run import suite
from helpers.bench.sanitizers import SANITIZED, sanitized

import torch

HEADS, N = 16, 4096
CACHE = dict(heads=32, kv_heads=8, N=8192, D=128)
FEATURES = dict(heads=16, N=65536, D=64)                 # v of 134 MB, more than twice an H200's L2


@suite(seconds=100)
def profile():
    """What tools say of the course's kernels: counters of the hardware, a training step, a timeline, sanitizers."""
    torch.cuda.empty_cache()                             # the other processes need some of it
    yield dict(tool="ncu"), functools.partial(_or_why, counted)
    for tool, function in (("torch.profiler", "training_step"), ("proton", "timeline")):
        yield dict(tool=tool), functools.partial(_or_why, process.call, "helpers.bench.traces", function, limit_s=25)
    with concurrent.futures.ThreadPoolExecutor(len(SANITIZED)) as pool:          # side by side: none of them is timed
        found = {each: pool.submit(_or_why, sanitized, *each) for each in SANITIZED}
        for tool, program in SANITIZED:
            yield dict(tool=tool, name=program), found[tool, program].result


def _or_why(fn, *arguments, **options):
    """What fn returns, or {"error": why not}."""
    try:
        return fn(*arguments, **options)
    except (RuntimeError, ValueError) as problem:
        return dict(error=" ".join(str(problem).split())[-200:])


# ---------------------------------------------------------------- counters

PERCENT = ".avg.pct_of_peak_sustained_elapsed"
COUNTERS = {                                             # our name: Nsight Compute's
    "ns": "gpu__time_duration.sum", "tensor": "sm__pipe_tensor_cycles_active" + PERCENT,
    "exp": "sm__inst_executed_pipe_xu" + PERCENT, "issue": "sm__inst_issued" + PERCENT,
    "l2": "lts__throughput" + PERCENT, "dram": "dram__throughput" + PERCENT,
    "warps": "sm__warps_active.avg.pct_of_peak_sustained_active", "l2_bytes": "l1tex__m_xbar2l1tex_read_bytes.sum",
    "dram_bytes": "dram__bytes_read.sum", "programs": "launch__grid_size", "registers": "launch__registers_per_thread"}
WAITS = {f"waits: {name}": f"smsp__average_warps_issue_stalled_{name}_per_issue_active.ratio" for name in (
    "barrier", "branch_resolving", "dispatch_stall", "drain", "gmma", "imc_miss", "lg_throttle", "long_scoreboard",
    "math_pipe_throttle", "membar", "mio_throttle", "misc", "no_instruction", "not_selected", "selected",
    "short_scoreboard", "sleeping", "tex_throttle", "wait")}         # what a warp does from one instruction to the next


def calls():
    """name, sizes, a part of its kernel's name, and a call, for each kernel that is counted."""
    random = torch.Generator("cuda").manual_seed(0)

    def made(*shape):
        return torch.randn(*shape, device="cuda", generator=random).half()

    x, y = made(2, 2**27)
    yield "vector add", dict(n=2**27), "add_kernel", lambda: lessons.vector_add_triton.add(x, y)
    x, y = made(2, 8192, 8192)
    yield "matrix product", dict(n=8192), "", lambda: x @ y
    for D in (64, 128):
        q, k, v, do = made(4, 1, HEADS, N, D)
        sizes, steps = dict(heads=HEADS, N=N, D=D), kernels.backward_steps(False)
        o, lse = kernels.forward_for_backward(q, k, v, False)
        long = made(3, 1, 1, 4 * N, D)                   # for v1, which knows one head: as many operations
        yield "v1", dict(heads=1, N=4 * N, D=D), "v1_kernel", lambda: kernels.v1()(*long)
        for name, kernel in (("v2", "v2_kernel"), ("v3", "v3_kernel"), ("v4", "ws_kernel")):
            yield name, sizes, kernel, lambda: getattr(kernels, name)()(q, k, v)
        yield "backward, dk and dv", sizes, "dkdv_kernel", lambda: steps["two walks"](q, k, v, o, lse, do)
        yield "backward, v4", sizes, "backward_kernel", lambda: steps["v4"](q, k, v, o, lse, do)
    for B in (1, 16):
        q, k, v = made(B, CACHE["heads"], 1, CACHE["D"]), *made(2, B, *list(CACHE.values())[1:])
        lengths = torch.full((B,), CACHE["N"], dtype=torch.int32, device="cuda")
        yield f"decoding x {B}", dict(batch=B, **CACHE), "decode_kernel", lambda: (
            lessons.decoding.decode_attention(q, k, v, lengths))
    v = made(*FEATURES.values())
    for name, fn, kernel in (("case 1", lessons.measuring.down_columns, "down_columns_kernel"),
                             ("case 2", lessons.measuring.whole_rows, "whole_rows_kernel"),
                             ("FP8's own", largest, "largest_features_kernel")):
        clock.verified(name, fn(v), v.double().abs().amax(1), 1e-6, f"N = {FEATURES['N']}")
        yield name, FEATURES, kernel, lambda: fn(v)


def largest(v):
    """The largest |v| of each feature, by the kernel with which v is quantized to eight bits: float32 [heads, D]."""
    (heads, N, D), lesson = v.shape, lessons.fp8
    o = torch.zeros(heads, D, device=v.device)
    lesson.largest_features_kernel[lesson.grid_of(N, 256, heads)](
        v, o, v[None].stride(), heads, N, D=D, BLOCK=256, BLOCK_D=D)
    return o


def counting():
    """What runs under Nsight Compute: each call once to compile, and once between marks. Prints a line of JSON for each."""
    for name, sizes, kernel, call in calls():
        call()
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStart()
        call()
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()
        print(json.dumps([name, sizes, kernel]), flush=True)


def counted() -> list:
    """A row for each of `calls`: the counters of its kernel's launch, and the three things that its warps do most."""
    printed = ncu.listing(ncu.find("ncu"), COUNTERS | WAITS, [sys.executable, "-m", "helpers.bench.profile"],
                          "--profile-from-start", "off", limit_s=75)
    asked = [json.loads(line) for line in printed.splitlines() if line.startswith("[")]
    return rows_of(asked, ncu.parse(printed, COUNTERS | WAITS))


def rows_of(asked: list, launches: list) -> list:
    """For each [name, sizes, part of a kernel's name] the first of the launches left that has such a name.

    ValueError if there is none.
    """
    rows, left = [], iter(launches)
    for name, sizes, kernel in asked:
        row = next((launch for launch in left if kernel in launch["kernel"]), None)
        if row is None:
            raise ValueError(f"Nsight Compute saw no launch of {kernel} for {name}")
        waits = {key.removeprefix("waits: "): row.pop(key) for key in list(row) if key.startswith("waits: ")}
        most = sorted(waits, key=waits.get, reverse=True)[:3]
        rows.append(dict(name=name, **sizes, **row, waits={key: round(waits[key] / sum(waits.values()), 3) for key in most}))
    return rows


if __name__ == "__main__":
    counting()
