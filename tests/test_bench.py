"""The suites at sizes the interpreter can do, with a clock that is made up; resuming, the budget, the progress line."""
import itertools
import json
import subprocess
import sys
import types

import pytest
import torch

from helpers import bench, device, records
from helpers.bench import __main__ as command, attention, claims, clock, decoding, host, kernels, programs, run

pytestmark = pytest.mark.skipif(not device.INTERPRETED, reason="on a GPU the suites run for real, with `make bench`")
TIMES = dict(median_ms=2.0, q1_ms=1.5, q3_ms=2.5, calls=5, peak_bytes=64)
WHERE = dict(device="NVIDIA H200", driver="1", torch="2", triton="3", cuda="13", cudnn=9, nvcc="13", date="today",
             commit="abc", command="here")


@pytest.fixture
def small(monkeypatch):
    """Tiny sizes, and every call lasts 2 ms."""
    def timing(fn):
        fn()
        return dict(TIMES)
    monkeypatch.setattr(clock, "timing", timing)
    monkeypatch.setattr(clock, "call_times", lambda fn, calls, scratch: [fn() is None or 1.0])
    monkeypatch.setattr(clock, "replayed", lambda make: (make(), dict(replayed=False)))
    sizes = {attention: dict(TOKENS=64, HIDDEN=128, ONE_HEAD=[48], FLEX_LENGTHS=[], LENGTHS=[32], WIDE_LENGTHS=[],
                             LAST=16),
             claims: dict(BATCHES=[2], SHORT_TO_LONG=[16, 40], LAST=16, TABLE_LENGTH=40,
                          PRODUCT=256,
                          SHAPES=[(1, 2, 48, 32), (1, 1, 48, 64)]),
             programs: dict(VECTORS=[1000], ELEMENTS=2**10, LENGTHS=[256], SIZES=[32])}
    for module, values in sizes.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(attention._over_lengths, "__defaults__", ([64], ()))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    # PyTorch's fused backends are on the GPU only; its own choice stands in for them
    monkeypatch.setattr(kernels, "sdpa_kernel", lambda backend: run.contextlib.nullcontext())


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Records are written into a folder of the test's own, by a device that is not there."""
    (tmp_path / "figures").mkdir()
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(device, "INTERPRETED", False)
    monkeypatch.setattr(clock, "provenance", lambda command: dict(WHERE))
    monkeypatch.setattr(clock, "ceilings", lambda: dict(copy_gb_per_s=4000, matmul_tflops=600))
    return tmp_path / "figures" / "h200"


def measured(suite):
    """All rows of a suite, measured now."""
    return [row for job in bench.SUITES[suite]() for row in run.rows_of(*job)]


# what the suites measure

def names(rows):
    return list(dict.fromkeys(row["name"] for row in rows))


SDPA = ["standard", "SDPA flash", "SDPA cudnn", "SDPA efficient"]
VERSIONS = ["v2", "v3", "v4"]
EXPECTED = {"flash_attention_v1": (["v1", *SDPA], 3 * 5),
            "forward": ([*VERSIONS, "v3 fp8", "v4 fp8", *SDPA, kernels.FA4], 2 * 2 * 10),
            "backward": (["ours", "v4", *SDPA, kernels.FA4], 2 * 2 * 7),
            "backward_ladder": (["two walks", "one walk", "v4", "SDPA cudnn", kernels.FA4], 2 * 2 * 5),
            "ladder": (["v2", "descriptors", "1 stage", "2 stages", "3 stages", "4 stages", "tiles", "tiles, pointers",
                        "tuned", "specialized", "fp8 kernel"], 4 * 11),
            "lengths_and_batches": (["standard", *VERSIONS, "SDPA flash"], 2 * 5),
            "table_8192": (["v1, 1-D grid", "v1", *VERSIONS, *SDPA, "v3 fp8", "v4 fp8"], 3 * 9 + 2)}


