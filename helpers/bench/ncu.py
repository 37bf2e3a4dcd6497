"""What the hardware's counters say of our kernels: `python -m helpers.bench.ncu`, on an NVIDIA GPU with Nsight Compute.

Writes figures/<device>/traffic.json (the bytes that the first FlashAttention kernel moves at each length, with cold
caches, beside those by formula and those counted in the interpreter) and figures/<device>/cuda_profile.json (the CUDA
programs). Needs `ncu` and the permission to read counters.
"""
import csv
import re
import shutil
import sys

from helpers import cuda, device, lessons, process, reference
from helpers.bench import clock
from helpers.interpreter import traffic
from helpers.records import save

import torch

LESSON, FUNCTION, KERNEL = "flash_attention_triton", "flash_attention_v1", "flash_attention_v1_kernel"
D, TILES = 64, dict(BLOCK_M=64, BLOCK_N=64, BLOCK_V=64)
LENGTHS = [1024, 2048, 4096, 8192, 16384, 262144]        # with the last, k and v alone are larger than an H200's L2
COUNTED = 4096                                           # up to here the interpreter takes seconds
TRAFFIC = {                                              # our name: Nsight Compute's
    "dram_read_bytes": "dram__bytes_read.sum", "dram_write_bytes": "dram__bytes_write.sum",
    "l2_bytes": "lts__t_bytes.sum",                      # all that passes L2: both sides, and between its halves
    "l2_to_sm_bytes": "lts__t_sectors_srcunit_tex_op_read.sum",
    "sm_to_l2_bytes": "lts__t_sectors_srcunit_tex_op_write.sum",
    "l2_to_l1_bytes": "l1tex__m_xbar2l1tex_read_bytes.sum", "asked_bytes": "smsp__sass_data_bytes_mem_global.sum",
    "asked_load_bytes": "smsp__sass_data_bytes_mem_global_op_ld.sum",
    "asked_copy_to_shared_bytes": "smsp__sass_data_bytes_mem_global_op_ldgsts.sum",
    "asked_store_bytes": "smsp__sass_data_bytes_mem_global_op_st.sum"}
