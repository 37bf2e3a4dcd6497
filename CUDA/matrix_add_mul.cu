// Matrices in two dimensions of threads: c = a + b with the threads laid along rows and along columns, then c = a b
// straight from global memory and through tiles in shared memory.
// usage: matrix_add_mul [M] [N] [K] [seed]        a is M x K, b is K x N, c is M x N, all row by row
#include "harness.cuh"

constexpr int TILE = 32;                                 // blocks are TILE x TILE threads: a warp is one row of a block

// threadIdx.x counts along the row: the 32 threads of a warp touch 32 neighbours in memory.
__global__ void matrix_add(const float* a, const float* b, float* c, int M, int N) {
    int row = blockIdx.y * TILE + threadIdx.y;
    int col = blockIdx.x * TILE + threadIdx.x;
    if (row < M && col < N) c[row * N + col] = a[row * N + col] + b[row * N + col];
}

// The same sums, but threadIdx.x counts down the column: the threads of a warp touch addresses N floats apart.
__global__ void matrix_add_columns(const float* a, const float* b, float* c, int M, int N) {
    int row = blockIdx.x * TILE + threadIdx.x;
    int col = blockIdx.y * TILE + threadIdx.y;
    if (row < M && col < N) c[row * N + col] = a[row * N + col] + b[row * N + col];
}

// One thread for one element of c: it reads a whole row of a and a whole column of b.
__global__ void matmul_naive(const float* a, const float* b, float* c, int M, int N, int K) {
    int row = blockIdx.y * TILE + threadIdx.y;
    int col = blockIdx.x * TILE + threadIdx.x;
    if (row >= M || col >= N) return;
    float sum = 0.0f;
    for (int k = 0; k < K; k++) sum += a[row * K + k] * b[k * N + col];
    c[row * N + col] = sum;
}

// The block brings in one tile of a and one of b, each thread one element of each. From shared
// memory every element is then used TILE times.
__global__ void matmul_tiled(const float* a, const float* b, float* c, int M, int N, int K) {
    __shared__ float a_tile[TILE][TILE];
    __shared__ float b_tile[TILE][TILE];
    int y = threadIdx.y, x = threadIdx.x;
    int row = blockIdx.y * TILE + y;
    int col = blockIdx.x * TILE + x;
    float sum = 0.0f;
    for (int k0 = 0; k0 < K; k0 += TILE) {
        a_tile[y][x] = row < M && k0 + x < K ? a[row * K + k0 + x] : 0.0f;
        b_tile[y][x] = k0 + y < K && col < N ? b[(k0 + y) * N + col] : 0.0f;
        __syncthreads();                     // the tiles are complete before anyone reads them
        for (int k = 0; k < TILE; k++) sum += a_tile[y][k] * b_tile[k][x];
        __syncthreads();                     // everyone has read them before they are overwritten
    }
    if (row < M && col < N) c[row * N + col] = sum;  // no early return: barriers need all threads
}

int main(int argc, char** argv) {
    at_most(argc, 4, "matrix_add_mul [M] [N] [K] [seed]");
    size_t M = argument(argc, argv, 1, "M", 100, 1, 32768);      // 32768^2 = 2^30: the kernels' int indices suffice
    size_t N = argument(argc, argv, 2, "N", 90, 1, 32768);
    size_t K = argument(argc, argv, 3, "K", 70, 1, 32768);
    uint64_t seed = argument(argc, argv, 4, "seed", 1, 0, size_t(1) << 32);
    require_gpu();
    require_memory(4.0 * double(M * K + K * N + 3 * M * N));
    printf("matrix_add_mul: M = %zu, N = %zu, K = %zu, blocks of %d x %d threads\n", M, N, K, TILE, TILE);

    std::vector<float> a = random_floats(M * K, seed), b = random_floats(K * N, seed);
    std::vector<float> x = random_floats(M * N, seed), y = random_floats(M * N, seed);
    float *a_gpu = to_device(a), *b_gpu = to_device(b), *x_gpu = to_device(x), *y_gpu = to_device(y), *c_gpu;
    CUDA_CHECK(cudaMalloc(&c_gpu, M * N * sizeof(float)));

    unsigned tiles_m = unsigned(M + TILE - 1) / TILE, tiles_n = unsigned(N + TILE - 1) / TILE;
    dim3 block(TILE, TILE), grid(tiles_n, tiles_m), grid_columns(tiles_m, tiles_n);
    auto add = [&] { matrix_add<<<grid, block>>>(x_gpu, y_gpu, c_gpu, int(M), int(N)); };
    auto add_columns = [&] { matrix_add_columns<<<grid_columns, block>>>(x_gpu, y_gpu, c_gpu, int(M), int(N)); };
    auto naive = [&] { matmul_naive<<<grid, block>>>(a_gpu, b_gpu, c_gpu, int(M), int(N), int(K)); };
    auto tiled = [&] { matmul_tiled<<<grid, block>>>(a_gpu, b_gpu, c_gpu, int(M), int(N), int(K)); };

    auto right = [&](const char* name, auto launch, double tolerance, double cost, auto want) {
        poison(c_gpu, M * N);
        launch();
        CUDA_CHECK(cudaGetLastError());
        return check(name, to_host(c_gpu, M * N), N, tolerance, cost, seed, want);
    };
    auto sum_row = [&](size_t i, double* c) {
        for (size_t j = 0; j < N; j++) c[j] = double(x[i * N + j]) + y[i * N + j];
    };
    auto product_row = [&](size_t i, double* c) {
        std::fill_n(c, N, 0.0);
        for (size_t k = 0; k < K; k++)
            for (size_t j = 0; j < N; j++) c[j] += double(a[i * K + k]) * b[k * N + j];
    };
    double add_tolerance = 0x1p-24;                      // one rounding of a number below 2
    double mul_tolerance = double(K) * 0x1p-22;          // K roundings, each of a partial sum that stays small
    if (!right("matrix_add", add, add_tolerance, double(N), sum_row)) return 1;
    if (!right("matrix_add_columns", add_columns, add_tolerance, double(N), sum_row)) return 1;
    if (!right("matmul_naive", naive, mul_tolerance, double(N * K), product_row)) return 1;
    if (!right("matmul_tiled", tiled, mul_tolerance, double(N * K), product_row)) return 1;

    double add_bytes = 12.0 * double(M * N), operations = 2.0 * double(M) * double(N) * double(K);
    print_rate("matrix_add", time_ms(add), add_bytes, "GB/s");
    print_rate("matrix_add_columns", time_ms(add_columns), add_bytes, "GB/s");
    print_rate("matmul_naive", time_ms(naive), operations, "TFLOP/s");
    print_rate("matmul_tiled", time_ms(tiled), operations, "TFLOP/s");
    for (float* p : {a_gpu, b_gpu, x_gpu, y_gpu, c_gpu}) CUDA_CHECK(cudaFree(p));
    return 0;
}
