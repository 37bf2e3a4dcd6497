// Attention twice: the standard way, three kernels with the N_q x N_k matrix in global memory between them, and as
// FlashAttention, one kernel that never writes that matrix.
// usage: attention [N_q] [N_k] [heads] [seed]     q, o are heads x N_q x D; k, v are heads x N_k x D; no mask
#include "harness.cuh"

constexpr int D = 64;                                    // head dimension, fixed: q_i and acc below must fit in registers
constexpr int TILE = 32;                                 // blocks of the two matrix products: TILE x TILE threads
constexpr int ROW_THREADS = 128;                         // threads that share one row in the softmax
constexpr int BLOCK_M = 64;                              // query rows of a flash block, one thread each
constexpr int BLOCK_N = 32;                              // key rows that are in shared memory at a time

// ---- standard attention ------------------------------------------------------------------------------------------

// s = scale * q k^T.  One thread for one score; grid: key tiles x query tiles x heads.
__global__ void attention_scores(const float* q, const float* k, float* s, int N_q, int N_k, float scale) {
    __shared__ float q_tile[TILE][TILE];
    __shared__ float k_tile[TILE][TILE + 1];             // + 1: a warp reads a column below, which else is all one bank
    int y = threadIdx.y, x = threadIdx.x;
    size_t head = blockIdx.z;
    int row = blockIdx.y * TILE + y;
    int key0 = blockIdx.x * TILE;
    q += head * N_q * D, k += head * N_k * D, s += head * N_q * N_k;
    float sum = 0.0f;
    for (int d0 = 0; d0 < D; d0 += TILE) {
        q_tile[y][x] = row < N_q ? q[row * D + d0 + x] : 0.0f;
        k_tile[y][x] = key0 + y < N_k ? k[(key0 + y) * D + d0 + x] : 0.0f;
        __syncthreads();
        for (int d = 0; d < TILE; d++) sum += q_tile[y][d] * k_tile[x][d];
        __syncthreads();
    }
    if (row < N_q && key0 + x < N_k) s[size_t(row) * N_k + key0 + x] = scale * sum;
}

// The threads of a block combine one number each into one for all. Halves fold onto halves: log2(ROW_THREADS) steps.
template <class Combine> __device__ float reduce_block(float mine, float* scratch, Combine combine) {
    int t = threadIdx.x;
    scratch[t] = mine;
    __syncthreads();
    for (int half = ROW_THREADS / 2; half > 0; half /= 2) {
        if (t < half) scratch[t] = combine(scratch[t], scratch[t + half]);
        __syncthreads();
    }
    float all = scratch[0];
    __syncthreads();                                     // everyone has the result before scratch is used again
    return all;
}

// p = softmax of each row of s, in place.  One block for one row; grid: query rows x heads.
__global__ void attention_softmax(float* s, int N_q, int N_k) {
    __shared__ float scratch[ROW_THREADS];
    s += (size_t(blockIdx.y) * N_q + blockIdx.x) * N_k;
    float m = -INFINITY, l = 0.0f;
    for (int j = threadIdx.x; j < N_k; j += ROW_THREADS) m = fmaxf(m, s[j]);
    m = reduce_block(m, scratch, [](float a, float b) { return fmaxf(a, b); });
    for (int j = threadIdx.x; j < N_k; j += ROW_THREADS) l += expf(s[j] - m);
    l = reduce_block(l, scratch, [](float a, float b) { return a + b; });
    for (int j = threadIdx.x; j < N_k; j += ROW_THREADS) s[j] = expf(s[j] - m) / l;
}

// o = p v.  One thread for one element of o; grid: feature tiles x query tiles x heads.
__global__ void attention_output(const float* p, const float* v, float* o, int N_q, int N_k) {
    __shared__ float p_tile[TILE][TILE];
    __shared__ float v_tile[TILE][TILE];
    int y = threadIdx.y, x = threadIdx.x;
    size_t head = blockIdx.z;
    int row = blockIdx.y * TILE + y;
    int d = blockIdx.x * TILE + x;
    p += head * N_q * N_k, v += head * N_k * D, o += head * N_q * D;
    float sum = 0.0f;
    for (int key0 = 0; key0 < N_k; key0 += TILE) {
        p_tile[y][x] = row < N_q && key0 + x < N_k ? p[size_t(row) * N_k + key0 + x] : 0.0f;
        v_tile[y][x] = key0 + y < N_k ? v[(key0 + y) * D + d] : 0.0f;
        __syncthreads();
        for (int j = 0; j < TILE; j++) sum += p_tile[y][j] * v_tile[j][x];
        __syncthreads();
    }
    if (row < N_q) o[row * D + d] = sum;
}

