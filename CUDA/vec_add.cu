// c = a + b, element by element: the smallest complete CUDA program.
// usage: vec_add [n] [seed]
#include "harness.cuh"

constexpr int THREADS = 256;                             // of one block

// One thread for one element. The threads of the last block that are left over do nothing.
__global__ void vec_add(const float* a, const float* b, float* c, size_t n) {
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;  // 32 bits end at 2^32 elements
    if (i < n) c[i] = a[i] + b[i];
}

// One thread for four neighbours, which travel as one float4: the same bytes in a quarter
// of the loads.
__global__ void vec_add_float4(const float* a, const float* b, float* c, size_t n) {
    size_t i = 4 * (size_t(blockIdx.x) * blockDim.x + threadIdx.x);
    if (i + 4 <= n) {
        float4 x = reinterpret_cast<const float4*>(a)[i / 4];
        float4 y = reinterpret_cast<const float4*>(b)[i / 4];
        reinterpret_cast<float4*>(c)[i / 4] =
            make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
    } else {
        for (; i < n; i++) c[i] = a[i] + b[i];  // the last one, two or three elements
    }
}

size_t blocks_for(size_t threads) { return (threads + THREADS - 1) / THREADS; }      // ceil(threads / THREADS)

int main(int argc, char** argv) {
    at_most(argc, 2, "vec_add [n] [seed]");
    size_t n = argument(argc, argv, 1, "n", 10000, 1, size_t(1) << 32);
    uint64_t seed = argument(argc, argv, 2, "seed", 1, 0, size_t(1) << 32);
    require_gpu();
    size_t bytes = n * sizeof(float);
    require_memory(3.0 * double(bytes));
    printf("vec_add: n = %zu, %zu blocks of %d threads\n", n, blocks_for(n), THREADS);

    std::vector<float> a = random_floats(n, seed), b = random_floats(n, seed);
    float *a_gpu = to_device(a), *b_gpu = to_device(b), *c_gpu;
    CUDA_CHECK(cudaMalloc(&c_gpu, bytes));

    auto one_each = [&] { vec_add<<<unsigned(blocks_for(n)), THREADS>>>(a_gpu, b_gpu, c_gpu, n); };
    auto four_each = [&] { vec_add_float4<<<unsigned(blocks_for((n + 3) / 4)), THREADS>>>(a_gpu, b_gpu, c_gpu, n); };
    auto copy = [&] { CUDA_CHECK(cudaMemcpy(c_gpu, a_gpu, bytes, cudaMemcpyDeviceToDevice)); };
    auto right = [&](const char* name) {
        CUDA_CHECK(cudaGetLastError());
        // |a + b| < 2, where a float's rounding error is at most 2^-24
        return check(name, to_host(c_gpu, n), 1, 0x1p-24, 1, seed, [&](size_t i, double* c) { *c = double(a[i]) + b[i]; });
    };

    poison(c_gpu, n);
    one_each();
    if (!right("vec_add")) return 1;
    poison(c_gpu, n);
    four_each();
    if (!right("vec_add_float4")) return 1;

    Times copy_ms = time_ms(copy), one_ms = time_ms(one_each), four_ms = time_ms(four_each);
    print_rate("device copy", copy_ms, 2.0 * double(bytes), "GB/s");                 // reads and writes n floats
    print_rate("vec_add", one_ms, 3.0 * double(bytes), "GB/s");                      // reads 2 n, writes n
    print_rate("vec_add_float4", four_ms, 3.0 * double(bytes), "GB/s");
    CUDA_CHECK(cudaFree(a_gpu));
    CUDA_CHECK(cudaFree(b_gpu));
    CUDA_CHECK(cudaFree(c_gpu));
    return 0;
}