@pytest.mark.parametrize("suite", EXPECTED)
def test_a_suite_at_small_sizes(small, suite):
    rows = measured(suite)
    assert (sorted(names(rows)), len(rows)) == (sorted(EXPECTED[suite][0]), EXPECTED[suite][1])
    assert all(("error" in row) == (row["name"] == kernels.FA4) for row in rows)
    for row in (row for row in rows if row["name"] != kernels.FA4):
        work = (4 * row["batch"] * row["heads"] * row["N"]**2 * row["D"] / (2 if row["is_causal"] else 1)
                * (2.5 if suite.startswith("backward") else 1))
        assert row["tflops"] == pytest.approx(work / 2 / 1e9) and row["median_ms"] == 2.0 and row["peak_bytes"] == 64
        assert 0 < row["relative_error"] < (0.2 if "fp8" in row["name"] else 5e-3)
        assert row["dtype"] == ("float8_e4m3fn" if "fp8" in row["name"] else "float16")
        assert "replayed" in row                         # its times are of a CUDA graph
    json.dumps(rows)


def test_types_at_small_sizes(small):
    rows = measured("types")
    products, attended = [r for r in rows if "n" in r], [r for r in rows if "N" in r]
    assert [r["dtype"] for r in products] == ["float32", "float16", "bfloat16", "float8_e4m3fn"]
    assert all(r["tflops"] == pytest.approx(2 * 256**3 / 2 / 1e9) for r in products[:3])
    assert {r["dtype"] for r in attended} == {"float32", "float16", "bfloat16", "float8_e4m3fn"}
    bounds = dict(float32=1e-5, float16=5e-3, bfloat16=5e-2, float8_e4m3fn=0.5)
    for row in attended:
        assert "error" in row or row["largest_difference"] <= bounds[row["dtype"]]
        assert row["name"] != "standard" or row["largest_difference"] == 0
    assert not [r for r in attended if "error" in r and r["name"] in VERSIONS]


def test_vectors_softmax_and_products_at_small_sizes(small):
    added = {row["name"]: row["gb_per_s"] for row in measured("vector_add")}
    assert added == dict(copy=0.004, torch=0.006, triton=0.006)
    rows = measured("softmax_and_matmul")
    assert [(row["operation"], row["name"]) for row in rows] == (
        [("softmax", name) for name in ("copy", "five steps", "torch", "triton")]
        + [("matmul", name) for name in ("naive", "tile of 32", "autotuned", "torch")])
    assert rows[0]["gb_per_s"] == 2 * 4 * 2**10 / 2 / 1e6 and rows[-1]["tflops"] == 2 * 32**3 / 2 / 1e9
    assert [row["name"] for row in rows if "tile" in row] == ["autotuned"]


@pytest.mark.parametrize("name,before", [("softmax", 3), ("matmul", 1)])
def test_a_wrong_softmax_or_product_is_not_timed(small, monkeypatch, name, before):
    lesson = getattr(programs.lessons, f"{name}_triton")
    wrong = types.SimpleNamespace(**vars(lesson) | {name: lambda *tensors, **tiles: tensors[0] * float("nan")})
    rows = []
    with pytest.raises(AssertionError, match="is off by nan at .*: not timed"):
        for job in getattr(programs, f"_{name}")(wrong):
            rows += run.rows_of(*job)
    assert len(rows) == before                           # those that came before it


def test_a_kernel_after_a_rest_and_under_load(small, monkeypatch):
    calls = []
    def call_times(fn, n, scratch):
        calls.append(n)
        return [200.0 if len(calls) % 3 == 1 else 400.0] * n
    monkeypatch.setattr(clock, "call_times", call_times)
    monkeypatch.setattr(attention.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    seen = types.SimpleNamespace(stdout="1800, 690.5\n")
    monkeypatch.setattr(attention.subprocess, "run", lambda *command, **options: seen)
    rows = measured("after_a_rest")
    assert names(rows) == ["v3", "v4", "SDPA flash", "SDPA cudnn"] and not [row for row in rows if "error" in row]
    for row in rows:
        assert (row["rested_ms"], row["median_ms"], row["clock_mhz"], row["watts"]) == (200.0, 400.0, 1800, 690.5)
        assert row["rested_tflops"] == pytest.approx(2 * row["tflops"]) == pytest.approx(4 * 128 * 64**2 / 200 / 1e9)
    assert calls == 4 * [20, 10, 20]


def test_the_first_call_is_measured_in_processes_of_their_own(elsewhere, monkeypatch):
    calls = []
    def call(module, function, name, TRITON_CACHE_DIR):
        host.Path(TRITON_CACHE_DIR).mkdir(exist_ok=True)
        calls.append(name)
        return dict(first_ms=9.0, second_ms=1.0)
    monkeypatch.setattr(host.process, "call", call)
    rows = run.run_suite("first_call", WHERE)
    assert [(r["name"], r["cache"]) for r in rows] == [("standard", "none"), *(
        (name, cache) for name in VERSIONS for cache in ("empty", "filled"))]
    assert calls == ["standard", "v2", "v2", "v3", "v3", "v4", "v4"] and rows[1]["first_ms"] == 9.0
    calls.clear()                                        # interrupted in between: the cache is filled first
    path = run.partial("first_call", WHERE)
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:3]))
    assert run.run_suite("first_call", WHERE) == rows
    assert calls == ["v2", "v2", "v3", "v3", "v4", "v4"]


