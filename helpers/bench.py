"""Measure on an NVIDIA GPU and record what was measured: `make bench`, or `python -m helpers.bench SUITE ...`.

Each suite writes figures/<device>/<suite>.json: where, when and from which commit it was measured, the ceilings of the
card, and a row per kernel and size with median and quartiles in ms. A result is compared with a reference before its
time is kept. Times are CUDA events around one call, after a warm-up, with the L2 cache overwritten between calls.
"""
import datetime
import json
import os
import re
import subprocess
import sys

from helpers import ROOT, cuda, device, notebook, reference      # before triton: helpers.device says why

import torch
import triton
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from triton.testing import do_bench


def timing(fn) -> dict:
    """Median and quartiles of fn's time in ms, and the most memory in bytes it held beyond what was there before."""
    q1, median, q3 = do_bench(fn, warmup=50, rep=200, quantiles=[0.25, 0.5, 0.75])
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fn()
    return dict(median_ms=median, q1_ms=q1, q3_ms=q3, peak_bytes=torch.cuda.max_memory_allocated() - before)


def provenance() -> dict:
    """Device, driver, versions, date, commit and command of this measurement. A dirty tree is marked as such."""
    run = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.strip()
    commit = run("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or os.environ.get("COMMIT", "unknown")
    return dict(device=torch.cuda.get_device_name(),
                driver=run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
                torch=torch.__version__, triton=triton.__version__, cuda=torch.version.cuda,
                cudnn=torch.backends.cudnn.version(), nvcc=run(cuda.find_nvcc(), "--version").splitlines()[-2], date=str(datetime.date.today()), commit=commit,
                command=f"python -m helpers.bench {' '.join(sys.argv[1:])}".strip())


def ceilings() -> dict:
    """What this card does at most: a device-to-device copy (GB/s, reads plus writes) and a float16 product (TFLOP/s)."""
    a = torch.randn(2**30, device="cuda").to(torch.float16)
    b = torch.empty_like(a)
    copy = do_bench(lambda: b.copy_(a), warmup=500, rep=500, return_mode="median")
    x, y = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.float16)
    product = do_bench(lambda: x @ y, warmup=500, rep=500, return_mode="median")
    return dict(copy_gb_per_s=2 * a.numel() * 2 / copy / 1e6, matmul_tflops=2 * 8192**3 / product / 1e9)


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


def flash_attention_v1():
    """Lesson 08's kernel against standard attention and PyTorch's fused ones: one head, forward, no mask."""
    v1 = notebook.load("08_flash_attention_triton").flash_attention_v1
    peers = {"standard": reference.torch_attention, "v1": v1}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        peers[f"SDPA {backend.name.split('_')[0].lower()}"] = _sdpa(backend)
    for D in (64, 128, 256):
        for N in (512, 1024, 2048, 4096, 8192, 16384, 32768):
            q, k, v = torch.randn(3, N, D, device="cuda").to(torch.float16)
            want = reference.torch_attention(q[:256].double(), k.double(), v.double())
            for name, fn in peers.items():
                error = ((fn(q, k, v)[:256].double() - want).norm() / want.norm()).item()
                if not error < 2e-3:                     # NaN as well
                    raise AssertionError(f"{name} is off by {error:.1e} at N = {N}, D = {D}: not timed")
                row = timing(lambda: fn(q, k, v))
                yield dict(name=name, dtype="float16", N=N, D=D, heads=1, relative_error=error,
                           tflops=4 * N * N * D / row["median_ms"] / 1e9, **row)


def _sdpa(backend):
    def attend(q, k, v):
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]
    return attend


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


SUITES = {"vector_add": vector_add, "flash_attention_v1": flash_attention_v1,
          "cuda_programs": cuda_programs}


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
    folder = ROOT / "figures" / re.sub(r"\W+", "_", torch.cuda.get_device_name().replace("NVIDIA", "").strip().lower())
    folder.mkdir(exist_ok=True)
    for name in names or SUITES:
        print(f"measuring {name} ...", flush=True)
        measured = measure(name)
        (folder / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n")
        print(f"{len(measured['rows'])} rows in {folder.relative_to(ROOT) / name}.json")


if __name__ == "__main__":
    main(sys.argv[1:])
