"""What the hardware moves when lesson 08's kernel runs, beside what it asks for: `python -m helpers.ncu`.

Launches the kernel once for each length under Nsight Compute, with cold caches, and writes figures/<device>/traffic.json.
Each row has the bytes by lesson 07's formula, the bytes counted in the interpreter (for lengths where that is quick), and
the hardware's counters in bytes. Needs an NVIDIA GPU, `ncu`, and the permission to read counters.
"""
import csv
import re
import shutil
import subprocess
import sys

from helpers import ROOT, device, lessons, reference, traffic
from helpers.measure import provenance
from helpers.records import save

import torch

LESSON, FUNCTION, KERNEL = "flash_attention_triton", "flash_attention_v1", "flash_attention_v1_kernel"
D, TILES = 64, dict(BLOCK_M=64, BLOCK_N=64, BLOCK_V=64)
LENGTHS = [1024, 2048, 4096, 8192, 16384, 262144]        # with the last, k and v alone are larger than an H200's L2
COUNTED = 4096                                           # up to here the interpreter takes seconds
METRICS = {                                              # our name: Nsight Compute's, and bytes for a unit of it
    "dram_read_bytes": ("dram__bytes_read.sum", 1),
    "dram_write_bytes": ("dram__bytes_write.sum", 1),
    "l2_bytes": ("lts__t_bytes.sum", 1),                 # all that passes L2: both sides, and between its halves
    "l2_to_sm_bytes": ("lts__t_sectors_srcunit_tex_op_read.sum", 32),
    "sm_to_l2_bytes": ("lts__t_sectors_srcunit_tex_op_write.sum", 32),
    "l2_to_l1_bytes": ("l1tex__m_xbar2l1tex_read_bytes.sum", 1),
    "asked_bytes": ("smsp__sass_data_bytes_mem_global.sum", 1),
    "asked_load_bytes": ("smsp__sass_data_bytes_mem_global_op_ld.sum", 1),
    "asked_copy_to_shared_bytes": ("smsp__sass_data_bytes_mem_global_op_ldgsts.sum", 1),
    "asked_store_bytes": ("smsp__sass_data_bytes_mem_global_op_st.sum", 1),
}
EXTRAS = [name for name in METRICS if name.startswith("asked_") or name == "l2_to_l1_bytes"]     # not on every GPU


def launches():
    """The process that is measured: one launch for each length, each result compared with a reference."""
    v1 = getattr(getattr(lessons, LESSON), FUNCTION)
    for N in LENGTHS:
        q, k, v = torch.randn(3, N, D, device="cuda").to(torch.float16)
        o = v1(q, k, v, tiles=TILES)
        want = reference.torch_attention(q[:256].double(), k.double(), v.double())
        error = ((o[:256].double() - want).norm() / want.norm()).item()
        if not error < 2e-3:                             # NaN as well
            sys.exit(f"{FUNCTION} is off by {error:.1e} at N = {N}: its traffic means nothing")


def command(ncu: str, known: str) -> list:
    """The call of Nsight Compute; `known` is what `ncu --query-metrics` printed, and decides on the extras."""
    listed = lambda name: re.search(rf"^{name.split('.')[0]}\b", known, re.M)
    names = [name for ours, (name, _) in METRICS.items() if ours not in EXTRAS or listed(name)]
    return [ncu, "--csv", "--print-units", "base", "--clock-control", "none", "--cache-control", "all",
            "--kernel-name", KERNEL, "--metrics", ",".join(names), sys.executable, "-m", "helpers.ncu", "launches"]


def parse(printed: str) -> list:
    """For each launch in what `ncu --csv` printed: {our name: bytes}. What this GPU cannot count is left out.

    ValueError if there is no table, or a unit other than bytes and sectors.
    """
    lines = printed.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError(f"Nsight Compute printed no table, but: {printed.strip()[-500:]}")
    names = {theirs: (ours, factor) for ours, (theirs, factor) in METRICS.items()}
    found = {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        launch, value = found.setdefault(int(row["ID"]), {}), row["Metric Value"].replace(",", "")
        if row["Metric Name"] not in names or not re.fullmatch(r"[\d.]+(e\+?\d+)?", value):
            continue                                     # "n/a"
        ours, factor = names[row["Metric Name"]]
        if row["Metric Unit"] != ("byte" if factor == 1 else "sector"):
            raise ValueError(f"{row['Metric Name']} came in {row['Metric Unit']!r}: expected bytes or sectors")
        launch[ours] = round(float(value) * factor)
    return [found[launch] for launch in sorted(found)]


def measure(ncu: str) -> dict:
    """Run Nsight Compute; the record with its provenance. RuntimeError if it fails, ValueError if a launch is missing."""
    run = lambda *arguments: subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    where = provenance()                                 # first: it refuses where nobody knows the commit
    known = run(ncu, "--query-metrics").stdout
    done = run(*command(ncu, known))
    if "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
        raise RuntimeError("the driver lets only administrators read the GPU's counters here (ERR_NVGPUCTRPERM)")
    if done.returncode:
        raise RuntimeError(f"ncu ended with status {done.returncode}: {(done.stdout + done.stderr).strip()[-500:]}")
    counters = parse(done.stdout)
    if len(counters) != len(LENGTHS):
        raise ValueError(f"Nsight Compute saw {len(counters)} launches of {KERNEL}, expected {len(LENGTHS)}")
    by_formula = lessons.flash_attention_numpy.bytes_outer_over_queries
    rows = [dict(N=N, D=D, dtype="float16", formula_bytes=by_formula(N, D, TILES["BLOCK_M"]),
                 counted_bytes=_counted(N), **row) for N, row in zip(LENGTHS, counters)]
    return where | dict(
        command="python -m helpers.ncu", ncu=re.search(r"Version (\S+)", run(ncu, "--version").stdout)[1],
        metrics={ours: theirs for ours, (theirs, _) in METRICS.items()}, tiles=TILES,
        l2_cache_bytes=torch.cuda.get_device_properties(0).L2_cache_size, what=__doc__.splitlines()[0], rows=rows)


def _counted(N):
    """Bytes that the kernel loads and stores by the interpreter's count, or None where that takes too long."""
    if N > COUNTED:
        return None
    moved = traffic.of(LESSON, FUNCTION, *[(N, D)] * 3, tiles=TILES)
    return moved.total("load").bytes + moved.total("store").bytes


def main():
    """Measure and write figures/<device>/traffic.json."""
    if device.INTERPRETED:
        sys.exit("nothing to measure: this machine has no NVIDIA GPU")
    ncu = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if not ncu:
        sys.exit("nothing to measure with: Nsight Compute's `ncu` is neither on the PATH nor in /usr/local/cuda/bin")
    try:
        measured = measure(ncu)
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
    save("traffic", measured)


if __name__ == "__main__":
    launches() if sys.argv[1:] == ["launches"] else main()
