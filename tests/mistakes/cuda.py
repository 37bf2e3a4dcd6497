"""Right and wrong kernels in CUDA C++. One program holds all versions of a kernel: compiling is what takes its time."""
import functools
import os
from unittest import mock

from helpers import check, cuda

FIRST = "if (blockIdx.x + blockIdx.y + threadIdx.x + threadIdx.y == 0) "
COMPILES, ENDLESS = "it compiles", "an endless loop"


def kernel(name, parameters, body):
    return f"__global__ void {name}({parameters}) {{\n{body}\n}}\n"


def case(run, name, parameters, bodies):
    """An entry of CASES: {property: the body of a kernel that fails it}, "" for the right one."""
    variants = "\n".join(f"if (variant == {i}) {{ {body} }}" for i, body in enumerate(bodies.values()))
    program = 'static const int variant = atoi(getenv("VARIANT"));\n' + kernel(name, parameters, variants)

    def checking(version):
        """Check a text, or the version of the program that has this number."""
        with mock.patch.object(cuda, "has_gpu", lambda: False):    # `variant` lives where the emulator runs kernels
            os.environ["VARIANT"] = str(version)
            run(program if isinstance(version, int) else version)

    checking.__name__ = name + " tiled" * ("tiled" in str(run))
    broken = kernel(name, parameters, "if (true) {")
    checking.number = {title: number for number, title in enumerate(bodies)}
    wrong = {title: number for title, number in checking.number.items() if title and title != ENDLESS}
    return checking, dict(right=[0], wrong=wrong | {COMPILES: broken}, broken=broken,
                          stub=kernel(name, parameters, "    // your lines here, in place of this one"))


def with_faults(right, out, end):
    return {"no thread is outside its arrays": right + FIRST + f"{out}[{end}] = 0.0f;",
            "no two threads race": right + f"{out}[0] = 1.0f;",
            "it runs to its end": "__shared__ float big[20000]; big[0] = 1.0f;" + right}


def vector_kernels(value, first, out):
    """`value` is what element i should be."""
    text = "int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) {out}[i] = {value}{more}; ".format
    right = text(out=out, value=value, more="")
    return {"": right, **with_faults(right, out, "n"),
            "every value that was written is right": text(out=out, value=value, more=" + (n % 1024 == 0)"),
            "written values are right at a length that is no multiple of the block":
                text(out=out, value=value, more=" + (n % 1024 && n > 1)"),
            "a single element": text(out=out, value=value, more=" + (n == 1)"),
            "every output element is written": right.replace("i < n", "i < n - 1"),
            "the inputs are left as they were": right + f"if (i == 7 && n > 7) {first}[i] = 0.0f;"}


def stride_kernels():
    text = ("int step = gridDim.x * 64; for (int i = blockIdx.x * 64 + threadIdx.x; i < n; i += step) "
            "c[i] = a[i] + b[i]{}; ").format
    shared = ("for (int base = blockIdx.x * 64; base < n; base += gridDim.x * 64) {{ __shared__ float tile[64];"
              "int t = threadIdx.x, u = t * 8 % 64 + t / 8;"
              "if (base + {0} < n) tile[{0}] = a[base + {0}] + b[base + {0}]; __syncthreads();"
              "if (base + {1} < n) c[base + {1}] = tile[{1}]; __syncthreads(); }}").format
    return {"": text(""), **with_faults(text(""), "c", "n"),
            "every value that was written is right": text(" + 1"),
            "fewer threads than elements": "int i = blockIdx.x * 64 + threadIdx.x; if (i < n) c[i] = a[i] + b[i];",
            "more threads than elements": text(" + (n < step)"),
            "every output element is written": text("").replace("i < n;", "i < n - 1;"),
            "the inputs are left as they were": text("") + FIRST + "a[0] = 0.0f;",
            "global loads are coalesced": shared("u", "t"), "global stores are coalesced": shared("t", "u"),
            ENDLESS: "for (int i = blockIdx.x * 64 + threadIdx.x; i < n;) c[i] = a[i] + b[i];"}


SQUARE = "int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * 32 + y, col = blockIdx.x * 32 + x; "
SOME = "if (threadIdx.x < 5) __syncthreads();"


def on_matrices(right, store, last, out, inside):
    """The mistakes that a kernel of M x N elements may make with values, given its text and how it stores."""
    spoiled = lambda when: right.replace(store, store[:-1] + f" + ({when});")
    return {"every value that was written is right": spoiled("M == 64"), "a single element": spoiled("M == 1"),
            inside: spoiled("M != 64 && M != 1"),
            "every output element is written": right.replace(store, f"if (!{last}) {store}"),
            "the inputs are left as they were": right + FIRST + "if (M == 1) a[0] = 0.0f;",
            **with_faults(right, out, "M * N")}


