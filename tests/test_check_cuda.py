"""The checks of CUDA kernels: right kernels pass, stubs are recognised, and each property catches its mistake, alone."""
import functools
import re

import pytest

from helpers import cuda
from helpers.check import cuda as check_cuda, cuda_core

HEAD = 'static const int variant = atoi(getenv("VARIANT"));\n'          # one program holds a right kernel and all wrong ones
BIG = "__shared__ float big[20000]; big[0] = 1.0f;"
FIRST = "if (blockIdx.x + blockIdx.y + threadIdx.x + threadIdx.y == 0) "
STRAY = FIRST + "{out}[{end}] = 0.0f;"
TOGETHER = "{out}[0] = 1.0f;"
SOME = "if (threadIdx.x < 5) __syncthreads();"


def with_faults(right, out, end):
    return {"no thread is outside its arrays": right + STRAY.format(out=out, end=end),
            "no two threads race": right + TOGETHER.format(out=out), "it runs to its end": BIG + right}


def vector_kernels(value, first, out):
    """{property: body of the kernel that breaks it}, "" for the right one; `value` is what element i should be."""
    kernel = "int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) {out}[i] = {value}{more}; ".format
    right = kernel(out=out, value=value, more="")
    return {"": right, **with_faults(right, out, "n"),
            "every value that was written is right": kernel(out=out, value=value, more=" + (n % 1024 == 0)"),
            "written values are right at a length that is no multiple of the block": kernel(out=out, value=value, more=" + (n % 1024 && n > 1)"),
            "a single element": kernel(out=out, value=value, more=" + (n == 1)"),
            "every output element is written": right.replace("i < n", "i < n && (n == 1 || i < n - 1)"),
            "the inputs are left as they were": right + f"if (i == 7 && n > 7) {first}[i] = 0.0f;"}


def stride_kernels():
    kernel = ("int step = gridDim.x * 64; for (int i = blockIdx.x * 64 + threadIdx.x; i < n; i += step)"
              "c[i] = a[i] + b[i]{}; ").format
    through_shared = ("for (int base = blockIdx.x * 64; base < n; base += gridDim.x * 64) {{ __shared__ float tile[64];"
                      "int t = threadIdx.x, u = t * 8 % 64 + t / 8;"
                      "if (base + {0} < n) tile[{0}] = a[base + {0}] + b[base + {0}];"
                      "__syncthreads(); if (base + {1} < n) c[base + {1}] = tile[{1}]; __syncthreads(); }}").format
    return {"": kernel(""), **with_faults(kernel(""), "c", "n"),
            "every value that was written is right": kernel(" + (n == step)"),
            "fewer threads than elements": kernel(" + (n > step)"), "more threads than elements": kernel(" + (n < step)"),
            "every output element is written": kernel("").replace("i < n;", "i < n - (n > 1);"),
            "the inputs are left as they were": kernel("") + FIRST + "a[0] = 0.0f;",
            "global loads are coalesced": through_shared("u", "t"), "global stores are coalesced": through_shared("t", "u")}


SQUARE = "int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * 32 + y, col = blockIdx.x * 32 + x; "


def on_matrices(right, store, last, out, inside):
    """The mistakes that a kernel of M x N elements may make with values, given its text and the statement that stores."""
    spoiled = lambda when: right.replace(store, store[:-1] + f" + ({when});")
    return {"every value that was written is right": spoiled("M == 64"), "a single element": spoiled("M == 1"),
            inside: spoiled("M != 64 && M != 1"),
            "every output element is written": right.replace(store, f"if (!{last}) {store}"),
            "the inputs are left as they were": right + FIRST + "if (M == 1) a[0] = 0.0f;", **with_faults(right, out, "M * N")}


def transpose_kernels(tiled):
    naive = SQUARE + "if (row < M && col < N) { b[col * M + row] = a[row * N + col]; } "
    turned = (SQUARE + "row = blockIdx.y * 32 + x, col = blockIdx.x * 32 + y;"
              "if (row < M && col < N) { b[col * M + row] = a[row * N + col]; } ")
    through = (SQUARE + "__shared__ float tile[32][33]; if (row < M && col < N) tile[y][x] = a[row * N + col]; __syncthreads();"
               "row = blockIdx.x * 32 + y, col = blockIdx.y * 32 + x;"
               "if (row < N && col < M) { b[row * M + col] = tile[x][y]; } ")
    store = "b[row * M + col] = tile[x][y];" if tiled else "b[col * M + row] = a[row * N + col];"
    last = "(M > 1 && row == N - 1 && col == M - 1)" if tiled else "(M > 1 && row == M - 1 && col == N - 1)"
    right = through if tiled else naive
    wrong = {"": right, **on_matrices(right, store, last, "b", "rows and columns that fill no block")}
    if not tiled:
        return wrong
    return {**wrong, "every thread reaches every barrier": through + SOME,
            "no two threads race": through.replace("__syncthreads();", ""),
            "shared memory is written before it is read": through.replace("tile[x][y]", "tile[x][y + 1]"),
            "global loads are coalesced": turned, "global stores are coalesced": naive,
            "no bank conflicts": through.replace("[33]", "[32]")}


