"""What the checks say: reports, exceptions, stubs; and that what nobody wrote, or somebody wrote outside, is seen."""
import ast
import inspect
import re
import statistics

import numpy as np
import pytest
import torch

from helpers import check, device, lessons  # (before triton: helpers.device says why)
from helpers.check import cuda_core, report, simulated
from helpers.check.core import difference, guarded, outside, poisoned, properties, unwritten
from helpers.check.timing import ToyGPU
from mistakes import attention, backward, cuda as kernels, eight_bits, gradients, heads, model, online_softmax
from test_checks import printed, report as reported

import triton
import triton.language as tl


# ---------------------------------------------------------------- the report

def test_a_report_wraps_counts_and_says_things_once(capsys):
    long = "word " * 40
    properties("title", [("right", lambda fn: ""), ("wrong", lambda fn: long), ("also wrong", lambda fn: long)], None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= report.WIDTH and lines[3].startswith(" " * 8 + "word")
    assert lines[-2:] == ["  FAIL  also wrong: the same", "  1 of 3 properties hold"]
    properties("title", [("one", lambda fn: "no"), ("two", lambda fn: "no")], None)
    assert capsys.readouterr().out == "title\n  FAIL  every property: no\n  0 of 2 properties hold\n"


def test_a_good_block_size_is_not_blamed_for_a_usual_one_that_is_wrong(capsys):
    good = attention.versions(False, False)["right"][0]
    check.attention(lambda q, k, v, BLOCK_M=32, BLOCK_N=32: good(q, k, v) + (BLOCK_N == 32), numpy=True)
    said = capsys.readouterr().out
    assert "FAIL  the result is attention" in said and "ok    any block size gives the same answer" in said


def test_of_what_a_compiler_shows_one_line_is_told():
    shown = ("ring did not compile for sm_90: at 7:4:\ndef give(ds):\n    ds_tile.store(ds)\n    dq_tile.store(dq)\n    ^\n"
             "expected 'value' to be\na tensor")
    assert simulated.told(shown) == "ring did not compile for sm_90: `dq_tile.store(dq)`: expected 'value' to be a tensor"
    assert simulated.told("ring did not compile for sm_90: out of\nmemory") == "ring did not compile for sm_90: out of memory"


def test_what_pytorch_logs_of_a_wrong_operator_is_not_shown(capfd):
    check.operator(model.WIDE)
    out, err = capfd.readouterr()
    assert "FAIL  the gradient" in out and not err


def test_checks_say_what_they_take():
    for name, fn in inspect.getmembers(check, inspect.isfunction):
        assert re.match(r"(fn|kernel|loop)[([]|As \w+", fn.__doc__), name
    for name in ("vector_add", "scale_add", "stride_add", "transpose", "matmul"):
        assert "float*" in getattr(check.cuda, name).__doc__.split(":")[0]


def test_numpy_does_not_warn_above_a_verdict(recwarn):
    printed(check.safe_softmax, lambda s: np.exp(s) / np.exp(s).sum(1, keepdims=True))
    assert not recwarn.list


@pytest.mark.parametrize("got,want,said", [(0.0150800001, 0.01508, "0.0150800001, expected 0.01508"),
                                           (1.0, 2.0, "1, expected 2"), (0.1, 0.10001, "0.1, expected 0.10001")])
def test_two_numbers_get_as_many_digits_as_tell_them_apart(got, want, said):
    assert difference(np.array([got]), np.array([want]), 1e-12) == f"element [0] is {said} (1 of 1 differ)"


# ---------------------------------------------------------------- exceptions and stubs

def fails(x, y):
    return x / torch.zeros(3, dtype=torch.int64).view(2)          # not as many numbers


@triton.jit
def half(x_ptr, z_ptr, n, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK), mask=tl.arange(0, 2 * BLOCK) < n)     # shapes that do not fit
    tl.store(z_ptr + tl.arange(0, BLOCK), x)


def in_a_kernel(x, y):
    z = torch.empty_like(x)
    half[(1,)](x, z, len(x), 16)
    return z


def test_an_exception_names_the_line_that_led_to_it():
    found = reported(check.vector_add, fails)["every property"]
    line = inspect.getsourcelines(fails)[1] + 1
    assert found.startswith(f"line {line}, in fails: `return x / torch.zeros") and "raised RuntimeError: " in found


@pytest.mark.skipif(not device.INTERPRETED, reason="the compiler has words of its own")
def test_an_exception_in_a_kernel_names_its_line():
    found = reported(check.vector_add, in_a_kernel)["every property"]
    line = inspect.getsourcelines(half.fn)[1] + 2
    assert found.startswith(f"line {line}, in half: `x = tl.load(x_ptr + tl.arange(0, BLOCK), mask=")
    assert "raised ValueError: " in found and "InterpreterError" not in found


def test_an_exception_of_the_compiler_names_the_line_of_the_kernel():
    from triton.compiler.errors import CompilationError
    source = "def kernel(x_ptr):\n    x = tl.load(x_ptr\n" + " " * 8 + "+ y)\n"
    error = CompilationError(source, ast.parse("\nx = 1").body[0], "NameError('y is not defined')")
    assert report.raised(error) == \
        "line 2, of the kernel: `x = tl.load(x_ptr` raised CompilationError: NameError('y is not defined')"