def transpose_kernels(tiled):
    move = "if (row < M && col < N) { b[col * M + row] = a[row * N + col]; } "
    naive, turned = SQUARE + move, SQUARE + "row = blockIdx.y * 32 + x, col = blockIdx.x * 32 + y; " + move
    through = (SQUARE + "__shared__ float tile[32][33]; if (row < M && col < N) tile[y][x] = a[row * N + col];"
               "__syncthreads(); row = blockIdx.x * 32 + y, col = blockIdx.y * 32 + x;"
               "if (row < N && col < M) { b[row * M + col] = tile[x][y]; } ")
    store = "b[row * M + col] = tile[x][y];" if tiled else "b[col * M + row] = a[row * N + col];"
    right = through if tiled else naive
    last = "(row == N - 1 && col == M - 1)" if tiled else "(row == M - 1 && col == N - 1)"
    wrong = {"": right, **on_matrices(right, store, last, "b", "rows and columns that fill no block")}
    return wrong if not tiled else {
        **wrong, "every thread reaches every barrier": through + SOME,
        "no two threads race": through.replace("__syncthreads();", ""),
        "shared memory is written before it is read": through.replace("tile[x][y]", "tile[x][y + 1]"),
        "global loads are coalesced": turned, "global stores are coalesced": naive,
        "no bank conflicts": through.replace("[33]", "[32]")}


def matmul_kernels():
    naive = (SQUARE + "if (row < M && col < N) { float sum = 0;"
             "for (int k = 0; k < K; k++) sum += a[row * K + k] * b[k * N + col]; c[row * N + col] = sum; }")
    fill_a, store = "a_tile[y][x] = row < M && k + x < K ? a[row * K + k + x] : 0.0f;", "c[row * N + col] = sum;"
    right = (SQUARE + "__shared__ float a_tile[32][32]; __shared__ float b_tile[32][32];"
             "float sum = 0; for (int k = 0; k < K; k += 32) {"
             + fill_a + "b_tile[y][x] = k + y < K && col < N ? b[(k + y) * N + col] : 0.0f; __syncthreads();"
             "for (int j = 0; j < 32; j++) sum += a_tile[y][j] * b_tile[j][x]; __syncthreads(); }"
             "if (row < M && col < N) { " + store + " }")
    padded = right.replace("a_tile[32][32]", "a_tile[32][33]")
    across = "int r = blockIdx.y * 32 + x; a_tile[x][y] = r < M && k + y < K ? a[r * K + k + y] : 0.0f;"
    down = ("a_tile[y][x] = sum; __syncthreads();"
            "row = blockIdx.y * 32 + x, col = blockIdx.x * 32 + y, sum = a_tile[x][y]; if (row < M && col < N) { ")
    return {"": right, **on_matrices(right, store, "(row == M - 1 && col == N - 1)", "c",
                                     "sizes that are no multiple of the tile"),
            "every thread reaches every barrier": right + SOME,
            "no two threads race": right.replace("__syncthreads(); }", "}"),
            "shared memory is written before it is read": right.replace(fill_a, "if (row < M) " + fill_a),
            "at most 2 N^3 / 32 loads from global memory": naive,
            "global loads are coalesced": padded.replace(fill_a, across),
            "global stores are coalesced": padded.replace("if (row < M && col < N) { ", down),
            "no bank conflicts": right.replace("a_tile[y][x]", "a_tile[x][y]").replace("a_tile[y][j]", "a_tile[j][y]")}


PAIR, MATRIX = "float* a, const float* b, float* c, int n", "float* a, float* b, int M, int N"
PRODUCT = "float* a, const float* b, float* c, int M, int N, int K"
CASES = dict([
    case(check.cuda.vector_add, "vec_add", PAIR, vector_kernels("a[i] + b[i]", "a", "c")),
    case(check.cuda.scale_add, "scale_add", "float a, float* x, const float* y, float* z, int n",
         vector_kernels("a * x[i] + y[i]", "x", "z")),
    case(check.cuda.stride_add, "stride_add", PAIR, stride_kernels()),
    case(check.cuda.transpose, "transpose", MATRIX, transpose_kernels(tiled=False)),
    case(functools.partial(check.cuda.transpose, tiled=True), "transpose", MATRIX, transpose_kernels(tiled=True)),
    case(check.cuda.matmul, "matmul", PRODUCT, matmul_kernels())])