// ---- FlashAttention ----------------------------------------------------------------------------------------------

// One block for BLOCK_M query rows of one head; grid: query blocks x heads.  A thread keeps its row's q_i, m, l and acc in
// registers while tiles of k and v pass through shared memory, read by all threads of the block.
__global__ void flash_attention(const float* q, const float* k, const float* v, float* o, float* lse, int N_q, int N_k,
                                float scale) {
    __shared__ float k_j[BLOCK_N][D];
    __shared__ float v_j[BLOCK_N][D];
    int t = threadIdx.x;
    size_t head = blockIdx.y;
    int row = blockIdx.x * BLOCK_M + t;
    q += head * N_q * D, k += head * N_k * D, v += head * N_k * D, o += head * N_q * D, lse += head * N_q;

    float q_i[D], acc[D], m = -INFINITY, l = 0.0f;
    for (int d = 0; d < D; d++) {
        q_i[d] = row < N_q ? q[row * D + d] : 0.0f;      // neighbours read far apart here, but only once
        acc[d] = 0.0f;
    }
    for (int key0 = 0; key0 < N_k; key0 += BLOCK_N) {
        for (int e = t; e < BLOCK_N * D; e += BLOCK_M) {
            bool inside = key0 + e / D < N_k;
            k_j[e / D][e % D] = inside ? k[key0 * D + e] : 0.0f;
            v_j[e / D][e % D] = inside ? v[key0 * D + e] : 0.0f;
        }
        __syncthreads();                                 // the tiles are complete

        float s[BLOCK_N], m_new = m;
        #pragma unroll                                   // every index of s known: an array in registers has no addresses
        for (int j = 0; j < BLOCK_N; j++) {
            s[j] = 0.0f;
            for (int d = 0; d < D; d++) s[j] += q_i[d] * k_j[j][d];
            s[j] = key0 + j < N_k ? scale * s[j] : -INFINITY;
            m_new = fmaxf(m_new, s[j]);                  // the largest score of this row so far
        }
        float alpha = expf(m - m_new);                   // shrinks what was summed against the old maximum; 0 at first
        l = alpha * l;
        for (int d = 0; d < D; d++) acc[d] = alpha * acc[d];
        #pragma unroll
        for (int j = 0; j < BLOCK_N; j++) {
            float p = expf(s[j] - m_new);                // 0 where there is no key
            l += p;
            for (int d = 0; d < D; d++) acc[d] += p * v_j[j][d];
        }
        m = m_new;
        __syncthreads();                                 // everyone is done with the tiles before they are overwritten
    }
    if (row >= N_q) return;
    for (int d = 0; d < D; d++) o[row * D + d] = acc[d] / l;
    lse[row] = m + logf(l);
}

// ---- the program -------------------------------------------------------------------------------------------------

unsigned ceil_div(size_t n, int block) { return unsigned((n + size_t(block) - 1) / size_t(block)); }

