"""The suite `profile` without a GPU: what it makes of the words of its tools; and the lesson's kernels on cases."""
import json

import pytest
import torch

from helpers import device, lessons, process
from helpers.bench import ncu, planted, profile, run, sanitizers, traces

MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at add_kernel+0x90 in /tmp/a/b.py:110
=========     by thread (104,0,0) in block (7,0,0)
result: right
========= ERROR SUMMARY: 24 errors
"""
RACECHECK = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at numbers_kernel+0x300 in <exported cells>:86
=========     and Read access at numbers_kernel+0x870 in <exported cells>:93 [396 hazards]
result: wrong
========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)
"""
CONSAN = "<kernel>:93: unknown: block: [0,0,0], thread: [0,0,0] Assertion `Buffer being accessed has outstanding writes.` failed."


def test_what_a_sanitizer_said():
    assert sanitizers.summary(MEMCHECK) == dict(errors=24, words=[
        "Invalid __global__ read of size 4 bytes", "at add_kernel+0x90 in b.py:110"])
    assert sanitizers.summary(RACECHECK) == dict(errors=2, words=[
        "Error: Race reported between Write access at numbers_kernel+0x300 in <exported cells>:86",
        "and Read access at numbers_kernel+0x870 in <exported cells>:93 [396 hazards]"])
    assert sanitizers.assertion(CONSAN) == dict(errors=1, words=["Buffer being accessed has outstanding writes"])
    assert sanitizers.assertion("result: right\n") == dict(errors=0, words=[])
    with pytest.raises(RuntimeError, match="said no more than '========= COMPUTE-SANITIZER'"):
        sanitizers.summary("========= COMPUTE-SANITIZER\n")
    with pytest.raises(RuntimeError, match="the process died: .*out of memory"):
        sanitizers.assertion("RuntimeError: out of memory")


@pytest.mark.parametrize("tool,program,status,out,result", [
    ("memcheck", "add, no mask", 1, MEMCHECK, "right"), ("memcheck", "v2", 1, MEMCHECK.replace("result", ""), "stopped"),
    ("racecheck", "product, no barrier", 1, RACECHECK.replace("result", ""), "wrong"), ("consan", "ring", -6, CONSAN, "stopped")])
def test_the_result_of_a_sanitized_program(monkeypatch, tool, program, status, out, result):
    seen = []
    def output(*command, limit_s, **environment):
        seen.append((command, environment))
        return status, out, ""
    monkeypatch.setattr(process, "output", output)
    monkeypatch.setattr(ncu, "find", lambda tool: tool)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(sanitizers.cuda, "build", lambda text, arch: f"program for {arch}")
    assert sanitizers.sanitized(tool, program)["result"] == result
    (command, environment), = seen
    assert command[:3] == ("compute-sanitizer", "--tool", tool) or tool == "consan"
    assert ("program for sm_90" in command) == (program in sanitizers.SOURCES)
    assert environment.get("TRITON_INSTRUMENTATION_MODE") == ("consan" if tool == "consan" else None)


def test_a_program_that_does_not_end_is_an_error(monkeypatch):
    monkeypatch.setattr(process, "output", lambda *command, **options: (None, "result: right", ""))
    with pytest.raises(RuntimeError, match="did not end within 25 s"):
        sanitizers.sanitized("consan", "ring")


def test_a_row_for_each_call_has_the_launch_of_its_kernel_and_what_warps_do_most():
    waits = {f"waits: {name}": value for name, value in dict(a=1.0, b=5.0, c=2.0, d=2.5, e=0.0).items()}
    launches = [dict(kernel="fill", tensor=9.0), dict(kernel="v2_kernel", tensor=40.0, **waits), dict(kernel="fill"),
                dict(kernel="v2_kernel", tensor=41.0), dict(kernel="nvjet", tensor=90.0, **waits)]
    rows = profile.rows_of([["v2", dict(N=64), "v2_kernel"], ["product", {}, "nvjet"]], launches)
    assert rows[0] == dict(name="v2", N=64, kernel="v2_kernel", tensor=40.0, waits=dict(b=0.476, d=0.238, c=0.19))
    assert rows[1]["tensor"] == 90.0
    with pytest.raises(ValueError, match="saw no launch of v3_kernel for v3"):
        profile.rows_of([["v3", {}, "v3_kernel"]], launches)


