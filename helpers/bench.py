"""Measure on an NVIDIA GPU and record what was measured: `make bench`, or `python -m helpers.bench SUITE ...`.

Each suite writes figures/<device>/<suite>.json: where, when and from which commit it was measured, the ceilings of the
card, and a row per kernel and size with median and quartiles in ms. A result is compared with a reference before its
time is kept. Times are CUDA events around one call, after a warm-up, with the L2 cache overwritten between calls.
"""
import json
import re
import sys

from helpers import ROOT, bench_attention, bench_matrix, cuda, device, notebook
from helpers.measure import ceilings, provenance, save, timing

import torch


def vector_add():
    """Lesson 03's add against PyTorch's and against a copy, float32, from 2^12 to 2^28 elements."""
    add = notebook.load("03_vector_add_triton").add
    for n in (2**power for power in range(12, 29, 2)):
        x, y = torch.randn(2, n, device="cuda")
        z = torch.full_like(x, float("nan"))
        torch.testing.assert_close(add(x, y), x + y, rtol=0, atol=0)
        for name, fn, moved in (("copy", lambda: z.copy_(x), 8 * n), ("torch", lambda: torch.add(x, y, out=z), 12 * n),
                                ("triton", lambda: add(x, y), 12 * n)):
            row = timing(fn)
            yield dict(name=name, dtype="float32", n=n, gb_per_s=moved / row["median_ms"] / 1e6, **row)


CUDA_RUNS = ([("vec_add.cu", [2**power]) for power in range(12, 29, 4)]
             + [("matrix_add_mul.cu", [n, n, n]) for n in (256, 1024, 4096)]
             + [("matrix_add_mul.cu", [16384, 16384, 32])]           # large enough for the additions to leave the caches
             + [("attention.cu", [N, N, 16]) for N in (1024, 4096, 16384)])
CUDA_TIME = re.compile(r"^\[gpu\] (.+): ([\d.]+) ms \(([\d.]+) to ([\d.]+) in \d+ runs\), ([\d.]+) (GB/s|TFLOP/s)$", re.M)


def cuda_programs():
    """The programs of CUDA/, compiled for this GPU. They check their results and time themselves, without flushing L2."""
    arch = "sm_%d%d" % torch.cuda.get_device_capability()
    for program, arguments in CUDA_RUNS:
        for row in cuda_times(cuda.run(program, *arguments, emulate=False, arch=arch)):
            yield dict(program=program, arguments=arguments, arch=arch, **row)


def cuda_times(printed: str) -> list:
    """The timed lines of a CUDA program's output, as dictionaries."""
    return [{"name": name, "median_ms": float(median), "q1_ms": float(q1), "q3_ms": float(q3),
             "gb_per_s" if unit == "GB/s" else "tflops": float(rate)}
            for name, median, q1, q3, rate, unit in CUDA_TIME.findall(printed)]


SUITES = {"vector_add": vector_add, "cuda_programs": cuda_programs,
          "softmax_and_matmul": bench_matrix.softmax_and_matmul,
          "flash_attention_v1": bench_attention.flash_attention_v1,
          "flash_attention_v2": bench_attention.flash_attention_v2}


def measure(name: str) -> dict:
    """Run one suite on this machine's GPU: provenance, ceilings, what it is, and a row per kernel and size."""
    return dict(**provenance(), ceilings=ceilings(), what=SUITES[name].__doc__, rows=list(SUITES[name]()))


def record(name: str) -> dict:
    """The record of one suite: measured now if there is a GPU, otherwise figures/h200/<name>.json."""
    return recorded(name) if device.INTERPRETED else measure(name)


def recorded(name: str) -> dict:
    """A measurement recorded on an H200, figures/h200/<name>.json."""
    return json.loads((ROOT / "figures" / "h200" / f"{name}.json").read_text())


def main(names):
    """Run the named suites, or all, and write their JSON."""
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        sys.exit(f"there is no suite {unknown[0]!r}; the suites are {', '.join(SUITES)}")
    if device.INTERPRETED:
        sys.exit("nothing to measure: this machine has no NVIDIA GPU, and times from Triton's interpreter mean nothing")
    for name in names or SUITES:
        print(f"measuring {name} ...", flush=True)
        save(name, measure(name))


if __name__ == "__main__":
    main(sys.argv[1:])
