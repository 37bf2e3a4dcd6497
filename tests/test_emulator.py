"""The emulator names every fault it claims to name, and stays silent on a correct twin of each."""
import re
import shutil
import subprocess

import pytest

from helpers import cuda

# Each case is a kernel with a planted fault, and its twin with the fault mended. argv[1] picks one.
FAULTS = r"""
#include "harness.cuh"

__global__ void divergent(float* out) {
    if (threadIdx.x < 40) __syncthreads();                                 // @some
    out[threadIdx.x] = 1.0f;
}
__global__ void returns_early(float* out, int n) {
    if (int(threadIdx.x) >= n) return;
    out[threadIdx.x] = 1.0f;
    __syncthreads();                                                       // @late
}
__global__ void two_barriers(float* out) {
    if (threadIdx.x % 2) { out[threadIdx.x] = 1.0f; __syncthreads(); }     // @odd
    else __syncthreads();                                                  // @even
}
__global__ void barrier_for_all(float* out) {
    if (threadIdx.x < 40) out[threadIdx.x] = 1.0f;
    __syncthreads();
}
__global__ void store(float* out, int i) { out[i + threadIdx.x] = 1.0f; }    // @store
__global__ void load(const float* in, float* out, int i) { out[threadIdx.x] = in[i + int(threadIdx.x)]; }    // @load
__global__ void reverse(const float* in, float* out, bool wait) {
    __shared__ float tile[64];
    tile[threadIdx.x] = in[threadIdx.x];                                   // @fill
    if (wait) __syncthreads();
    out[threadIdx.x] = tile[63 - threadIdx.x];                             // @reversed
}
__global__ void shift(float* out, bool wait) {
    __shared__ float tile[64];
    tile[threadIdx.x] = float(threadIdx.x);
    __syncthreads();
    float mine = tile[threadIdx.x == 0 ? 63 : threadIdx.x - 1];            // @left
    if (wait) __syncthreads();
    tile[threadIdx.x] = mine;                                              // @put
    out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void half_filled(float* out, int filled) {
    __shared__ float tile[8][8];
    int y = threadIdx.x / 8, x = threadIdx.x % 8;
    if (y < filled) tile[y][x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = tile[y][x];                                         // @get
}
__global__ void outside_tile(float* out, int last) {
    __shared__ float tile[8][8];
    tile[threadIdx.x % 8][threadIdx.x / 8 + last] = 1.0f;                  // @outside
    out[threadIdx.x] = 1.0f;
}
__global__ void scalar(float* out, bool wait) {
    __shared__ float total;
    if (threadIdx.x == 63) total = 5.0f;                                   // @total
    if (wait) __syncthreads();
    out[threadIdx.x] = total;
}
__global__ void dynamic_race(float* out, bool wait) {
    extern __shared__ float smem[];
    float* upper = smem + 64;
    upper[threadIdx.x] = 2.0f;
    if (wait) __syncthreads();
    out[threadIdx.x] = upper[63 - threadIdx.x];
}
__global__ void all_add(float* out, bool atomic) {
    if (atomic) atomicAdd(&out[0], 1.0f);
    else out[0] += 1.0f;                                                   // @add
}
__global__ void other_block(float* out, bool apart) {
    out[apart ? blockIdx.x * 64 + threadIdx.x : threadIdx.x] = 1.0f;       // @same
}
__global__ void add_right_neighbour(float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float x = i + 1 < n ? out[i + 1] : 0.0f;                               // @neighbour
    __syncthreads();                                                   // orders the threads of one block, and no others
    out[i] += x;                                                           // @plus
}
struct Vector { float* data; };
__global__ void in_a_struct(Vector x) { x.data[threadIdx.x] = 1.0f; }
__global__ void as_float4(const float* in, float* out, int i) {
    float4 x = reinterpret_cast<const float4*>(in + i)[threadIdx.x / 8];   // @four
    out[threadIdx.x] = x.w;
}
__global__ void big_local(float* out, int n) {
    volatile char local[400000];
    for (int i = 0; i < n; i++) local[i] = char(i);
    out[threadIdx.x] = n ? float(local[n - 1]) : 0.0f;
}
__global__ void too_much_shared(float* out) {
    __shared__ float tile[20000];                                          // @shared
    tile[threadIdx.x] = 1.0f;
    out[threadIdx.x] = tile[threadIdx.x];
}

int main(int, char** argv) {
    std::string pick = argv[1];
    float *in, *out, *fresh, host[64] = {};
    CUDA_CHECK(cudaMalloc(&in, 64 * sizeof(float)));    // @malloc
    CUDA_CHECK(cudaMemset(in, 0, 64 * sizeof(float)));
    CUDA_CHECK(cudaMalloc(&out, 128 * sizeof(float)));
    CUDA_CHECK(cudaMemset(out, 0, 128 * sizeof(float)));
    CUDA_CHECK(cudaMalloc(&fresh, 64 * sizeof(float)));
    if (pick == "divergent") divergent<<<1, 64>>>(out);
    if (pick == "returns_early") returns_early<<<1, 64>>>(out, 50);
    if (pick == "two_barriers") two_barriers<<<1, 64>>>(out);
    if (pick == "ok divergent") barrier_for_all<<<1, 64>>>(out);
    if (pick == "ok returns_early") returns_early<<<1, 64>>>(out, 64);
    if (pick == "store past the end") store<<<2, 64>>>(out, 65);
    if (pick == "ok store past the end") store<<<1, 64>>>(out, 64);
    if (pick == "load before the start") load<<<1, 64>>>(in, out, -3);
    if (pick == "ok load before the start") load<<<1, 64>>>(in, out, 0);
    if (pick == "load of nothing") load<<<1, 64>>>(fresh, out, 0);
    if (pick == "null") load<<<1, 64>>>(nullptr, out, 0);
    if (pick == "host pointer") load<<<1, 64>>>(host, out, 0);
    if (pick == "freed") { CUDA_CHECK(cudaFree(in)); load<<<1, 64>>>(in, out, 0); }
    if (pick == "device pointer") host[0] = in[0];
    if (pick == "ok device pointer") CUDA_CHECK(cudaMemcpy(host, in, 4, cudaMemcpyDeviceToHost));
    if (pick == "reverse") reverse<<<1, 64>>>(in, out, false);
    if (pick == "ok reverse") reverse<<<1, 64>>>(in, out, true);
    if (pick == "shift") shift<<<1, 64>>>(out, false);
    if (pick == "ok shift") shift<<<1, 64>>>(out, true);
    if (pick == "half_filled") half_filled<<<1, 64>>>(out, 7);
    if (pick == "ok half_filled") half_filled<<<1, 64>>>(out, 8);
    if (pick == "outside_tile") outside_tile<<<1, 64>>>(out, 1);
    if (pick == "ok outside_tile") outside_tile<<<1, 64>>>(out, 0);
    if (pick == "scalar") scalar<<<1, 64>>>(out, false);
    if (pick == "ok scalar") scalar<<<1, 64>>>(out, true);
    if (pick == "dynamic_race") dynamic_race<<<1, 64, 128 * sizeof(float)>>>(out, false);
    if (pick == "ok dynamic_race") dynamic_race<<<1, 64, 128 * sizeof(float)>>>(out, true);
    if (pick == "too little dynamic") dynamic_race<<<1, 64, 127 * sizeof(float)>>>(out, true);
    if (pick == "all_add") all_add<<<1, 64>>>(out, false);
    if (pick == "ok all_add") all_add<<<3, 64>>>(out, true);
    if (pick == "other_block") other_block<<<2, 64>>>(out, false);
    if (pick == "ok other_block") { other_block<<<2, 64>>>(out, true); other_block<<<1, 64>>>(out, true); }
    if (pick == "add_right_neighbour") add_right_neighbour<<<2, 64>>>(out, 128);
    if (pick == "ok add_right_neighbour") add_right_neighbour<<<1, 128>>>(out, 128);
    if (pick == "in_a_struct") in_a_struct<<<1, 64>>>(Vector{out});
    if (pick == "misaligned") as_float4<<<1, 64>>>(in, out, 3);
    if (pick == "ok misaligned") as_float4<<<1, 64>>>(in, out, 4);
    if (pick == "big_local") big_local<<<1, 1>>>(out, 400000);
    if (pick == "too_much_shared") too_much_shared<<<1, 64>>>(out);
    if (pick == "1025 threads") store<<<1, 1025>>>(out, 0);
    if (pick == "no blocks") store<<<0, 64>>>(out, 0);
    if (pick == "dynamic beyond 48 KiB") dynamic_race<<<1, 64, 49153>>>(out, true);
    if (pick == "copy past the end") CUDA_CHECK(cudaMemcpy(host, in + 1, 256, cudaMemcpyDeviceToHost));
    if (pick == "copy backwards") CUDA_CHECK(cudaMemcpy(host, in, 256, cudaMemcpyHostToDevice));
    if (pick == "free twice") { CUDA_CHECK(cudaFree(in)); CUDA_CHECK(cudaFree(in)); }
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaMemcpy(host, out, 256, cudaMemcpyDeviceToHost));
    printf("ran to the end, out[0] = %g\n", host[0]);
}
""".lstrip("\n")

