"""The tools around the CUDA programs: nvcc and its reports, the Makefile, recorded lines, the sentences of each."""
import os
import re
import shutil
import subprocess
import sys

import pytest

from helpers import cuda
from helpers.bench import programs


def test_show_gives_a_kernel_with_its_comment():
    shown = cuda.show("vec_add.cu", "vec_add")
    assert shown.startswith("// One thread for one element.") and shown.endswith("}") and shown.count("__global__") == 1
    assert cuda.show("attention.cu", "reduce_block").startswith("// The threads of a block combine")
    assert shown._repr_markdown_() == f"```cpp\n{shown}\n```" and repr(shown) == str(shown)
    with pytest.raises(ValueError, match="vec_add.cu has no kernel 'add'; it has vec_add, vec_add_float4"):
        cuda.show("vec_add.cu", "add")
    with pytest.raises(FileNotFoundError, match="there is no nothing.cu in CUDA/"):
        cuda.show("nothing.cu")


def test_ptx_and_sass_of_vec_add():
    ptx = cuda.ptx(cuda.show("vec_add.cu", "vec_add"))
    assert ".target sm_80" in ptx and len(re.findall(r"\bld\.global(\.nc)?\.[fb]32", ptx)) == 2
    assert re.search(r"\badd(\.rn)?\.f32", ptx) and len(re.findall(r"\bst\.global\.[fb]32", ptx)) == 1
    assert len(re.findall(r"\bld\.global(\.nc)?\.v4\.[fb]32", cuda.ptx("vec_add.cu"))) == 2
    sass = cuda.sass(cuda.show("vec_add.cu", "vec_add"), "sm_90")
    assert "sm_90" in sass and all(re.search(name, sass) for name in (r"\bLDG\.E\b", r"\bFADD\b", r"\bSTG\.E\b"))


@pytest.mark.parametrize("program", ["vec_add.cu", "matrix_add_mul.cu"])
def test_no_kernel_spills(program):
    reports = cuda.resources(program)
    assert set(reports) == set(cuda.traffic(program))
    assert all(r["spill"] == 0 and 0 < r["registers"] <= 255 for r in reports.values())
    if program == "matrix_add_mul.cu":
        assert reports["matmul_tiled"]["shared"] == 2 * 32 * 32 * 4 and reports["matmul_naive"]["shared"] == 0


def test_a_wrong_arch_is_one_sentence():
    with pytest.raises(ValueError, match="arch 'sm_12' is none of those this nvcc knows: .*sm_80.*sm_90"):
        cuda.ptx("vec_add.cu", "sm_12")


def test_a_program_that_does_not_compile_shows_its_line():
    with pytest.raises(cuda.CudaError, match=r"cell.cu does not compile:\n(.|\n)*cell.cu:2:.*error"):
        cuda.run("int main() {\n    return nothing;\n}\n", emulate=True)