def test_the_first_and_the_second_call(small, monkeypatch):
    monkeypatch.setattr(host, "FIRST", dict(batch=1, heads=1, N=32, D=32))
    found = host.first_and_second("v4")
    assert found["first_ms"] > 0 and found["second_ms"] > 0 and found["median_ms"] == 2.0


def test_a_launch_is_timed_by_the_wall_clock(elsewhere, monkeypatch):
    for name, value in dict(SHORT=dict(batch=1, heads=1, N=32, D=32), ROUNDS=3, CALLS=2).items():
        monkeypatch.setattr(host, name, value)
    rows = run.run_suite("launch", WHERE)
    assert [(r["name"], r["is_causal"]) for r in rows] == [
        (name, is_causal) for is_causal in (False, True) for name in (*VERSIONS, "SDPA")]
    assert all(0 < r["q1_ms"] <= r["median_ms"] <= r["q3_ms"] and r["calls"] == 6 for r in rows)


def test_decoding_at_small_sizes(small, monkeypatch):
    for name, value in dict(HEADS=4, D=16, BATCHES=(1, 2), KV_HEADS=(2,), LENGTHS=(64, 256), USUAL=(2, 2, 64), FLEX=[],
                            MOST=2**15, SHORT=64, CALLS=2).items():
        monkeypatch.setattr(decoding, name, value)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    rows = measured("decoding")
    usual = ["ours", *(f"ours, pages of {page}" for page in (16, 32, 64)), "ours, FP8", "SDPA flash", "SDPA cudnn"]
    found = {}
    for row in rows:
        found.setdefault((row["batch"], row["N"]), []).append(row)
    assert {shape: names(of) for shape, of in found.items()} == {
        (1, 64): ["ours", "ours, pages of 64", "SDPA flash", "SDPA cudnn", "FlashAttention-4"],
        (1, 256): ["ours", "ours, pages of 64", "SDPA flash", "SDPA cudnn", "FlashAttention-4"],
        (2, 64): [*usual, "FlashAttention-4"]}           # what is larger than MOST is left out
    for row in rows:
        assert ("error" in row) == (row["name"] == "FlashAttention-4")
        if "error" not in row:
            size = 2 * row["batch"] * 2 * row["N"] * 16
            moved = size + 4 * size / 16 if "FP8" in row["name"] else 2 * size
            assert row["gb_per_s"] == pytest.approx(moved / 2 / 1e6)
            assert ("call_ms" in row) == (row["batch"] == 1 and row["N"] == 64)


# what is not timed

def attend(**changed):
    """Rows of kernels that return what they make of the exact result."""
    def returning(fn):
        return lambda q, k, v: fn(torch.softmax(q.double() @ k.double().mT * 32**-0.5, -1) @ v.double())
    fns = {name: returning(fn) for name, fn in changed.items()}
    return [row for job in attention.compared(fns, (1, 1, 32, 32)) for row in run.rows_of(*job)]


def fail(problem):
    def failing(exact):
        raise problem
    return failing


def test_a_wrong_result_of_ours_ends_the_suite(small):
    for wrong in (lambda exact: 1.01 * exact, lambda exact: exact * float("nan")):
        with pytest.raises(AssertionError, match="v2 is off by .* at N = 32: not timed"):
            attend(v2=wrong)
    with pytest.raises(RuntimeError, match="illegal"):
        attend(v2=fail(RuntimeError("an illegal memory access")))