# @name stands for the number of the line that ends in the comment // @name
NAMED = {
    "divergent": r"cell.cu:@some: the __syncthreads\(\) of block \(0,0,0\) in kernel divergent was reached by 40 of "
                 r"its 64 threads: thread \(40,0,0\) ended without it",
    "returns_early": r"cell.cu:@late: the __syncthreads\(\) .* was reached by 50 of its 64 threads",
    "two_barriers": r"cell.cu:@even: the __syncthreads\(\) .* was reached by thread \(0,0,0\), while thread "
                    r"\(\d+,0,0\) waits at another one, at line @odd",
    "store past the end": r"cell.cu:@store: thread \(63,0,0\) of block \(0,0,0\) in kernel store writes out\[128\], "
                          r"but out has 128 elements",
    "load before the start": r"cell.cu:@load: thread \(0,0,0\) .* reads in\[-3\], but in has 64 elements: out of b",
    "load of nothing": r"cell.cu:@load: thread \(0,0,0\) .* reads in\[0\] in global memory, which nobody has written",
    "null": r"cell.cu:@load: thread \(0,0,0\) .* follows in, which is a null pointer",
    "host pointer": r"argument in of kernel load points to host memory",
    "freed": r"cell.cu:@load: .* reads in\[0\] after cudaFree",
    "device pointer": r"cell.cu:@malloc: host code followed a pointer to device memory",
    "reverse": r"cell.cu:@fill: thread \(32,0,0\) .* writes tile\[32\] in shared memory, which thread \(31,0,0\) read "
               r"at line @reversed with no __syncthreads\(\) in between: a race",
    "shift": r"cell.cu:@left: thread \(1,0,0\) .* reads tile\[0\] in shared memory, which thread \(0,0,0\) wrote at "
             r"line @put with no __syncthreads\(\) in between: a race",
    "half_filled": r"cell.cu:@get: thread \(56,0,0\) .* reads tile\[7\]\[0\] in shared memory, which no thread of the "
                   r"block has written",
    "outside_tile": r"cell.cu:@outside: thread \(56,0,0\) .* uses index 8 of tile, a shared array with 8 entries "
                    r"there: out of bounds",
    "scalar": r"thread \(63,0,0\) .* writes total\[0\] in shared memory, which thread \(0,0,0\) read .* a race",
    "dynamic_race": r"writes smem\[\d+\] in shared memory, which thread .* a race",
    "too little dynamic": r"smem\[127\], but smem has 127 elements",
    "all_add": r"cell.cu:@add: thread \(1,0,0\) .* reads out\[0\] in global memory, which thread \(0,0,0\) wrote at "
               r"line @add .* a race",
    "other_block": r"cell.cu:@same: thread \(0,0,0\) of block \(1,0,0\) .* writes out\[0\] in global memory, which a "
                   r"thread of another block wrote at line @same: a race",
    "add_right_neighbour": r"cell.cu:@plus: thread \(0,0,0\) of block \(1,0,0\) .* writes out\[64\] in global memory, "
                           r"which a thread of another block read at line @neighbour: a race",
    "in_a_struct": r"thread \(0,0,0\) of block \(0,0,0\) in kernel in_a_struct follows a pointer that was not an arg",
    "misaligned": r"cell.cu:@four: .* reads 16 bytes of in at once from an address that is no multiple of 16",
    "big_local": r"thread \(0,0,0\) .* needs more than 256 KiB",
    "too_much_shared": r"cell.cu:@shared: too_much_shared needs 80000 bytes of shared memory, and a block has 49152",
    "1025 threads": r"cudaGetLastError\(\): invalid configuration argument",
    "no blocks": r"cudaGetLastError\(\): invalid configuration argument",
    "dynamic beyond 48 KiB": r"cudaGetLastError\(\): invalid argument",
    "copy past the end": r"cudaMemcpy.*: invalid argument",
    "copy backwards": r"cudaMemcpy.*: invalid argument",
    "free twice": r"cudaFree\(in\): invalid argument",
}
LINES = {m[1]: number for number, line in enumerate(FAULTS.split("\n"), 1) if (m := re.search(r"// @(\w+)$", line))}
TWINS = [pick.strip('"') for pick in re.findall(r'"ok [^"]*"', FAULTS)]


