"""Right and wrong versions of timing, of a verdict on a report, and of the largest of each feature."""
import statistics

from helpers import check  # (before triton: helpers.device says why)
from mistakes.ways import beyond_the_end, mistaken, when

import torch
import triton
import triton.language as tl


def median_time(gpu, calls, warm_up=True, flush=True, settle=True, wait=True, average=statistics.median):
    if warm_up:
        gpu.kernel()
    times = []
    for _ in range(calls):
        if flush:
            gpu.flush()
        if settle:
            gpu.synchronize()
        start = gpu.clock()
        gpu.kernel()
        if wait:
            gpu.synchronize()
        times.append(gpu.clock() - start)
    return average(times)


timing = mistaken(median_time)


def place(part):
    """The time at this part of the sorted times."""
    return lambda times: sorted(times)[int(part * len(times))]


UNITS = ("tensor", "exp", "issue", "l2", "dram")


def verdict(row, units=UNITS, least=60, out=60):
    name = max([unit for unit in units if unit != "l2" or row["dram"] < out], key=lambda unit: row[unit])
    return name if row[name] >= least else "waiting"


judging = mistaken(verdict)


def without(missing):
    return judging(units=[unit for unit in UNITS if unit != missing])


@triton.jit
def largest_kernel(v_ptr, o_ptr, N, ROWS, D: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
                   COLUMNS: tl.constexpr):
    head, part, first_d = tl.program_id(0), tl.program_id(1), tl.program_id(2) * COLUMNS
    d, largest = first_d + tl.arange(0, COLUMNS), tl.zeros([COLUMNS], tl.float32)
    for first in range(part * ROWS, tl.minimum((part + 1) * ROWS, N), BLOCK):
        n = first + tl.arange(0, BLOCK)
        inside = (n < N if MASKED else n < N // BLOCK * BLOCK)[:, None]
        x = tl.load(v_ptr + (head * N + n[:, None]) * D + d[None, :], mask=inside, other=0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(x).to(tl.float32), axis=0))
    tl.store(o_ptr + (head * tl.num_programs(1) + part) * D + d, largest)


def largest(v, rows=512, masked=True, columns=64, heads=None):
    heads, (N, D), parts = heads or len(v), v.shape[1:], triton.cdiv(v.shape[1], rows)
    o = torch.empty(len(v), parts, D, device=v.device)
    largest_kernel[heads, parts, D // columns](v, o, N, rows, D, 64, masked, columns)
    return o.amax(1)


finding = mistaken(largest)


def beside(v):
    """In PyTorch: no kernel of the reader's reads v."""
    return v.float().abs().amax(1)


LARGEST = {
    "one head": [lambda v: v.float().amax(1), lambda v: v.float().abs().amax(2)],
    "several heads": finding(heads=1),
    "a length that is no multiple of a tile": finding(masked=False),
    "the result is float32": lambda v: largest(v).to(v.dtype),
    "every output element is written": when(largest, lambda v: True, lambda o, v: torch.empty_like(o)),
    "nothing is written outside of the tensors": lambda v: beyond_the_end(largest(v)),
    "sectors of v are fetched whole and once": [beside, finding(columns=1), finding(columns=8),
                                                lambda v: torch.maximum(largest(v), largest(v))]}

CASES = {
    check.median_time: dict(right=[median_time], wrong={
        "the end of the kernel is waited for": timing(wait=False),
        "compiling is not counted": timing(warm_up=False),
        "inputs come from memory, not from the cache": timing(flush=False),
        "overwriting the cache is not counted": [
            timing(settle=False), lambda gpu, calls: median_time(gpu, calls, settle=False) - gpu.flush_us],
        "one slow call in seven changes nothing": timing(average=statistics.mean),
        "two slow calls in five change nothing": [timing(average=x) for x in (max, place(2 / 3), statistics.mean)],
        "two fast calls in five change nothing": [timing(average=x) for x in (min, place(1 / 3), statistics.mean)],
        "as many calls as asked for": lambda gpu, calls: median_time(gpu, 20)}),
    check.verdict: dict(right=[verdict], wrong={
        "the matrix units are busy": without("tensor"), "the unit of exp2 is busy": without("exp"),
        "instructions are issued all the time": without("issue"),
        "the cache is busy": without("l2"), "memory is busy": without("dram"),
        "of two busy units, the busier": lambda row: next((x for x in ("issue", "l2", "tensor", "dram") if row[x] >= 60),
                                                          "waiting"),
        "where memory is busy, the cache is no suspect": [judging(out=101), judging(units=("dram", "l2"))],
        "nothing is busy": [judging(least=0), judging(least=40)],
        "60 percent is busy, and a little less is not": [judging(least=60.1), judging(least=59)],
        "what else is in the report does not matter": lambda row: verdict(row, units=tuple(row))}),
    check.largest_features: dict(right=[largest, finding(rows=2**20)], wrong=LARGEST),
    check.largest_by_many: dict(right=[largest], wrong=LARGEST | {"no program reads more than 512 rows": [
        finding(rows=2**20), finding(rows=1024)]}),
}
