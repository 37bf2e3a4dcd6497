"""How the course measures: times from CUDA events, and where, when and from which commit a number comes."""
import datetime
import json
import os
import re
import subprocess
import sys

from helpers import ROOT, cuda, device                   # device before triton: it says why

import torch
import triton
from triton.testing import do_bench


def timing(fn) -> dict:
    """Median and quartiles of fn's time in ms, and the most memory in bytes it held beyond what was there before."""
    q1, median, q3 = do_bench(fn, warmup=50, rep=200, quantiles=[0.25, 0.5, 0.75])
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fn()
    return dict(median_ms=median, q1_ms=q1, q3_ms=q3, peak_bytes=torch.cuda.max_memory_allocated() - before)


def provenance() -> dict:
    """Device, driver, versions, date, commit and command of this measurement. A dirty tree is marked as such.

    The commit comes from git, or from the environment variable COMMIT. RuntimeError if neither knows it.
    """
    run = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.strip()
    commit = run("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or os.environ.get("COMMIT")
    if not commit:
        raise RuntimeError("there is no git repository here: set COMMIT to the commit that is measured")
    return dict(device=torch.cuda.get_device_name(),
                driver=run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
                torch=torch.__version__, triton=triton.__version__, cuda=torch.version.cuda,
                cudnn=torch.backends.cudnn.version(), nvcc=run(cuda.find_nvcc(), "--version").splitlines()[-2],
                date=str(datetime.date.today()), commit=commit,
                command=f"python -m helpers.bench {' '.join(sys.argv[1:])}".strip())


def save(name: str, record: dict):
    """Write figures/<device>/<name>.json, and say so."""
    folder = ROOT / "figures" / re.sub(r"\W+", "_", record["device"].replace("NVIDIA", "").strip().lower())
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(record['rows'])} rows in {(folder / name).relative_to(ROOT)}.json", flush=True)


def ceilings() -> dict:
    """What this card does at most: a device-to-device copy (GB/s, reads plus writes) and a float16 product (TFLOP/s)."""
    a = torch.randn(2**30, device="cuda").to(torch.float16)
    b = torch.empty_like(a)
    copy = do_bench(lambda: b.copy_(a), warmup=500, rep=500, return_mode="median")
    x, y = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.float16)
    product = do_bench(lambda: x @ y, warmup=500, rep=500, return_mode="median")
    return dict(copy_gb_per_s=2 * a.numel() * 2 / copy / 1e6, matmul_tflops=2 * 8192**3 / product / 1e9)


def verified(name: str, got: torch.Tensor, want: torch.Tensor, bound: float, where: str) -> float:
    """The relative error (2-norm) of got against a more exact want. AssertionError unless it is below the bound."""
    error = ((got.double() - want).norm() / want.norm()).item()
    if not error < bound:                                # NaN as well
        raise AssertionError(f"{name} is off by {error:.1e} at {where}: not timed")
    return error