@pytest.mark.parametrize("pick", NAMED)
def test_planted_fault_is_named(pick):
    printed = cuda.run(FAULTS, pick, emulate=True, check=False)
    pattern = re.sub(r"@(\w+)", lambda m: str(LINES[m[1]]), NAMED[pick])
    assert re.search(pattern, printed), printed
    assert "ran to the end" not in printed


@pytest.mark.parametrize("pick", TWINS)
def test_correct_twin_is_silent(pick):
    assert cuda.run(FAULTS, pick, emulate=True).startswith("ran to the end")


def test_no_fault_depends_on_the_order_of_the_threads(tmp_path):
    """The same faults and the same silence when an emulator runs the threads of a block last to first."""
    shutil.copytree(cuda.CUDA / "emulator", tmp_path / "emulator")
    fibres = tmp_path / "emulator" / "fibres.h"
    forward = "for (int t = 0; t < threads; t++) {\n            thread_number"
    backward = "for (int t = threads; t-- > 0;) {\n            thread_number"
    assert fibres.read_text().count(forward) == 1
    fibres.write_text(fibres.read_text().replace(forward, backward))
    (tmp_path / "cell.cpp").write_text(cuda.rewrite.rewrite(FAULTS, "cell.cu"))
    subprocess.run(["g++", "-std=c++17", "-fstack-clash-protection", f"-I{tmp_path}/emulator", f"-I{cuda.CUDA}",
                    tmp_path / "cell.cpp", "-o", tmp_path / "cell"], check=True)
    for pick in [*NAMED, *TWINS]:
        done = subprocess.run([tmp_path / "cell", pick], capture_output=True, text=True)
        assert (done.returncode == 0) == (pick in TWINS), (pick, done.stderr)
        assert (": a race" in done.stderr) == ("a race" in NAMED.get(pick, "")), (pick, done.stderr)