def test_a_failing_peer_is_a_row_with_the_reason(small):
    rows = attend(**{"SDPA cudnn": fail(RuntimeError("No available\nkernel")), "SDPA flash": lambda exact: 2 * exact,
                        "standard": fail(torch.OutOfMemoryError("tried to allocate")), "v2": lambda exact: exact})
    assert [row.get("error") for row in rows[:1] + rows[2:]] == ["No available kernel", "out of memory", None]
    assert "is off by" in rows[1]["error"] and not any("median_ms" in row for row in rows[:3])
    assert attend(v3=fail(ValueError("q has D = 320")))[0]["error"] == "q has D = 320"     # a refusal
    assert attend(v3=fail(torch.OutOfMemoryError()))[0]["error"] == "out of memory"


def test_fp8_is_held_against_a_bound_of_its_own(small):
    assert "error" not in attend(**{"v3 fp8": lambda exact: 1.05 * exact})[0]
    with pytest.raises(AssertionError):
        attend(**{"v3 fp8": lambda exact: 1.3 * exact})


def test_wrong_gradients_end_the_suite(small, monkeypatch):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, is_causal):
            return attention.reference.torch_attention(q, k, v, is_causal=is_causal)
        @staticmethod
        def backward(ctx, do):
            return do, do, do, None
    monkeypatch.setattr(kernels, "flash", lambda is_causal: lambda q, k, v: Wrong.apply(q, k, v, is_causal))
    with pytest.raises(AssertionError, match="dq of ours is off by"):
        measured("backward")


# the clock

class Gpu:
    """A GPU with a clock of its own: the first call of a kernel takes 100 ms, later ones 3, 4 and 5 in turn."""

    def __init__(self, monkeypatch, lasting=(3.0, 4.0, 5.0)):
        self.now, self.calls, self.flushes, lasting = 0.0, 0, 0, itertools.cycle(lasting)
        def fn():
            self.now += 100 if not self.calls else next(lasting)
            self.calls += 1
        self.fn, gpu = fn, self
        class Event:
            def __init__(self, enable_timing):
                pass
            def record(self):
                self.at = gpu.now
            def elapsed_time(self, end):
                return end.at - self.at
        class Scratch:
            def zero_(self):
                gpu.flushes, gpu.now = gpu.flushes + 1, gpu.now + 50
        peaks = iter((1000, 1024))
        for name, value in dict(Event=Event, synchronize=lambda: None, reset_peak_memory_stats=lambda: None,
                                memory_allocated=lambda: next(peaks), max_memory_allocated=lambda: next(peaks)).items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(clock.torch, "empty", lambda *size, **options: Scratch())


def test_timing_leaves_out_warm_up_and_flush(monkeypatch):
    gpu = Gpu(monkeypatch)
    rests = []
    monkeypatch.setattr(clock.time, "sleep", lambda seconds: rests.append((seconds, gpu.calls)))
    gpu.fn()                                             # the check before
    found = clock.timing(gpu.fn)
    assert found == dict(median_ms=4.0, q1_ms=3.0, q3_ms=5.0, calls=50, peak_bytes=24)
    assert gpu.flushes == gpu.calls - 1 == 1 + 25 + 50   # once for how long it takes, 75 ms to warm up, then timed
    assert rests == [(0.05, 2)]                          # before the warm-up


@pytest.mark.parametrize("ms,calls", [(1000.0, 5), (0.001, 1000)])
def test_long_and_short_calls_are_timed_often_enough(monkeypatch, ms, calls):
    gpu = Gpu(monkeypatch, lasting=[ms])
    gpu.fn()
    found = clock.timing(gpu.fn)
    assert found["calls"] == calls and found["median_ms"] == pytest.approx(ms)


