"""Measure on an NVIDIA GPU and record what was measured: `make bench`, or `python -m helpers.bench SUITE ...`.

Each suite writes figures/<device>/<suite>.json: where, when and from which commit it was measured, the ceilings of the
card, and a row per kernel and size with median and quartiles in ms. A result is compared with a reference before its
time is kept. Times are CUDA events around one call, after a rest and a warm-up, with the L2 cache overwritten between calls.

A run of everything is one process, and ends after BUDGET seconds at most. Started again at the same commit, it goes on
where it was stopped, and leaves alone what is complete; a suite that is named is always measured anew.
"""
import re
import sys

from helpers import (bench_attention, bench_backward, bench_claims, bench_ladder, bench_matrix, bench_model, bench_run,
                     cuda, device, lessons)
from helpers.measure import ceilings, provenance, timing
from helpers.records import load as recorded, save

import torch

BUDGET = 570                                             # seconds of measuring: ten minutes with all the rest


def vector_add():
    """Lesson 03's add against PyTorch's and against a copy, float32, from 2^12 to 2^28 elements."""
    add = lessons.vector_add_triton.add
    for n in (2**power for power in range(12, 29, 2)):
        x, y = torch.randn(2, n, device="cuda")
        z = torch.full_like(x, float("nan"))
        torch.testing.assert_close(add(x, y), x + y, rtol=0, atol=0)
        for name, fn, moved in (("copy", lambda: z.copy_(x), 8 * n), ("torch", lambda: torch.add(x, y, out=z), 12 * n),
                                ("triton", lambda: add(x, y), 12 * n)):
            yield bench_run.row(dict(name=name, dtype="float32", n=n), lambda: rate(moved, timing(fn)))


def rate(moved: int, times: dict) -> dict:
    """times, and the GB/s at which they moved so many bytes."""
    return dict(gb_per_s=moved / times["median_ms"] / 1e6, **times)


CUDA_RUNS = ([("vec_add.cu", [2**power]) for power in range(12, 29, 4)]
             + [("matrix_add_mul.cu", [n, n, n]) for n in (256, 1024, 4096)]
             + [("matrix_add_mul.cu", [16384, 16384, 32])]           # large enough for the additions to leave the caches
             + [("attention.cu", [N, N, 16]) for N in (1024, 4096, 16384)])
CUDA_TIME = re.compile(r"^\[gpu\] (.+): ([\d.]+) ms \(([\d.]+) to ([\d.]+) in \d+ runs\), ([\d.]+) (GB/s|TFLOP/s)$", re.M)


def cuda_programs():
    """The programs of CUDA/, compiled for this GPU. They check their results and time themselves, without flushing L2."""
    arch = "sm_%d%d" % torch.cuda.get_device_capability()
    for program, arguments in CUDA_RUNS:
        facts = dict(program=program, arguments=arguments, arch=arch)
        measure = lambda: [facts | row for row in cuda_times(cuda.run(program, *arguments, emulate=False, arch=arch))]
        yield from bench_run.kept(facts) or measure()


def cuda_times(printed: str) -> list:
    """The timed lines of a CUDA program's output, as dictionaries."""
    return [{"name": name, "median_ms": float(median), "q1_ms": float(q1), "q3_ms": float(q3),
             "gb_per_s" if unit == "GB/s" else "tflops": float(rate)}
            for name, median, q1, q3, rate, unit in CUDA_TIME.findall(printed)]


SUITES = {"vector_add": vector_add, "cuda_programs": cuda_programs,
          "softmax_and_matmul": bench_matrix.softmax_and_matmul,
          "flash_attention_v1": bench_attention.flash_attention_v1,
          "flash_attention_v2": bench_attention.flash_attention_v2,
          "flash_attention_v3": bench_attention.flash_attention_v3, "ladder": bench_ladder.ladder,
          "after_a_rest": bench_ladder.after_a_rest,
          "backward": bench_backward.backward,
          "lengths_and_batches": bench_claims.lengths_and_batches, "table_8192": bench_claims.table_8192,
          "types": bench_claims.types, "first_call": bench_claims.first_call,
          "training": bench_model.training}

# About how long each takes on an H200 with a slow host, for the progress line
SECONDS = {"vector_add": 10, "cuda_programs": 41, "softmax_and_matmul": 24, "flash_attention_v1": 35, "flash_attention_v2": 43,
           "flash_attention_v3": 122, "ladder": 62, "after_a_rest": 17, "backward": 42, "lengths_and_batches": 47,
           "table_8192": 24, "types": 18, "first_call": 31, "training": 50}


def measure(name: str) -> dict:
    """Run one suite on this machine's GPU: provenance, ceilings, what it is, and a row per kernel and size."""
    rows = list(SUITES[name]())
    torch.cuda.empty_cache()                             # another notebook may be at work on the same GPU
    return _record(name, provenance(), rows)


def _record(name, where, rows):
    return dict(**where, ceilings=ceilings(), what=SUITES[name].__doc__, rows=rows)


def record(name: str) -> dict:
    """The record of one suite: measured now if there is a GPU, otherwise figures/h200/<name>.json."""
    return recorded(name) if device.INTERPRETED else measure(name)


def main(names) -> int:
    """Run the named suites, or all that are not complete, and write their JSON. Returns how many failed."""
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        sys.exit(f"there is no suite {unknown[0]!r}; the suites are {', '.join(SUITES)}")
    if device.INTERPRETED:
        sys.exit("nothing to measure: this machine has no NVIDIA GPU, and times from Triton's interpreter mean nothing")
    where = provenance()
    todo = names or [name for name in SUITES if not bench_run.is_complete(name, where)]
    done = [] if names else [name for name in SUITES if name not in todo]
    if done:
        print(f"complete at {where['commit']}: {', '.join(done)} (name one to measure it anew)", flush=True)
    progress, failed = bench_run.Progress({name: SECONDS[name] for name in todo}, BUDGET), 0
    for name in todo:
        progress.begin(name)
        torch.cuda.empty_cache()                         # cuda_programs and first_call run in processes of their own
        try:
            rows = bench_run.run_suite(name, SUITES[name], where, progress.row)
        except TimeoutError as stop:
            progress.end()
            sys.exit(str(stop))
        except Exception as problem:                     # the other suites can still be measured
            progress.end()
            failed += 1
            print(f"{name} failed: {type(problem).__name__}: {problem}", file=sys.stderr, flush=True)
            continue
        progress.end()
        save(name, _record(name, where, rows))
        bench_run.partial(name, where).unlink()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