@triton.jit
def unwritten_kernel(x_ptr):
    raise NotImplementedError("your lines here")


def calls_an_unwritten_kernel(x, y):
    unwritten_kernel[(1,)](x)


def has_no_words(x, y):
    raise NotImplementedError



def test_only_the_readers_own_words_are_a_stub():
    for fn in (has_no_words, *device.INTERPRETED * [calls_an_unwritten_kernel]):
        assert printed(check.vector_add, fn) == "vector_add: not attempted yet\n"
    found = reported(check.quantize, eight_bits.fails_in_a_library)["every property"]
    assert "fails_in_a_library: `return torch.minimum(x8, x8), scales" in found
    assert "raised NotImplementedError: " in found


def test_an_interrupt_is_no_failed_property():
    def interrupted(x, y):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        check.vector_add(interrupted)


# ---------------------------------------------------------------- sentences

def test_sentences_say_what_and_where():
    def said(run, fn, name):
        return reported(run, fn, only=name)[name]

    assert said(check.vector_add, lambda x, y: (x + y)[:-1], "every value that was written is right") == \
        "length 1024: the shape is [1023], expected [1024]"
    found = said(check.attention, attention.in_triton(mask=0.0), attention.LENGTH)
    assert found.startswith("N = 50: element [0, 0] is ")
    found = said(check.window_attention, heads.windows(start=lambda *a: 0), "tiles before the window are not visited")
    assert found == "window 129: row 160 multiplied values of keys 0 to 15, which no query of its block sees"
    found = said(check.softmax_backward, gradients.by_jacobian, "no Jacobian is built")
    assert "MB at its peak, expected less than 8.00 MB" in found
    assert "dk of key 32 used do of queries 0 to 31" in said(
        check.blocked_dkdv, gradients.dkdv(start=lambda *a: 0), "tiles above the diagonal are not visited")
    assert said(check.grouped_dkdv, backward.GROUPED["wrong"]["grouped heads"][1], "grouped heads") == \
        "4 query heads, 2 key heads: dv is not the sum over each group of 2"
    assert "m = 0, l = 0, m + log(l) is -inf, expected -9995" in said(
        check.online_softmax, online_softmax.online(start=0.0), "scores far below 0")
    assert said(check.merge, online_softmax.merging(shrink_b=False), "the first piece has the larger maximum") == \
        "maxima 5 and 3: l is 2.75, expected 1.669"
    assert said(check.quantize, eight_bits.wrong(largest=256), "the largest number of a block becomes 448") == \
        "64 rows, block 0: the scale is 0.01172, expected 0.006696"
    found = said(check.attention_dq, lambda *a: None, "one tile")
    assert found == "N_q = 16, N_k = 16: the shape is [], expected [16, 16]"


@pytest.mark.skipif(not device.INTERPRETED, reason="a GPU does not say who wrote")
@pytest.mark.parametrize("how,said", [
    ("stores", "a race in dkdv_kernel: program (0, 1) stores element [0, 0, 0, 0] of dk_ptr, and program (0, 0) stores "),
    ("adds", "a race in dkdv_kernel: program (0, 1) loads element [0, 0, 0, 0] of dk_ptr, and program (0, 0) stores it"),
    ("atomics", "an atomic operation, where"),
    ("parts", "dk is not what a kernel stored: element 0 of 3200 comes from elsewhere")])
def test_two_owners_of_a_number_are_told(how, said):
    fn = backward.expanded if how == "parts" else backward.how(how)
    name = "every number is written by one program"
    assert said in reported(check.grouped_dkdv, fn, only=name)[name]


# ---------------------------------------------------------------- memory that is watched

DTYPES = [(np, np.float16), (np, np.float32), (np, np.float64), (torch, torch.float16), (torch, torch.bfloat16),
          (torch, torch.float32), (torch, torch.float64)]


@pytest.mark.parametrize("library,dtype", DTYPES, ids=str)
def test_poison_is_nan_and_is_undone(library, dtype):
    with poisoned():
        fresh = library.empty((2, 3), dtype=dtype)
        assert library.isnan(fresh).all() and library.isnan(library.empty_like(fresh)).all()
        assert library.empty(3, dtype=library.int32).shape == (3,)
    assert library.empty.__name__ == "empty"
    assert unwritten(fresh) == "element [0, 0] was never written (6 of 6 were not)"
    for got in (fresh, 2 * fresh + 1)[:1 + (library is np)]:           # arithmetic keeps the NaN
        assert difference(got, np.zeros((2, 3))) == "every element is NaN: not written, or computed from NaN"
    fresh[:] = float("nan")                              # a NaN that was computed is another
    assert unwritten(fresh) == ""
    assert difference(fresh, np.zeros((2, 3))).startswith("element [0, 0] is nan, expected 0")