def test_atomic_adds_add_up():
    assert cuda.run(FAULTS, "ok all_add", emulate=True) == "ran to the end, out[0] = 192\n"


def test_every_pick_is_a_case():
    assert set(re.findall(r'pick == "([^"]*)"', FAULTS)) == set(NAMED) | set(TWINS)


DIALECT = r"""
#include "harness.cuh"
template <typename T, int STEP> __device__ T twice(const T* __restrict__ x, int i) { return x[i * STEP] + x[i * STEP]; }
template <typename T> __device__ T keep(T mine) {                                       // a shared array for each T
    __shared__ alignas(16) T all[4][16];
    all[threadIdx.y][threadIdx.x] = mine;
    return all[threadIdx.y][threadIdx.x];
}
template <typename T>
__global__ void __launch_bounds__(64) kernel(const T *__restrict__ x, T * y, unsigned int* seen, int n) {
    extern __shared__ float smem[];
    __shared__ int order[4][2][8];
    if (keep<int>(threadIdx.x) + keep<double>(2.0) != 2.0 + threadIdx.x) return;
    T own[2] = {T(0), T(0)};
    T* mine = own;
    int i = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x * blockDim.y + threadIdx.y * blockDim.x + threadIdx.x;
    order[threadIdx.y][threadIdx.x / 8][threadIdx.x % 8] = i;
    smem[threadIdx.y * 16 + threadIdx.x] = x[i];
    __syncthreads();
    mine[1] = max(smem[threadIdx.y * 16 + threadIdx.x], x[i]) + min(0.75f, 0.5f);       // x + 0.5
    float* row = smem + 16 * threadIdx.y;
    row[threadIdx.x] *= 2.0f;                                                           // 2 x
    y[i] = mine[1] + twice<T, 1>(x, i) - row[threadIdx.x] + T(order[threadIdx.y][threadIdx.x / 8][threadIdx.x % 8] - i);
    atomicAdd(&seen[i % n], 1u);
}
int main() {
    uint64_t state = 3;
    std::vector<float> x = random_floats(384, state);
    float *x_gpu = to_device(x), *y_gpu = to_device(x);
    unsigned* seen;
    CUDA_CHECK(cudaMalloc(&seen, 8));
    CUDA_CHECK(cudaMemset(seen, 0, 8));
    dim3 grid(2, 3), block(16, 4);
    kernel<float><<<grid, block, 64 * sizeof(float), 0>>>(x_gpu, y_gpu, seen, 2);
    CUDA_CHECK(cudaGetLastError());
    std::vector<float> y = to_host(y_gpu, 384);
    unsigned counted[2];
    CUDA_CHECK(cudaMemcpy(counted, seen, 8, cudaMemcpyDeviceToHost));
    float worst = 0;
    for (int i = 0; i < 384; i++) worst = fmaxf(worst, fabsf(y[i] - (x[i] + 0.5f)));
    printf("%s %u %u\n", worst < 1e-6f ? "right" : "wrong", counted[0], counted[1]);
}
"""