int main(int argc, char** argv) {
    at_most(argc, 4, "attention [N_q] [N_k] [heads] [seed]");
    size_t N_q = argument(argc, argv, 1, "N_q", 100, 1, 1 << 20);        // up to 2^20, row * D fits in the kernels' int
    size_t N_k = argument(argc, argv, 2, "N_k", 80, 1, 1 << 20);
    size_t heads = argument(argc, argv, 3, "heads", 2, 1, 65535);
    uint64_t seed = argument(argc, argv, 4, "seed", 1, 0, size_t(1) << 32);
    require_gpu();
    size_t q_size = heads * N_q * D, k_size = heads * N_k * D, s_size = heads * N_q * N_k;
    require_memory(4.0 * double(2 * q_size + 2 * k_size + s_size + heads * N_q));
    printf("attention: N_q = %zu, N_k = %zu, heads = %zu, D = %d\n", N_q, N_k, heads, D);

    // q and k in [-2, 2) make scores a few units apart: a softmax that is neither flat nor a single peak
    std::vector<float> q = random_floats(q_size, seed, 2.0f), k = random_floats(k_size, seed, 2.0f);
    std::vector<float> v = random_floats(k_size, seed);
    float *q_gpu = to_device(q), *k_gpu = to_device(k), *v_gpu = to_device(v), *s_gpu, *o_gpu, *lse_gpu;
    CUDA_CHECK(cudaMalloc(&s_gpu, s_size * sizeof(float)));
    CUDA_CHECK(cudaMalloc(&o_gpu, q_size * sizeof(float)));
    CUDA_CHECK(cudaMalloc(&lse_gpu, heads * N_q * sizeof(float)));

    int n_q = int(N_q), n_k = int(N_k);
    float scale = 1.0f / sqrtf(float(D));
    dim3 block(TILE, TILE), scores_grid(ceil_div(N_k, TILE), ceil_div(N_q, TILE), unsigned(heads));
    dim3 softmax_grid(n_q, unsigned(heads)), output_grid(D / TILE, ceil_div(N_q, TILE), unsigned(heads));
    dim3 flash_grid(ceil_div(N_q, BLOCK_M), unsigned(heads));
    auto standard = [&] {
        attention_scores<<<scores_grid, block>>>(q_gpu, k_gpu, s_gpu, n_q, n_k, scale);
        CUDA_CHECK(cudaGetLastError());
        attention_softmax<<<softmax_grid, ROW_THREADS>>>(s_gpu, n_q, n_k);
        CUDA_CHECK(cudaGetLastError());
        attention_output<<<output_grid, block>>>(s_gpu, v_gpu, o_gpu, n_q, n_k);
        CUDA_CHECK(cudaGetLastError());
    };
    auto flash = [&] {
        flash_attention<<<flash_grid, BLOCK_M>>>(q_gpu, k_gpu, v_gpu, o_gpu, lse_gpu, n_q, n_k, scale);
        CUDA_CHECK(cudaGetLastError());
    };

    // One row in double precision: the whole softmax at once, then the weighted sum of v. Returns the log-sum-exp.
    std::vector<double> p(N_k);
    auto o_row = [&](size_t i, double* o) {
        size_t head = i / N_q;
        double m = -INFINITY, l = 0.0;
        for (size_t j = 0; j < N_k; j++) {
            p[j] = 0.0;
            for (size_t d = 0; d < D; d++) p[j] += double(q[i * D + d]) * k[(head * N_k + j) * D + d];
            p[j] /= sqrt(double(D));
            m = std::max(m, p[j]);
        }
        for (double& x : p) l += x = exp(x - m);
        std::fill_n(o, D, 0.0);
        for (size_t j = 0; j < N_k; j++)
            for (size_t d = 0; d < D; d++) o[d] += p[j] * v[(head * N_k + j) * D + d];
        for (size_t d = 0; d < D; d++) o[d] /= l;
        return m + log(l);
    };
    auto lse_row = [&](size_t i, double* lse) {
        double o[D];
        *lse = o_row(i, o);
    };
    double cost = 2.0 * D * double(N_k), tolerance = 1e-5;       // o is a mean of numbers in [-1, 1)
    double lse_tolerance = tolerance + sqrt(double(N_k)) * 0x1p-22;      // l is a sum of N_k numbers

    poison(s_gpu, s_size);
    poison(o_gpu, q_size);
    standard();
    if (!check("standard attention, o", to_host(o_gpu, q_size), D, tolerance, cost, seed, o_row)) return 1;
    poison(o_gpu, q_size);
    poison(lse_gpu, heads * N_q);
    flash();
    if (!check("flash attention, o", to_host(o_gpu, q_size), D, tolerance, cost, seed, o_row)) return 1;
    if (!check("flash attention, lse", to_host(lse_gpu, heads * N_q), 1, lse_tolerance, cost, seed, lse_row)) return 1;

    double operations = 4.0 * double(s_size) * D;        // two products, a multiplication and an addition each
    print_rate("standard attention", time_ms(standard), operations, "TFLOP/s");
    print_rate("flash attention", time_ms(flash), operations, "TFLOP/s");
    for (float* x : {q_gpu, k_gpu, v_gpu, s_gpu, o_gpu, lse_gpu}) CUDA_CHECK(cudaFree(x));
    return 0;
}