CUDA_RUNS = [("vec_add.cu", [2**28], 2), ("matrix_add_mul.cu", [4096] * 3, 4)]   # and how many kernels each launches
CUDA_PROFILE = {
    "dram_read_bytes": "dram__bytes_read.sum", "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "issue_slots_percent": "sm__inst_issued.avg.pct_of_peak_sustained_elapsed",
    "l1_hit_percent": "l1tex__t_sector_hit_rate.pct",
    "l1_data_path_percent": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed"}
WHOLE = {"byte": 1, "sector": 32, "ns": 1, "register/thread": 1, "": 1}                 # units of whole numbers, in ours
UNITS = [*WHOLE, "%", "inst"]


def find(tool: str) -> str:
    """Where a tool of NVIDIA's lies, on the PATH or with CUDA. RuntimeError if it is in neither place."""
    found = shutil.which(tool) or shutil.which(tool, path="/usr/local/cuda/bin")
    if not found:
        raise RuntimeError(f"there is no {tool}, neither on the PATH nor with CUDA")
    return found


def listing(ncu: str, metrics: dict, program: list, *options: str, limit_s=process.LIMIT_S) -> str:
    """What Nsight Compute and the program print when it runs program. RuntimeError with ncu's words if it fails."""
    status, out, err = process.output(ncu, "--csv", "--print-units", "base", "--clock-control", "none", *options,
                                      "--metrics", ",".join(metrics.values()), *program, limit_s=limit_s)
    if "ERR_NVGPUCTRPERM" in out + err:
        raise RuntimeError("the driver lets only administrators read the GPU's counters here (ERR_NVGPUCTRPERM)")
    if status != 0:
        raise RuntimeError(f"ncu ended with status {status}: {(out + err).strip()[-500:]}")
    return out


def counters(ncu: str, metrics: dict, program: list, *options: str) -> list:
    """Run program under Nsight Compute; {"kernel": name, our name of a metric: value} for each launch.

    RuntimeError with ncu's words if it fails.
    """
    return parse(listing(ncu, metrics, program, *options), metrics)


def parse(printed: str, metrics: dict) -> list:
    """For each launch in what `ncu --csv` printed: kernel and metrics by our names, bytes or percent.

    What this GPU cannot count is left out. ValueError if there is no table, or a unit that is unknown.
    """
    lines = printed.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError(f"Nsight Compute printed no table, but: {printed.strip()[-500:]}")
    names, found = {theirs: ours for ours, theirs in metrics.items()}, {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        launch = found.setdefault(int(row["ID"]), dict(kernel=row["Kernel Name"].split("(")[0]))
        name, value, unit = row["Metric Name"], row["Metric Value"].replace(",", ""), row["Metric Unit"]
        if name not in names or not re.fullmatch(r"[\d.]+(e\+?\d+)?", value):
            continue                                     # "n/a"
        if unit not in UNITS:
            raise ValueError(f"{name} came in {unit!r}: expected {', '.join(UNITS)}")
        launch[names[name]] = round(float(value) * WHOLE[unit]) if unit in WHOLE else float(value)
    return [found[launch] for launch in sorted(found)]


def launches():
    """What runs under Nsight Compute for `measure_traffic`: a launch for each length, its result compared."""
    v1 = getattr(getattr(lessons, LESSON), FUNCTION)
    for N in LENGTHS:
        q, k, v = torch.randn(3, N, D, device="cuda").to(torch.float16)
        o, want = v1(q, k, v, tiles=TILES), reference.torch_attention(q[:256].double(), k.double(), v.double())
        clock.verified(FUNCTION, o[:256], want, 2e-3, f"N = {N}")


def known_to(ncu: str, metrics: dict) -> dict:
    """Those of the metrics that this GPU has."""
    _, listed, _ = process.output(ncu, "--query-metrics")
    return {ours: theirs for ours, theirs in metrics.items() if re.search(rf"^{theirs.split('.')[0]}\b", listed, re.M)}


def measure_traffic(ncu: str) -> dict:
    """The record "traffic". RuntimeError if Nsight Compute fails, ValueError if a launch is missing."""
    metrics = known_to(ncu, TRAFFIC)
    found = counters(ncu, metrics, [sys.executable, "-m", "helpers.bench.ncu", "launches"], "--cache-control", "all",
                     "--kernel-name", KERNEL)
    if len(found) != len(LENGTHS):
        raise ValueError(f"Nsight Compute saw {len(found)} launches of {KERNEL}, expected {len(LENGTHS)}")
    by_formula = lessons.flash_attention_numpy.bytes_outer_over_queries
    rows = [dict(N=N, D=D, dtype="float16", formula_bytes=by_formula(N, D, TILES["BLOCK_M"]), counted_bytes=_counted(N))
            | row for N, row in zip(LENGTHS, found)]
    what = "What the hardware moves when the first FlashAttention kernel runs, beside what it asks for."
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return dict(metrics=metrics, tiles=TILES, l2_cache_bytes=l2, what=what, rows=rows)


def _counted(N):
    """Bytes that the kernel loads and stores by the interpreter's count, or None where that takes too long."""
    if N > COUNTED:
        return None
    moved = traffic.of(LESSON, FUNCTION, *[(N, D)] * 3, tiles=TILES)
    return moved.total("load").bytes + moved.total("store").bytes


def measure_cuda_profile(ncu: str) -> dict:
    """The record "cuda_profile": the first launch of each kernel of the CUDA programs."""
    arch = "sm_%d%d" % torch.cuda.get_device_capability()
    rows = []
    for program, arguments, number in CUDA_RUNS:
        found = counters(ncu, CUDA_PROFILE, [cuda.build(program, arch), *arguments], "--launch-count", str(number))
        rows += [dict(program=program, arguments=arguments, **row) for row in found]
    what = "What the hardware's counters say of the CUDA programs."
    return dict(metrics=CUDA_PROFILE, arch=arch, what=what, rows=rows)


def main():
    """Measure and write both records."""
    if device.INTERPRETED:
        sys.exit("nothing to measure: this needs an NVIDIA GPU and Nsight Compute's `ncu`")
    try:
        ncu = find("ncu")
        where = clock.provenance("python -m helpers.bench.ncu")              # it refuses where nobody knows the commit
        where["ncu"] = re.search(r"Version (\S+)", process.output(ncu, "--version")[1])[1]
        for name, measure in dict(traffic=measure_traffic, cuda_profile=measure_cuda_profile).items():
            save(name, where | measure(ncu))
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    launches() if sys.argv[1:] == ["launches"] else main()