def test_the_dialect_of_the_emulator():
    """Templates, device functions, launch bounds, restrict, streams, 3-D shared arrays, local arrays, max of floats,
    unsigned atomics: nvcc compiles the text, and the emulator runs it right."""
    assert cuda.run(DIALECT, emulate=True) == "right 192 192\n"
    assert cuda.ptx(DIALECT).count(".entry") == 1


def test_what_the_emulator_does_not_know_is_a_sentence():
    with pytest.raises(ValueError, match=r"cell.cu:2: the emulator does not know __constant__; build with nvcc"):
        cuda.run("int x;\n__constant__ float y;\nint main() {}", emulate=True)


def test_two_names_in_one_shared_declaration_are_refused():
    with pytest.raises(ValueError, match="line 2: the emulator wants one name in each __shared__ declaration"):
        cuda.run("__global__ void f() {\n    __shared__ float a[2], b[2];\n}\nint main() {}", emulate=True)


def test_comments_and_strings_are_left_alone():
    text = 'int main() { puts("f<<<1, 2>>>(x) // __constant__"); }  // g<<<1>>>(); "\n'
    assert cuda.rewrite.rewrite(text, "x.cu").endswith(text)


def test_line_numbers_survive_rewriting():
    assert cuda.rewrite.rewrite(FAULTS, "x.cu").count("\n") == FAULTS.count("\n") + 3
