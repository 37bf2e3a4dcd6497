"""The suite `profile`: why a kernel takes its time, and whether it is right, by the tools of NVIDIA, PyTorch and Triton.

Each tool runs in a process of its own, with a time limit. Where one is missing or fails, its row says so ("error").
"""
import concurrent.futures
import functools
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from helpers import cuda, lessons, process
from helpers.bench import clock, kernels, model, ncu, planted
from helpers.bench.run import suite

import torch
import triton

MODULE, LIMIT_S = "helpers.bench.profile", 100           # of one process
HEADS, N = 16, 4096
CACHE = dict(heads=32, kv_heads=8, N=8192, D=128)
FEATURES = dict(heads=16, N=65536, D=64)                 # v of 134 MB, more than twice an H200's L2


@suite(seconds=110)
def profile():
    """What tools say of the course's kernels: counters of the hardware, a training step, a timeline, sanitizers."""
    torch.cuda.empty_cache()                             # the other processes need some of it
    yield dict(tool="ncu"), functools.partial(_or_why, counted)
    yield dict(tool="torch.profiler"), functools.partial(_or_why, process.call, MODULE, "training_step")
    yield dict(tool="proton"), functools.partial(_or_why, process.call, MODULE, "timeline")
    with concurrent.futures.ThreadPoolExecutor(planted.PROCESSES) as pool:
        found = {each: pool.submit(_or_why, sanitized, *each) for each in SANITIZED}
        for tool, program in SANITIZED:
            yield dict(tool=tool, name=program), found[tool, program].result


def _or_why(fn, *arguments):
    """What fn returns, or {"error": why not}."""
    try:
        return fn(*arguments)
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
    for name, fn in (("case 1", lessons.measuring.down_columns), ("case 2", lessons.measuring.whole_rows),
                     ("FP8's own", lambda v: largest(v))):
        clock.verified(name, fn(v), v.double().abs().amax(1), 1e-6, f"N = {FEATURES['N']}")
        yield name, FEATURES, "_kernel", lambda: fn(v)


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
    printed = ncu.listing(ncu.find("ncu"), COUNTERS | WAITS, [sys.executable, "-m", MODULE, "counting"],
                          "--profile-from-start", "off", limit_s=LIMIT_S)
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


# ---------------------------------------------------------------- a training step

KINDS = {"attention": "flash_attention|prepare_kernel|finish_kernel", "matrix products": "nvjet|gemm|cutlass|cublas",
         "AdamW": "multi_tensor|[Aa]dam", "layer norm": "layer_norm|GammaBeta", "softmax and loss": "oft[mM]ax|nll_loss",
         "sums": "reduce_kernel", "copies": "Memcpy|copy", "elementwise": ""}       # the first that fits
STEP = dict(dtype="bfloat16", batch=8, N=2048)


def training_step() -> dict:
    """One step of the suite `training`: its kernels by kind, [kind, launches, ms], and what of the step has none."""
    lesson = lessons.attention_in_a_model
    tokens, alphabet = lesson.encode(" ".join(model.topics.topics.values()))
    gpt = lesson.GPT(lesson.TritonFlashAttention, len(alphabet), STEP["N"], model.EMBED_DIM, model.HEADS, model.LAYERS)
    steps = lesson.train(gpt.cuda(), tokens, 40, STEP["batch"], STEP["N"], lr=1e-3, dtype=torch.bfloat16)
    times = []
    for _ in range(25):
        start = time.perf_counter()
        next(steps)
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    with torch.profiler.profile() as seen:
        next(steps)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return STEP | dict(step_ms=statistics.median(times[10:])) | summary(events)


def summary(events: list) -> dict:
    """Of a trace: span_ms from the first kernel's begin to the last one's end, busy_ms, launches, and all by kind."""
    ran = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    kinds = {}
    for event in ran:
        kind = next(kind for kind, names in KINDS.items() if re.search(names, event["name"]))
        launches, ms = kinds.get(kind, (0, 0.0))
        kinds[kind] = launches + 1, ms + event["dur"] / 1e3
    busy = sum(ms for _, ms in kinds.values())
    span = (max(e["ts"] + e["dur"] for e in ran) - min(e["ts"] for e in ran)) / 1e3
    told = sorted(([kind, n, round(ms, 4)] for kind, (n, ms) in kinds.items()), key=lambda each: -each[2])
    return dict(span_ms=span, busy_ms=busy, launches=len(ran), kinds=told)


