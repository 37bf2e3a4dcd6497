"""What the hardware's counters say of the CUDA programs: `python -m helpers.ncu_cuda`, on a GPU, with Nsight Compute.

Profiles the first launch of each kernel and writes figures/<device>/cuda_profile.json. Lessons 01 and 02 quote it.
"""
import csv
import shutil
import subprocess
import sys

from helpers import cuda, device
from helpers.measure import provenance
from helpers.records import save

import torch

RUNS = [("vec_add.cu", [2**28], 2), ("matrix_add_mul.cu", [4096] * 3, 4)]        # and how many kernels each launches first
METRICS = {
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "issue_slots_percent": "sm__inst_issued.avg.pct_of_peak_sustained_elapsed",
    "l1_hit_percent": "l1tex__t_sector_hit_rate.pct",
    "l1_data_path_percent": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
}


def profile(ncu: str, program: str, arguments: list, launches: int, arch: str) -> list:
    """A row for each of the first launches: {kernel, and the METRICS}. RuntimeError with ncu's words if it fails."""
    done = subprocess.run([ncu, "--csv", "--print-units", "base", "--clock-control", "none", "--launch-count", str(launches),
                           "--metrics", ",".join(METRICS.values()), cuda.build(program, arch), *map(str, arguments)],
                          capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ncu ended with status {done.returncode}: {(done.stdout + done.stderr).strip()[-500:]}")
    ours, rows = {theirs: name for name, theirs in METRICS.items()}, {}
    for line in csv.DictReader(line for line in done.stdout.splitlines() if line.startswith('"')):
        row = rows.setdefault(line["ID"], dict(program=program, arguments=arguments, kernel=line["Kernel Name"].split("(")[0]))
        if line["Metric Name"] in ours:
            row[ours[line["Metric Name"]]] = float(line["Metric Value"].replace(",", ""))
    return list(rows.values())


def main():
    """Profile both programs and write the record."""
    ncu = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if device.INTERPRETED or not ncu:
        sys.exit("nothing to measure: this needs an NVIDIA GPU and Nsight Compute's `ncu`")
    arch = "sm_%d%d" % torch.cuda.get_device_capability()
    rows = [row for run in RUNS for row in profile(ncu, *run, arch)]
    save("cuda_profile", provenance() | dict(command="python -m helpers.ncu_cuda", metrics=METRICS, arch=arch, rows=rows))


if __name__ == "__main__":
    main()