def test_no_compiler_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(cuda.CudaError, match="no g\\+\\+ here, which the emulator needs"):
        cuda.run("vec_add.cu", emulate=True)
    monkeypatch.setattr(cuda.toolchain.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(cuda.toolchain, "TOOLKIT", "")
    with pytest.raises(cuda.CudaError, match="no nvcc on PATH or in the Python packages"):
        cuda.find_nvcc()


def make(*arguments, build, path=None):
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    return subprocess.run(["make", "-C", str(cuda.CUDA), f"BUILD={build}", f"PYTHON={sys.executable}", *arguments],
                          capture_output=True, text=True, env=environment)


def path_without_nvcc(folder):
    """A PATH with what make and nvcc need, and no nvcc."""
    for tool in "sh make g++ gcc cc ld as tr grep mkdir rm touch mv cp cat echo dirname uname".split():
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return str(folder)


def test_nvcc_from_pip_builds_and_links(monkeypatch, tmp_path):
    """With no nvcc on PATH and no toolkit folder, the one in site-packages compiles and links, without a warning. Without a
    GPU what it made says so."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", path_without_nvcc(tools))
    monkeypatch.setattr(cuda.toolchain, "TOOLKIT", "")
    try:
        assert "site-packages" in cuda.find_nvcc()
    except cuda.CudaError:
        pytest.skip("cuda-toolkit[nvcc] was not installed by pip here")
    nvcc = " ".join(cuda.toolchain.nvcc_command())
    made = make(f"{tmp_path}/build/vec_add", f"NVCC={nvcc}", build=f"{tmp_path}/build", path=str(tools))
    assert made.returncode == 0 and made.stderr == "" and "site-packages" in made.stdout, made.stderr
    assert (tmp_path / "build" / "vec_add").stat().st_size > 100_000
    if not cuda.has_gpu():
        monkeypatch.setattr(cuda, "build", lambda source, arch: tmp_path / "build" / "vec_add")
        with pytest.raises(cuda.CudaError, match=r"ended with status 2:\nNo NVIDIA GPU to run on \(.*\); `make -C CUDA emulate`"):
            cuda.run("vec_add.cu", emulate=False)


def test_make_says_what_is_wrong(tmp_path):
    wrong = make("ARCH=sm_12", build=tmp_path)
    assert wrong.returncode and "ARCH=sm_12 is none of those this nvcc knows: " in wrong.stdout
    without = make("NVCC=", build=tmp_path)
    assert without.returncode and "No nvcc here: install" in without.stdout
    no_compiler = make("emulate", "CXX=nothing-like-it", build=tmp_path)
    assert no_compiler.returncode and "No C++ compiler nothing-like-it here" in no_compiler.stdout


def test_another_arch_builds_anew(tmp_path):
    for name in ["arch.sm_80", "vec_add", "matrix_add_mul", "attention"]:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (2**32, 2**32))        # newer than every source
    assert "gencode" not in make("-n", build=tmp_path).stdout
    assert make("-n", "ARCH=sm_90", build=tmp_path).stdout.count("arch=compute_90,code=sm_90") == 3


def test_make_emulate_has_no_warnings(tmp_path):
    made = make(f"{tmp_path}/emulated/vec_add", build=tmp_path)
    assert made.returncode == 0 and made.stderr == "" and (tmp_path / "emulated" / "vec_add").exists()
    read = make("emulate", "CXX=g++ -fsyntax-only", build=tmp_path)
    assert read.returncode == 0 and read.stderr == ""
    assert {p.stem for p in (tmp_path / "emulated").glob("*.cpp")} == {"attention", "matrix_add_mul", "vec_add"}


@pytest.mark.parametrize("program", ["matrix_add_mul", "attention"])
def test_nvcc_builds_without_warnings(program, tmp_path):
    made = make(f"{tmp_path}/{program}", build=tmp_path)
    assert made.returncode == 0 and made.stderr == "", made.stderr
    found = subprocess.run([cuda.toolchain.find_tool("cuobjdump"), "-res-usage", tmp_path / program], check=True,
                           capture_output=True, text=True).stdout
    kernels = {cuda._plain(name): int(stack) for name, stack in re.findall(r"Function (\w+):\s+REG:\d+ STACK:(\d+)", found)}
    assert kernels == dict.fromkeys(cuda.traffic(f"{program}.cu"), 0)                  # nothing is spilled


def test_two_processes_may_build_the_same_at_once(tmp_path):
    command = [sys.executable, "-c", "import pathlib; from helpers.cuda import toolchain; "
               f"toolchain.BUILD = pathlib.Path({str(tmp_path)!r}); "
               "made, _ = toolchain.build('a', 'built', '.made', lambda i, o: ['sh', '-c', f'sleep 0.5; cp {i} {o}']); "
               "print(made.read_text())"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cuda.CUDA.parent) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["built\n", "built\n"]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".log", ".made"]


def test_bench_reads_the_programs_lines():
    """The clock that the emulator does not have is put in its place: every event pair lasts 2 ms."""
    two_ms = """#include <cuda_runtime.h>
static cudaError_t two(float* ms, cudaEvent_t, cudaEvent_t) { *ms = 2.0f; return cudaSuccess; }
#define cudaEventElapsedTime two
#include "harness.cuh"
"""
    text = cuda.show("vec_add.cu").replace('#include "harness.cuh"\n', two_ms)
    times = programs.cuda_times(cuda.run(text, 1000, emulate=True))
    assert [t["name"] for t in times] == ["device copy", "vec_add", "vec_add_float4"]
    assert all(t["median_ms"] == t["q1_ms"] == t["q3_ms"] == 2.0 for t in times)
    assert times[1]["gb_per_s"] == 0.006 and times[0]["gb_per_s"] == 0.004
