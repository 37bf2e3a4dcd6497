"""Right and wrong versions of timing, of TFLOP/s and of the share of a ceiling."""
import statistics

from helpers import check


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


def timing(**mistake):
    return lambda gpu, calls: median_time(gpu, calls, **mistake)


def place(part):
    """The time at this part of the sorted times."""
    return lambda times: sorted(times)[int(part * len(times))]


def tflops(ms, B, heads, N, D, is_causal=False, backward=False, half=lambda N: 0.5, times=2.5):
    return 4 * B * heads * N * N * D * (half(N) if is_causal else 1) * (times if backward else 1) / ms / 1e9


def share(ms, operations, moved, ceilings, least=max):
    return least(operations / ceilings["matmul_tflops"] / 1e9, moved / ceilings["copy_gb_per_s"] / 1e6) / ms


def rate(**change):
    """TFLOP/s of these arguments instead of what was asked for."""
    return lambda **arguments: tflops(**arguments | change)


CASES = {
    check.median_time: dict(right=[median_time], wrong={
        "the end of the kernel is waited for": timing(wait=False),
        "compiling is not counted": timing(warm_up=False),
        "inputs come from memory, not from the cache": timing(flush=False),
        "overwriting the cache is not counted": [
            timing(settle=False), lambda gpu, calls: median_time(gpu, calls, settle=False) - gpu.flush_us],
        "one slow call in seven changes nothing": timing(average=statistics.mean),
        "two slow calls in five change nothing": [timing(average=x) for x in (max, place(2 / 3), statistics.mean)],
        "two fast calls in five change nothing": [timing(average=x) for x in (min, place(1 / 3), statistics.mean)]}),
    check.tflops: dict(right=[tflops], wrong={
        "4 N^2 D operations in a millisecond": [lambda **a: 0.5 * tflops(**a), lambda **a: 1000 * tflops(**a)],
        "the rate falls as the time grows": rate(ms=1.0),
        "batches and heads count": [rate(B=1), rate(heads=1)],
        "twice the length is four times the work": rate(N=4096),
        "wider heads are more work": rate(D=64),
        "a causal mask halves the work": [rate(is_causal=False),
                                          lambda **a: tflops(**a, half=lambda N: (N + 1) / (2 * N))],
        "backward is 2.5 times forward": [rate(backward=False), lambda **a: tflops(**a, times=2.0)],
        "causal and backward together": lambda is_causal, **a: tflops(is_causal=is_causal and not a["backward"], **a)}),
    check.share: dict(right=[share], wrong={
        "much arithmetic on few bytes": [lambda ms, f, b, c: b / c["copy_gb_per_s"] / 1e6 / ms,
                                         lambda *a: 1 / share(*a), lambda *a: share(*a, least=min)],
        "little arithmetic on many bytes": lambda ms, f, b, c: f / c["matmul_tflops"] / 1e9 / ms,
        "arithmetic and memory work at the same time": lambda *a: share(*a, least=lambda *both: sum(both))}),
}
