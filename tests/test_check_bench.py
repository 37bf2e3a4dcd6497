"""Lesson 13's checks catch each mistake alone; the toy GPU behaves as the lesson says."""
import statistics

import pytest

from helpers.check import timing as check_bench
from helpers.check.timing import ToyGPU
from reports import failed, report


# ---------------------------------------------------------------- right versions, and a wrong one for each property

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


def tflops(ms, B, heads, N, D, is_causal=False, backward=False):
    return 4 * B * heads * N * N * D * (0.5 if is_causal else 1) * (2.5 if backward else 1) / ms / 1e9


def share(ms, operations, moved, ceilings, least=max):
    return least(operations / ceilings["matmul_tflops"] / 1e9, moved / ceilings["copy_gb_per_s"] / 1e6) / ms


WRONG = {
    "median_time": (median_time, {
        "the end of the kernel is waited for": lambda gpu, calls: median_time(gpu, calls, wait=False),
        "compiling is not counted": lambda gpu, calls: median_time(gpu, calls, warm_up=False),
        "inputs come from memory, not from the cache": lambda gpu, calls: median_time(gpu, calls, flush=False),
        "overwriting the cache is not counted": lambda gpu, calls: median_time(gpu, calls, settle=False),
        "one slow call in seven changes nothing": lambda gpu, calls: median_time(gpu, calls, average=statistics.mean),
        "one fast call in seven changes nothing": lambda gpu, calls: median_time(gpu, calls, average=min)}),
    "tflops": (tflops, {
        "4 N^2 D operations in a millisecond": lambda **a: 0.5 * tflops(**a),
        "the rate falls as the time grows": lambda ms, **a: tflops(1.0, **a),
        "batches and heads count": lambda B, **a: tflops(B=1, **a),
        "twice the length is four times the work": lambda N, **a: tflops(N=4096, **a),
        "wider heads are more work": lambda D, **a: tflops(D=64, **a),
        "a causal mask halves the work": lambda is_causal, **a: tflops(**a),
        "backward is 2.5 times forward": lambda backward, **a: tflops(**a),
        "causal and backward together": lambda is_causal, backward, **a: tflops(is_causal=is_causal and not backward, backward=backward, **a)}),
    "share": (share, {
        "much arithmetic on few bytes": lambda ms, f, b, c: share(ms, f, b, c) if b > 1e6 else b / c["copy_gb_per_s"] / 1e6 / ms,
        "little arithmetic on many bytes": lambda ms, f, b, c: f / c["matmul_tflops"] / 1e9 / ms,
        "arithmetic and memory work at the same time": lambda ms, f, b, c: share(ms, f, b, c, least=lambda *both: sum(both))})}
CASES = [(name, wrong) for name, (_, wrongs) in WRONG.items() for wrong in wrongs]


@pytest.mark.parametrize("name", WRONG)
def test_the_right_version_passes(capsys, name):
    assert failed(report(getattr(check_bench, name), WRONG[name][0], capsys)) == []


@pytest.mark.parametrize("name,wrong", CASES)
def test_a_wrong_version_fails_its_property_alone(capsys, name, wrong):
    assert failed(report(getattr(check_bench, name), WRONG[name][1][wrong], capsys)) == [wrong]


@pytest.mark.parametrize("name", WRONG)
def test_every_property_has_a_wrong_version(name):
    assert [title for title, _ in getattr(check_bench, name.upper())] == list(WRONG[name][1])


def test_a_flush_is_waited_for_not_subtracted(capsys):
    subtracted = lambda gpu, calls: median_time(gpu, calls, settle=False) - gpu.flush_us
    assert failed(report(check_bench.median_time, subtracted, capsys)) == ["overwriting the cache is not counted"]


def test_the_toy_gpu_works_on_after_the_call_returned():
    gpu = ToyGPU(kernel=200, cached=120, compile=1000, flush=60)
    gpu.kernel()
    assert gpu.clock() == 1005                           # compiled and launched, not done
    gpu.synchronize()
    assert gpu.clock() == 1205
    gpu.kernel()                                         # its inputs are in the cache
    gpu.flush()
    gpu.kernel()
    assert gpu.clock() == 1220
    gpu.synchronize()
    gpu.synchronize()
    assert gpu.clock() == 1205 + 5 + 120 + 60 + 200


def test_the_toy_gpu_is_slow_now_and_then():
    gpu, times = ToyGPU(kernel=10, cached=10, compile=0, slow_every=3), []
    for _ in range(6):
        start = gpu.clock()
        gpu.kernel()
        gpu.synchronize()
        times.append(gpu.clock() - start - 5)
    assert times == [10, 10, 100, 10, 10, 100]
