"""Where the time goes inside a training step, by PyTorch's profiler, and inside a kernel, by Triton's."""
import json
import re
import statistics
import tempfile
import time
from pathlib import Path

from helpers import lessons
from helpers.bench import clock, model

import torch

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

HEADS, N, D = 16, 4096, 128
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
    right, marked = lessons.warp_specialization, lessons.variant("warp_specialization", *MARKED)
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