def matmul_kernels():
    naive = (SQUARE + "if (row < M && col < N) { float sum = 0;"
             "for (int k = 0; k < K; k++) sum += a[row * K + k] * b[k * N + col];"
             "c[row * N + col] = sum; }")
    fill_a, store = "a_tile[y][x] = row < M && k + x < K ? a[row * K + k + x] : 0.0f;", "c[row * N + col] = sum;"
    right = (SQUARE + "__shared__ float a_tile[32][32]; __shared__ float b_tile[32][32];"
             "float sum = 0; for (int k = 0; k < K; k += 32) {"
             + fill_a + "b_tile[y][x] = k + y < K && col < N ? b[(k + y) * N + col] : 0.0f; __syncthreads();"
             "for (int j = 0; j < 32; j++) sum += a_tile[y][j] * b_tile[j][x]; __syncthreads(); }"
             "if (row < M && col < N) { " + store + " }")
    padded = right.replace("a_tile[32][32]", "a_tile[32][33]")
    across = "int r = blockIdx.y * 32 + x; a_tile[x][y] = r < M && k + y < K ? a[r * K + k + y] : 0.0f;"
    down = ("a_tile[y][x] = sum; __syncthreads(); row = blockIdx.y * 32 + x, col = blockIdx.x * 32 + y, sum = a_tile[x][y];"
            "if (row < M && col < N) { ")
    last = "(M > 1 && row == M - 1 && col == N - 1)"
    return {"": right, **on_matrices(right, store, last, "c", "sizes that are no multiple of the tile"),
            "every thread reaches every barrier": right + SOME,
            "no two threads race": right.replace("__syncthreads(); }", "}"),
            "shared memory is written before it is read": right.replace(fill_a, "if (row < M) " + fill_a),
            "at most 2 N^3 / 32 loads from global memory": naive,
            "global loads are coalesced": padded.replace(fill_a, across),
            "global stores are coalesced": padded.replace("if (row < M && col < N) { ", down),
            "no bank conflicts": right.replace("a_tile[y][x]", "a_tile[x][y]").replace("a_tile[y][j]", "a_tile[j][y]")}


# each operation: its check, the parameters of its kernel, and {property: the body of a kernel that fails it}
OPERATIONS = {
    "vec_add": (check_cuda.vector_add, "float* a, const float* b, float* c, int n", vector_kernels("a[i] + b[i]", "a", "c")),
    "scale_add": (check_cuda.scale_add, "float a, float* x, const float* y, float* z, int n",
                  vector_kernels("a * x[i] + y[i]", "x", "z")),
    "stride_add": (check_cuda.stride_add, "float* a, const float* b, float* c, int n", stride_kernels()),
    "transpose": (check_cuda.transpose, "float* a, float* b, int M, int N", transpose_kernels(tiled=False)),
    "transpose tiled": (functools.partial(check_cuda.transpose, tiled=True), "float* a, float* b, int M, int N",
                        transpose_kernels(tiled=True)),
    "matmul": (check_cuda.matmul, "float* a, const float* b, float* c, int M, int N, int K", matmul_kernels()),
}
CASES = [(operation, name) for operation, (_, _, bodies) in OPERATIONS.items() for name in bodies]


def kernel(operation, body):
    return f"__global__ void {operation.split()[0]}({OPERATIONS[operation][1]}) {{\n{body}\n}}\n"


def report(operation, source, capsys):
    """What the check prints: {property: "ok" or the problem}, without the last line of a report with faults."""
    OPERATIONS[operation][0](source)
    lines = capsys.readouterr().out.splitlines()[1:]
    return {line[8:].split(": ")[0]: "ok" if line.startswith("  ok") else line.split(": ", 1)[1]
            for line in lines if line[2:6] in ("ok  ", "FAIL")}


@pytest.mark.parametrize("operation,name", CASES)
def test_each_kernel_fails_its_property_alone(operation, name, capsys, monkeypatch):
    bodies = OPERATIONS[operation][2]
    monkeypatch.setattr(cuda, "has_gpu", lambda: False)  # `variant` lives on the host, where the emulator runs kernels
    monkeypatch.setenv("VARIANT", str(list(bodies).index(name)))
    variants = "\n".join(f"if (variant == {i}) {{ {body} }}" for i, body in enumerate(bodies.values()))
    found = report(operation, HEAD + kernel(operation, variants), capsys)
    assert [n for n, result in found.items() if result != "ok"] == ([name] if name else []), found
    if not name:
        assert set(found) == {"it compiles", *bodies} - {""}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_stub_is_not_attempted(operation, capsys):
    OPERATIONS[operation][0](kernel(operation, "    // your lines here, in place of this one"))
    assert capsys.readouterr().out.strip().endswith(": not attempted yet")


