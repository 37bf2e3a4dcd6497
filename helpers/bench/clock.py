"""How the course measures: times from CUDA events, and where, when and from which commit a number comes."""
import contextlib
import datetime
import functools
import os
import shutil
import statistics
import subprocess
import time

from helpers import ROOT, cuda, device

import torch
import triton

REST_S, WARM_MS = 0.05, 75                              # before each row: no work at all, then calls that are not timed
ROW_MS = 150                                             # of calls that are timed
FEWEST, MOST = 5, 1000                                   # timed calls of a row, however long or short they are
capturing = functools.cache(torch.cuda.Stream)           # the stream of all captures


def replayed(make):
    """launch, facts: launch() replays a CUDA graph of the call that make() returns, and returns what the call does.

    So a kernel does not wait for the host. The result is NaN before the first replay. facts: whether it is `replayed`,
    and the peak_bytes of a call. A peer's call that cannot be captured is launched as it is.
    """
    stream, graph, pool = capturing(), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call = make()                                    # autograd runs a backward pass on the stream of its forward
        call()                                           # compiles
        peak = held(call)[1]
        try:
            with torch.cuda.graph(graph, pool, stream):
                result = call()
            for x in result if isinstance(result, (tuple, list)) else [result]:
                x.detach().fill_(float("nan"))
        except Exception:
            graph = None
    torch.cuda.synchronize()
    if not graph:                                        # what still believes that it is captured
        index = torch.cuda.current_device()
        torch.cuda.default_generators[index].graphsafe_set_state(torch.Generator("cuda").graphsafe_get_state())
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(index, pool)
        return call, dict(replayed=False, peak_bytes=peak)

    def launch(call=call):                               # whose tensors the graph reads
        graph.replay()
        return result
    return launch, dict(replayed=True, peak_bytes=peak)


def held(call):
    """What call() returns, and the most bytes it held beyond what was there."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    return result, torch.cuda.max_memory_allocated() - before


def timing(fn) -> dict:
    """Median and quartiles of fn's time in ms, how many calls that were, and the most bytes it held beyond what was
    there.

    Each call stands between two CUDA events, and the L2 cache is overwritten before it. fn was called before (its
    result was checked), so nothing is compiled here. A card at its power limit lowers its clock some 60 ms after the
    work began, and further the hotter the kernel before was: so each kernel starts after a rest, and is timed when it
    has been warm.
    """
    scratch = new_scratch()
    (once,), peak = held(lambda: call_times(fn, 1, scratch))
    calls = max(FEWEST, min(MOST, int(ROW_MS / once)))
    time.sleep(REST_S)
    call_times(fn, min(MOST, int(WARM_MS / once)), scratch)
    return quartiles(call_times(fn, calls, scratch)) | dict(calls=calls, peak_bytes=peak)


def new_scratch() -> torch.Tensor:
    """Memory to overwrite between calls, several times as large as any L2 cache."""
    return torch.empty(2**28, dtype=torch.int8, device=device.DEVICE)


def call_times(fn, calls: int, scratch: torch.Tensor) -> list:
    """The ms of each of so many calls of fn, between events; before each, scratch flushes L2."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    for start, end in events:
        scratch.zero_()
        start.record()
        fn()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def quartiles(times: list) -> dict:
    """Median and quartiles of times in ms."""
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return dict(median_ms=median, q1_ms=q1, q3_ms=q3)


def rate(work: float, fn, unit: str = "tflops") -> dict:
    """fn's times, and the TFLOP/s of so many operations; with unit "gb_per_s", the GB/s of so many bytes."""
    times = timing(fn)
    return {unit: work / times["median_ms"] / (1e9 if unit == "tflops" else 1e6), **times}


def verified(name: str, got: torch.Tensor, want: torch.Tensor, bound: float, where: str) -> float:
    """The relative error (2-norm) of got against a more exact want. AssertionError unless it is below the bound."""
    error = ((got.double() - want).norm() / want.norm()).item()
    if not error < bound:                                # NaN as well
        raise AssertionError(f"{name} is off by {error:.1e} at {where}: not timed")
    return error


@functools.cache
def ceilings() -> dict:
    """What this card does at most: a device-to-device copy (GB/s, reads plus writes) and a float16 product (TFLOP/s).

    Measured once a process: every suite of one run is held against the same ceilings.
    """
    a = torch.randn(2**30, device="cuda").to(torch.float16)
    b = torch.empty_like(a)
    b.copy_(a)
    copy = rate(2 * a.nbytes, lambda: b.copy_(a), "gb_per_s")["gb_per_s"]
    x, y = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.float16)
    x @ y
    return dict(copy_gb_per_s=copy, matmul_tflops=rate(2 * 8192**3, lambda: x @ y)["tflops"])


def provenance(command: str) -> dict:
    """Device, driver, versions, date, commit and command of a measurement. A dirty tree is marked as such.

    The commit comes from the environment variable COMMIT (a copy of the tree knows no better), or from git.
    RuntimeError if neither knows it.
    """
    commit = os.environ.get("COMMIT") or _commit()
    if not commit:
        raise RuntimeError("there is no git repository here: set COMMIT to the commit that is measured")
    driver = _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return dict(device=torch.cuda.get_device_name(), driver=driver.split("\n")[0], torch=torch.__version__,
                triton=triton.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(),
                nvcc=_printed(cuda.find_nvcc(), "--version").splitlines()[-2], date=str(datetime.date.today()),
                commit=commit, command=command)


def _commit():
    """HEAD, with "-dirty" behind it if a tracked file differs; the records that a run writes itself do not count."""
    head = _printed("git", "rev-parse", "--short=12", "HEAD") if shutil.which("git") else ""
    changed = head and _printed("git", "diff", "HEAD", "--name-only", "--", ".", ":(exclude)figures/*/*.json")
    return f"{head}-dirty" if changed else head


def _printed(*command):
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