@pytest.mark.parametrize("dtype", [dtype for library, dtype in DTYPES if library is torch], ids=str)
def test_guards_notice_stray_writes(dtype):
    with poisoned():
        x = torch.empty(3, 5, dtype=dtype)
        assert outside(x) == "" and x.is_contiguous()
        x.fill_(0)
        assert outside(x) == ""
        x.as_strided([1], [1], x.storage_offset() + 17)[0] = 1
        assert outside(x) == "element 17 of 15 was written, beyond the end"
    y = guarded(torch.arange(3.0, dtype=dtype))          # behind an input stands another NaN than behind an output
    x.as_strided([1], [1], x.storage_offset() + 17)[0] = y.as_strided([1], [1], y.storage_offset() + 3)[0]
    assert outside(y) == "" and "element 17" in outside(x)
    x = guarded(torch.arange(6.0, dtype=dtype).reshape(2, 3).T)
    assert outside(x) == "" and x.stride() == (1, 3) and x[2, 1] == 5
    x.as_strided([1], [1], x.storage_offset() - 2)[0] = 1
    assert outside(x) == "element -2 of 6 was written, before the beginning"


@pytest.mark.skipif(not device.INTERPRETED, reason="on a GPU masked lanes are undefined in earnest")
def test_masked_lanes_without_other_are_undefined_in_a_check():
    with poisoned():
        x = torch.ones(5)
        assert torch.equal(lessons.vector_add_triton.add(x, x, BLOCK=8), 2 * x)      # lanes that nobody stores
    assert difference(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), [1.0, 2.0]) == ""


# ---------------------------------------------------------------- CUDA

def vec_add(body, **change):
    return kernels.kernel("vec_add", change.get("parameters", kernels.PAIR), body)


@pytest.mark.parametrize("source,problem", [
    (vec_add("int i = threadIdx.x;\nc[i] = a[i] + d[i];"), r"line 3: .*\bd\b.* not declared"),
    (vec_add("", parameters="float* a, const float* b, float* c, int n, int m"),
     "called from the main program: too few arguments"),
    (kernels.kernel("add", kernels.PAIR, ""),
     "vec_add is launched, but no __global__ function of that name is in the file"),
    (vec_add("if (n) {"), "the bracket at line 1 is never closed"),
    (vec_add("__syncwarp();"), "line 2: the emulator does not know __syncwarp"),
    ("", "vec_add is launched, but no __global__ function")])
def test_what_does_not_compile_is_a_failed_property(source, problem):
    found = reported(check.cuda.vector_add, source)
    assert list(found) == ["it compiles"] and re.match(problem, found["it compiles"]), found


PROGRAMS = {run.__name__: run for run in kernels.CASES}


def said_of(name, title):
    """What the check says of the wrong version of a kernel that fails this property."""
    run = PROGRAMS[name]
    return reported(run, run.number[title])


def test_a_fault_names_its_line_and_its_size():
    found = said_of("vec_add", "no thread is outside its arrays")
    assert re.match(r"n = 1024: line \d+: thread \(0,0,0\) of block \(0,0,0\) .*: out of bounds$",
                    found["no thread is outside its arrays"])
    assert "every value that was written is right" not in found
    found = said_of("stride_add", "no two threads race")["no two threads race"]
    assert re.match(r"n = 1024, blocks = 16: several threads take c\[0\]: line \d+: ", found)


def test_an_endless_loop_is_stopped_once(monkeypatch):
    monkeypatch.setattr(cuda_core, "PATIENCE_S", 1)
    found = said_of("stride_add", kernels.ENDLESS)["it runs to its end"]
    assert found.count("ran for more than 1 s") == 1 and "does the loop advance?" in found


def test_sectors_are_told_to_whoever_got_the_transpose_right():
    told = "  M = 64, N = 64: its loads touch 512 sectors and its stores 4096, where 512 and 512 would do.\n"
    assert printed(PROGRAMS["transpose"], 0).endswith(told)


@pytest.mark.skipif(not kernels.cuda.has_gpu(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("run,name,parameters,body", [
    (check.cuda.vector_add, "vec_add", kernels.PAIR, kernels.vector_kernels("a[i] + b[i]", "a", "c")[""]),
    (check.cuda.stride_add, "stride_add", kernels.PAIR, kernels.stride_kernels()[""]),
    (check.cuda.matmul, "matmul", kernels.PRODUCT, kernels.matmul_kernels()[""])])
def test_right_kernels_pass_on_the_gpu(run, name, parameters, body):
    found = reported(run, kernels.kernel(name, parameters, body))
    assert len(found) > 5 and not any(found.values())


# ---------------------------------------------------------------- the toy GPU

def test_the_toy_gpu_works_on_after_the_call_returned_and_is_slow_now_and_then():
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
    gpu, times = ToyGPU(kernel=10, cached=10, compile=0, slow_every=3), []
    for _ in range(6):
        start = gpu.clock()
        gpu.kernel()
        gpu.synchronize()
        times.append(gpu.clock() - start - 5)
    assert times == [10, 10, 100, 10, 10, 100] and statistics.median(times) == 10