@pytest.mark.parametrize("captured", [True, False])
def test_a_call_is_replayed_or_launched_as_it_is(monkeypatch, captured):
    result, now, seen = torch.zeros(3), [], []
    class Graph(run.contextlib.nullcontext):
        replay = lambda self: result.fill_(1)
        graphsafe_set_state = graphsafe_get_state = lambda self, *state: seen.append("generator")
        wait_stream = lambda self, other: None
        __enter__, __exit__ = lambda self: now.append(1), lambda self, *problem: now.clear()
    for name in ("CUDAGraph", "Stream", "stream", "graph", "current_stream", "synchronize", "reset_peak_memory_stats",
                 "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda *given, **options: Graph())
    peaks = iter((8, 24))
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: next(peaks))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", [Graph()])
    monkeypatch.setattr(clock.torch, "Generator", lambda device: Graph())
    monkeypatch.setattr(clock, "capturing", Graph)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda index, pool: seen.append("pool"), raising=False)
    def call():
        seen.append(len(now))
        if len(now) > 1 and not captured:
            raise RuntimeError("not permitted when a stream is capturing")
        return result
    launch, facts = clock.replayed(lambda: call)
    assert facts == dict(replayed=captured, peak_bytes=16) and result.isnan().all() == captured
    assert launch() is result and (result == float(captured)).all()
    assert seen == [1, 1, 2] + ([] if captured else ["generator", "generator", "pool", 0])       # 2: while it is captured


# one run, interrupted and resumed

def suite_of(*seen, stop=None):
    """A suite of four rows that notes what it really measures, and breaks off at one of them."""
    def suite():
        """Four numbers."""
        for N in range(4):
            def square(N=N):
                if N == stop:
                    raise KeyboardInterrupt
                seen[0].append(N)
                return dict(square=N * N)
            yield dict(name="four", N=N), square
    suite.seconds, suite.gpus = 1, 1
    return suite


@pytest.fixture
def four(monkeypatch):
    """Runs that suite under its name."""
    def run_four(*seen, stop=None, where=WHERE, **options):
        monkeypatch.setitem(run.SUITES, "four", suite_of(*seen, stop=stop))
        return run.run_suite("four", where, **options)
    return run_four


def test_a_stopped_suite_goes_on_where_it_was(elsewhere, four):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        four(seen, stop=2)
    path = run.partial("four", WHERE)
    path.write_text(path.read_text() + '{"name": "fo')   # killed in the middle of a line
    with pytest.raises(KeyboardInterrupt):
        four(seen, stop=3)
    shown = []
    rows = four(seen, show=shown.append)
    assert seen == [0, 1, 2, 3] and rows == shown == [dict(name="four", N=N, square=N * N) for N in range(4)]
    assert len(path.read_text().splitlines()) == 5       # complete, until the record is written


def test_a_job_of_several_rows(elsewhere, monkeypatch):
    calls = []
    def suite():
        for n in (1, 2):
            def measure(n=n):
                calls.append(n)
                return [dict(name=name, ms=n) for name in ("add", "multiply")]
            yield dict(n=n, arguments=[n, n]), measure
    monkeypatch.setitem(run.SUITES, "two", suite)
    rows = run.run_suite("two", WHERE)
    assert rows == [dict(n=n, arguments=[n, n], name=name, ms=n) for n in (1, 2) for name in ("add", "multiply")]
    assert run.run_suite("two", WHERE) == rows and calls == [1, 2]


@pytest.mark.parametrize("change", [dict(commit="def"), dict(device="NVIDIA A100"), dict(triton="4"),
                                    dict(commit="abc-dirty")])
def test_rows_of_another_commit_or_device_are_not_kept(elsewhere, four, change):
    first, seen = WHERE | ({"commit": "abc-dirty"} if change == {"commit": "abc-dirty"} else {}), []
    with pytest.raises(KeyboardInterrupt):
        four([], stop=2, where=first)
    there = run.partial("four", WHERE | change)
    if change.get("device"):
        there.parent.mkdir(parents=True)
        run.partial("four", WHERE).rename(there)
    four(seen, where=WHERE | change)
    assert seen == [0, 1, 2, 3]


def test_a_suite_that_is_not_there():
    with pytest.raises(SystemExit, match="there is no suite 'nothing'; the suites are vector_add, "):
        command.main(["types", "nothing"])


def only(monkeypatch, **suites):
    for module in (run, command, bench):
        monkeypatch.setattr(module, "SUITES", suites)