@pytest.mark.parametrize("source,problem", [
    (kernel("vec_add", "int i = threadIdx.x;\nc[i] = a[i] + d[i];"), r"line 3: .*\bd\b.* not declared"),
    (kernel("vec_add", "int i = threadIdx.x"), "line 3: expected .*;.*"),
    (kernel("vec_add", "").replace("int n", "int n, int m"), "called from the main program: too few arguments"),
    (kernel("scale_add", ""), "vec_add is launched, but no __global__ function of that name is in the file"),
    (kernel("vec_add", "if (n) {"), "the bracket at line 1 is never closed"),
    (kernel("vec_add", "__syncwarp();"), "line 2: the emulator does not know __syncwarp"),
    ("", "vec_add is launched, but no __global__ function"),
])
def test_what_does_not_compile_is_a_failed_property(source, problem, capsys):
    found = report("vec_add", source, capsys)
    assert list(found) == ["it compiles"]
    assert re.match(problem, found["it compiles"]), found


def test_a_fault_names_its_line_and_its_size(capsys):
    source = "\n" + kernel("vec_add", "int i = blockIdx.x * blockDim.x + threadIdx.x;\nif (i <= n) c[i] = a[i] + b[i];")
    found = report("vec_add", source, capsys)
    assert found["no thread is outside its arrays"].startswith("n = 1000: line 4: thread (232,0,0) of block (3,0,0)")
    assert "every value that was written is right" not in found


def test_a_difference_names_its_size_and_its_element(capsys):
    source = kernel("matmul", "int col = threadIdx.x, row = threadIdx.y; if (row < M && col < N && blockIdx.x + blockIdx.y == 0)"
                              "c[row * N + col] = 0.0f;")
    found = report("matmul", source, capsys)
    assert found["every value that was written is right"].startswith("M = 64, N = 64, K = 64: element [0, 0] is 0, expected ")
    assert found["every output element is written"] == \
        "M = 64, N = 64, K = 64: element [0, 32] was never written (3072 of 4096 were not)"


@pytest.mark.parametrize("step,element", [("blockDim.x", 64), ("gridDim.x", 16)])
def test_a_wrong_step_names_the_element_that_several_threads_take(step, element, capsys):
    loop = f"for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += {step}) c[i] = a[i] + b[i];"
    found = report("stride_add", kernel("stride_add", loop), capsys)
    assert found.pop("no two threads race").startswith(f"n = 1024, blocks = 16: several threads take c[{element}]: line 2: ")
    assert set(found.values()) == {"ok"}


def test_a_race_between_a_load_and_a_store_takes_no_element_twice(capsys):
    found = report("transpose tiled", kernel("transpose", transpose_kernels(tiled=True)["no two threads race"]), capsys)
    assert "a race" in found["no two threads race"] and "several threads take" not in found["no two threads race"]


def test_sectors_are_told_to_whoever_got_the_transpose_right(capsys):
    check_cuda.transpose(kernel("transpose", transpose_kernels(tiled=False)[""]))
    told = "  M = 64, N = 64: its loads touch 512 sectors and its stores 4096, where 512 and 512 would do.\n"
    assert capsys.readouterr().out.endswith(told)
    check_cuda.transpose(kernel("transpose", ""))
    assert "sectors" not in capsys.readouterr().out


@pytest.mark.skipif(not cuda.has_gpu(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_right_kernels_pass_on_the_gpu(operation, capsys):
    found = report(operation, kernel(operation, OPERATIONS[operation][2][""]), capsys)
    assert len(found) > 5 and set(found.values()) == {"ok"}


def test_checks_say_what_they_take():
    for name in ("vector_add", "scale_add", "stride_add", "transpose", "matmul"):
        assert "(" in getattr(check_cuda, name).__doc__.split(":")[0] and "float*" in getattr(check_cuda, name).__doc__


def test_an_endless_loop_is_stopped_once(monkeypatch, capsys):
    monkeypatch.setattr(cuda_core, "PATIENCE_S", 1)
    check_cuda.stride_add("""
__global__ void stride_add(const float* a, const float* b, float* c, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n;) c[i] = a[i] + b[i];
}
""")
    printed = capsys.readouterr().out
    assert printed.count("ran for more than 1 s") == 1 and "does the loop advance?" in printed