def test_a_report_of_a_stand_in_for_ncu(tmp_path, monkeypatch):
    """It prints what the program prints, then its table; and fails as ncu does."""
    table = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n' + "".join(
        f'"{i}","{kernel}","{name}","{unit}","{value}"\n' for i, kernel in enumerate(("fill", "ws_kernel(args)"))
        for name, unit, value in ((profile.COUNTERS["ns"], "ns", "1,500"), (profile.COUNTERS["tensor"], "%", "70.5"),
                                  (profile.WAITS["waits: wait"], "inst", "0.25")))
    program = tmp_path / "ncu"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n==PROF==\n{json.dumps(['v4', dict(N=8), 'ws_kernel'])}\n{table}END\n")
    program.chmod(0o755)
    monkeypatch.setattr(ncu.shutil, "which", lambda tool, path=None: str(program))
    assert profile.counted() == [dict(name="v4", N=8, kernel="ws_kernel", ns=1500, tensor=70.5, waits=dict(wait=1.0))]
    monkeypatch.setattr(ncu.shutil, "which", lambda tool, path=None: None)
    assert profile._or_why(profile.counted) == dict(error="there is no ncu, neither on the PATH nor with CUDA")


def test_a_trace_by_kinds():
    def event(name, ts, dur, cat="kernel"):
        return dict(name=name, ts=ts, dur=dur, cat=cat)
    found = traces.summary([
        event("flash_attention_v2_kernel", 1000, 2000), event("nvjet_sm90", 4000, 500), event("nvjet_sm90", 4500, 500),
        event("void at::native::multi_tensor_apply_kernel<adam>", 6000, 1000), event("some_kernel", 7000, 250),
        event("Memcpy HtoD", 500, 100, "gpu_memcpy"), event("a call of the host", 0, 9999, "cpu_op"), dict(name="mark")])
    assert found == dict(span_ms=6.75, busy_ms=pytest.approx(4.35), launches=6, kinds=[
        ["attention", 1, 2.0], ["matrix products", 2, 1.0], ["AdamW", 1, 1.0], ["elementwise", 1, 0.25], ["copies", 1, 0.1]])


def test_spans_of_one_program():
    events = [dict(pid=pid, tid=f"warp {warp} (line 0)", name=name, ts=10 * i + warp + after, dur=1.5)
              for pid in ("CTA0", "CTA1") for warp in (0, 4) for i in range(20)
              for name, after in (("products", 0), ("softmax", 2))]
    found = traces.spans(events)
    assert len(found) == 2 * 2 * 4 and found[0] == ["warp 0", "products", 0.0, 1.5]
    assert found[5] == ["warp 0", "softmax", 12.0, 1.5] and found[8] == ["warp 4", "products", 4.0, 1.5]


@pytest.mark.skipif(not device.INTERPRETED, reason="on a GPU it would measure")
def test_a_tool_that_fails_is_a_row_with_the_reason(monkeypatch):
    def failing(*arguments, **options):
        raise RuntimeError("no\nsuch tool")
    monkeypatch.setattr(process, "call", failing)
    monkeypatch.setattr(process, "output", failing)
    monkeypatch.setattr(ncu, "find", failing)
    monkeypatch.setattr(sanitizers.cuda, "build", failing)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    rows = [row for job in profile.profile() for row in run.rows_of(*job)]
    assert len(rows) == 3 + len(profile.SANITIZED) and {row["error"] for row in rows} == {"no such tool"}


def test_what_is_planted_can_be_planted():
    lessons.variant(planted.LESSON, *traces.MARKED)
    assert sanitizers.BARRIER in (sanitizers.cuda.CUDA / "matrix_add_mul.cu").read_text()
    assert {sanitizers.EARLY, sanitizers.NO_EMPTY, sanitizers.NO_FULL} <= set(planted.PLANTED)


def test_the_three_ways_to_the_largest_of_each_feature():
    v = torch.randn(2, 300, 64, device=device.DEVICE).half()
    for fn in (lessons.measuring.down_columns, lessons.measuring.whole_rows, profile.largest):
        assert torch.equal(fn(v), v.abs().amax(1).float())