def test_make_bench_writes_complete_suites_only_and_leaves_them_alone(elsewhere, monkeypatch, capsys):
    seen, wrong = [], [True]
    def fails():
        yield dict(name="one"), dict
        if wrong:
            raise AssertionError("v9 is off")
    fails.seconds, fails.gpus = 1, 1
    only(monkeypatch, fails=fails, four=suite_of(seen))
    assert command.main([]) == 1
    assert "fails failed: AssertionError: v9 is off" in capsys.readouterr().err
    assert [path.name for path in elsewhere.glob("*.json")] == ["four.json"]
    record = json.loads((elsewhere / "four.json").read_text())
    assert record["commit"] == "abc" and record["what"] == "Four numbers." and len(record["rows"]) == 4
    assert record["ceilings"]["matmul_tflops"] == 600
    assert [path.name for path in (elsewhere / ".partial").iterdir()] == ["fails.jsonl"]
    wrong.clear()
    assert command.main([]) == 0                           # only what is missing
    assert seen == [0, 1, 2, 3] and (elsewhere / "fails.json").exists()
    assert "complete at abc: four" in capsys.readouterr().out
    assert command.main(["four"]) == 0 and seen == 2 * [0, 1, 2, 3]             # named: measured anew


def test_a_suite_for_more_gpus_than_there_are_is_left_out_unless_it_is_named(elsewhere, monkeypatch):
    seen, several = [], suite_of([])
    both = suite_of(seen)
    both.gpus = 1 + max(1, torch.cuda.device_count())
    only(monkeypatch, both=both, several=several)
    assert command.main([]) == 0 and seen == []
    assert command.main(["both"]) == 0 and seen == [0, 1, 2, 3]


def test_a_run_ends_when_its_time_is_up(elsewhere, monkeypatch):
    seen, ticks = [], itertools.count(0, 100)
    only(monkeypatch, four=suite_of(seen))
    monkeypatch.setattr(run.Progress.__init__, "__defaults__", (lambda: next(ticks),))
    with pytest.raises(SystemExit, match="stopped after .* at row . of four: run the same command again"):
        command.main([])
    left = len(seen)
    assert 0 < left < 4 and not (elsewhere / "four.json").exists()
    monkeypatch.setattr(command, "BUDGET", 1e9)
    command.main([])
    assert seen == [0, 1, 2, 3] and len(json.loads((elsewhere / "four.json").read_text())["rows"]) == 4


def test_a_record_where_there_is_a_gpu_and_where_there_is_none(elsewhere, monkeypatch):
    seen = []
    only(monkeypatch, four=suite_of(seen))
    found = bench.record("four")
    assert seen == [0, 1, 2, 3] == [row["N"] for row in found["rows"]] and found["what"] == "Four numbers."
    assert bench.record("four", name=["four"], N=[3, 1])["rows"] == found["rows"][1::2] and seen[4:] == [1, 3]
    monkeypatch.setattr(device, "INTERPRETED", True)
    records.save("four", found)
    assert bench.record("four", N=[3]) == found and len(seen) == 6


# the progress line, the commit

def test_progress(capsys):
    now = [0.0]
    progress = run.Progress(dict(one=60, two=30), 1000, lambda: now[0])
    progress.begin("one")
    for N in range(10):
        now[0] += 2.5
        progress.row(dict(name="v2", N=N, D=64))
    now[0] = 50
    assert progress.remaining() == 40
    progress.begin("two")
    now[0] = 95
    assert progress.remaining() == 0                     # longer than expected: never negative
    assert capsys.readouterr().out.splitlines() == [
        "1/2 one: 0 rows, begins; 0:00 so far, about 1:30 left",
        "1/2 one: 5 rows, v2 4 64; 0:12 so far, about 1:17 left",
        "1/2 one: 10 rows, v2 9 64; 0:25 so far, about 1:05 left",
        "2/2 two: 0 rows, begins; 0:50 so far, about 0:30 left"]


def test_the_commit_is_marked_dirty_by_code_and_not_by_records(tmp_path, monkeypatch):
    def git(*arguments):
        identity = "-c", "user.name=a", "-c", "user.email=a@b"
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(clock, "ROOT", tmp_path)
    assert clock._commit() == ""
    (tmp_path / "figures" / "h200").mkdir(parents=True)
    kernel, record = tmp_path / "kernel.py", tmp_path / "figures" / "h200" / "four.json"
    for path in (kernel, record):
        path.write_text("1")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        git(*arguments)
    clean = clock._commit()
    assert len(clean) == 12 and "-" not in clean
    record.write_text("2")
    assert clock._commit() == clean
    kernel.write_text("2")
    assert clock._commit() == f"{clean}-dirty"