# ---------------------------------------------------------------- a timeline

MARKED = [("import triton\nfrom triton.experimental import gluon\n",
           "import triton\nimport triton.profiler.language as pl\nfrom triton.experimental import gluon\n"),
          ("        s = start_scores(q_i, k, i, s_layout)                              # of this tile,\n",
           "        pl.enter_scope('products')\n        s = start_scores(q_i, k, i, s_layout)\n"),
          ("        hand_on(k, i)\n        if IS_CAUSAL:",
           "        pl.exit_scope('products')\n        hand_on(k, i)\n        pl.enter_scope('softmax')\n        if IS_CAUSAL:"),
          ("        acc, p = warpgroup_mma_wait(0, deps=[acc, p]) if not FP8",
           "        pl.exit_scope('softmax')\n        acc, p = warpgroup_mma_wait(0, deps=[acc, p]) if not FP8")]
SHOWN = slice(8, 12)                                     # of each warp's turns


def timeline() -> dict:
    """Proton's: when one warp of each consumer of v4's kernel was in which scope, us, in the middle of its first block."""
    import triton.profiler as proton
    D, right, marked = 128, lessons.warp_specialization, lessons.variant("warp_specialization", *MARKED)
    q, k, v = torch.randn(3, 1, HEADS, N, D, device="cuda").half()
    options = dict(is_causal=False, scale=D**-0.5, tiles=right.tiles_ws(D, N, N, False, False))
    want = right.launch_ws(q, k, v, **options)[0].double()
    plain_ms = clock.timing(lambda: right.launch_ws(q, k, v, **options))["median_ms"]
    with tempfile.TemporaryDirectory() as folder:
        mode = proton.mode.Default(optimizations="clock32", sampling_strategy="selective", sampling_options="0,4")
        proton.start(f"{folder}/v4", data="trace", backend="instrumentation", mode=mode)
        clock.verified("v4 with marks", marked.launch_ws(q, k, v, **options)[0], want, 2e-3, f"N = {N}")
        proton.finalize()
        events = json.loads(Path(f"{folder}/v4.chrome_trace").read_text())["traceEvents"]
    turns = -(-HEADS * N // (options["tiles"]["PARTS"] * 64) // torch.cuda.get_device_properties(0).multi_processor_count)
    turns *= N // options["tiles"]["BLOCK_N"]            # of the program that has the most blocks
    return dict(heads=HEADS, N=N, D=D, unmarked_turn_us=1e3 * plain_ms / turns, spans=spans(events))


def spans(events: list) -> list:
    """[warp, scope, begin, duration] of one program, us from the first of them, each warp's turns SHOWN."""
    first = [e for e in events if e["pid"] == events[0]["pid"]]
    shown = []
    for warp in sorted({e["tid"] for e in first}):
        for scope in ("products", "softmax"):
            own = sorted((e["ts"], e["dur"]) for e in first if (e["tid"], e["name"]) == (warp, scope))
            shown += [(warp.split(" (")[0], scope, *times) for times in own[SHOWN]]
    begin = min(start for _, _, start, _ in shown)
    return [[warp, scope, round(start - begin, 3), round(lasts, 3)] for warp, scope, start, lasts in shown]


# ---------------------------------------------------------------- sanitizers

NO_EMPTY, NO_FULL = "the writer does not wait for empty", "the reader does not wait for full"
BARRIER = "        __syncthreads();                     // everyone has read them before they are overwritten\n"
SANITIZED = [("memcheck", "v2"), ("memcheck", "add, no mask"), ("memcheck", "add, no mask, PyTorch's pool"),
             ("racecheck", "v2"), ("racecheck", "product, no barrier"), ("racecheck", "ring"), ("racecheck", NO_EMPTY),
             ("synccheck", "v2"), ("synccheck", "barrier in a branch"), ("synccheck", "ring"),
             ("consan", "ring"), ("consan", NO_EMPTY), ("consan", NO_FULL)]
BRANCH = """#include <cstdio>
__global__ void halves(int* out) {
    if (threadIdx.x % 2) __syncthreads();
    out[threadIdx.x] = threadIdx.x;
}
int main() {
    int* out;
    cudaMalloc(&out, 64 * sizeof(int));
    halves<<<1, 64>>>(out);
    printf("%s\\n", cudaDeviceSynchronize() ? "fails" : "ends");
}
"""


def sanitized(tool: str, program: str) -> dict:
    """Run a program under a sanitizer: how many errors it found, its words on the first, and what the program printed."""
    command, environment = [sys.executable, "-m", MODULE, "launched", program], {}
    if program in SOURCES:
        text, *arguments = SOURCES[program]()
        command = [cuda.build(text, "sm_%d%d" % torch.cuda.get_device_capability()), *arguments]
    if "pool" not in program:
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"      # or all tensors lie in a few large allocations
    if tool != "consan":
        command = [ncu.find("compute-sanitizer"), "--tool", tool, *command]
        return said(*process.output(*command, limit_s=LIMIT_S, **environment))
    with tempfile.TemporaryDirectory() as folder:
        environment |= dict(TRITON_INSTRUMENTATION_MODE="consan", TRITON_CACHE_DIR=folder)
        return said(*process.output(*command, limit_s=LIMIT_S, **environment))


SOURCES = {"product, no barrier": lambda: ((cuda.CUDA / "matrix_add_mul.cu").read_text().replace(BARRIER, ""), 64, 64, 64),
           "barrier in a branch": lambda: (BRANCH,)}


def said(status, out: str, err: str) -> dict:
    """From what a sanitized program printed: errors, the first of them in words, and the program's own last line.

    RuntimeError if it did not end.
    """
    if status is None:
        raise RuntimeError(f"it did not end within {LIMIT_S} s")
    text = out + err
    told = [line.removeprefix("=========").strip() for line in text.splitlines() if line.startswith("=====")]
    own = [line for line in out.splitlines() if line.startswith("result: ")]
    row = dict(result=own[-1].removeprefix("result: ") if own else "none")
    total = re.search(r"SUMMARY: (\d+)", text)
    if total:
        words = [line for line in told if re.match(r"Invalid|Error: Race|Barrier error|Divergent", line)][:1]
        where = [line for line in told if re.match(r"(at|and) ", line)][:1]
        return row | dict(errors=int(total[1]), words=[re.sub(r" in /\S+/", " in ", line) for line in words + where])
    broken = re.findall(r"Assertion `(.+?)\.?` failed", text)
    return row | dict(errors=len(broken), words=broken[:1])


def launched(program: str) -> str:
    """Launch what a name of SANITIZED says, small: is the result right?"""
    if program == "v2":
        q, k, v = torch.randn(3, 1, 2, 512, 64, device="cuda").half()
        got, want = kernels.v2()(q, k, v).float(), kernels.reference.torch_attention(*(x.float() for x in (q, k, v)))
        return "right" if torch.allclose(got, want, atol=2e-3) else "wrong"
    if program.startswith("add"):
        module = lessons.variant("vector_add_triton", ("x_ptr + offsets, mask=mask", "x_ptr + offsets"))
        x, y = torch.randn(2, 1000, device="cuda")
        return "right" if torch.equal(module.add(x.clone(), y.clone()), x + y) else "wrong"
    changes = planted.PLANTED[program][1] if program in planted.PLANTED else ()
    module, o = lessons.variant("warp_specialization", *changes), torch.full((100,), -1, dtype=torch.int32, device="cuda")
    module.numbers_kernel[1,](o, len(o), STAGES=2, num_warps=4)
    return "right" if torch.equal(o, torch.arange(100, device="cuda", dtype=torch.int32)**2) else "wrong"


def _consan_memory():
    """Triton's sanitizer keeps its notes in memory that we give it."""
    from triton.runtime import _allocation
    for enter in (triton.set_allocator, _allocation.set_profile_allocator):
        enter(lambda size, alignment, stream: torch.empty(size, device="cuda", dtype=torch.int8))


if __name__ == "__main__":
    if sys.argv[1] == "counting":
        counting()
    else:
        if os.environ.get("TRITON_INSTRUMENTATION_MODE"):
            _consan_memory()
        print("result:", launched(sys.argv[2]), flush=True)
