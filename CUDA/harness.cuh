// Purpose: what every program of this folder does besides its kernels: read its arguments, draw random inputs, compare
// with a loop in double precision, and only then measure time.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda_check.cuh"

// Argument number i of the command line, a whole number from `least` to `most`; `otherwise` where it is not given.
inline size_t argument(int argc, char** argv, int i, const char* name, size_t otherwise, size_t least, size_t most) {
    if (i >= argc) return otherwise;
    char* end;
    size_t value = strtoull(argv[i], &end, 10);
    bool digits = argv[i][0] && strspn(argv[i], "0123456789") == strlen(argv[i]) && strlen(argv[i]) < 19;
    if (!digits || value < least || value > most) {
        fprintf(stderr, "%s must be a whole number from %zu to %zu, not \"%s\".\n", name, least, most, argv[i]);
        exit(2);
    }
    return value;
}

inline void at_most(int argc, int arguments, const char* usage) {
    if (argc - 1 > arguments) {
        fprintf(stderr, "%d arguments are too many; usage: %s\n", argc - 1, usage);
        exit(2);
    }
}

inline uint64_t next_random(uint64_t& state) {           // splitmix64: good bits from any seed, zero included
    uint64_t x = state += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

// n floats spread evenly over [-size, size).
inline std::vector<float> random_floats(size_t n, uint64_t& state, float size = 1.0f) {
    std::vector<float> x(n);
    for (float& e : x) e = size * (float(next_random(state) >> 40) * 0x1p-23f - 1.0f);
    return x;
}

inline float* to_device(const std::vector<float>& x) {
    float* p;
    CUDA_CHECK(cudaMalloc(&p, x.size() * sizeof(float)));
    CUDA_CHECK(cudaMemcpy(p, x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice));
    return p;
}

// Bytes of 0xFF are NaN: an output that a kernel forgets to write cannot look right.
inline void poison(float* p, size_t n) { CUDA_CHECK(cudaMemset(p, 0xFF, n * sizeof(float))); }

inline std::vector<float> to_host(const float* p, size_t n) {
    std::vector<float> x(n);
    CUDA_CHECK(cudaMemcpy(x.data(), p, n * sizeof(float), cudaMemcpyDeviceToHost));
    return x;
}

// Compare rows of `width` results. want(row, out) computes one row in double precision in about `cost` steps. Where all
// rows would take more than 2^30 steps, a random sample of rows is compared, and the line says so. No element may be NaN.
template <class Want>
bool check(const char* name, const std::vector<float>& got, size_t width, double tolerance, double cost, uint64_t seed, Want want) {
    size_t rows = got.size() / width;
    size_t sample = std::min(rows, std::max(size_t(4), size_t(double(1 << 30) / cost)));
    std::vector<double> expected(width);
    double largest = 0;
    auto differs = [&](size_t i, double should_be) {
        printf("%s: element %zu is %g, expected %g, allowed error %.1e: FAIL\n", name, i, got[i], should_be, tolerance);
        return false;
    };
    for (size_t s = 0; s < sample; s++) {
        size_t row = sample == rows ? s : next_random(seed) % rows;
        want(row, expected.data());
        for (size_t x = 0; x < width; x++) {
            double error = std::fabs(got[row * width + x] - expected[x]);
            if (!(error <= tolerance)) return differs(row * width + x, expected[x]);       // a NaN fails too
            largest = std::max(largest, error);
        }
    }
    for (size_t i = 0; i < got.size(); i++)
        if (std::isnan(got[i])) {
            printf("%s: element %zu was never written: FAIL\n", name, i);
            return false;
        }
    printf("%s: max error <= %.1e in %zu of %zu elements: PASS\n", name, tolerance, sample * width, got.size());
    printf("[gpu] %s: largest error %.2e\n", name, largest);
    return true;
}

struct Times { float median, low, high; int runs; };     // milliseconds; low and high are the quartiles

// Median over `runs` runs, each between two events of its own. NaN where no clock runs (the emulator has none).
template <class Launch> Times time_ms(Launch launch, int runs = 30) {
    cudaEvent_t start, stop;
    CUDA_CHECK(cudaEventCreate(&start));
    CUDA_CHECK(cudaEventCreate(&stop));
    std::vector<float> ms(size_t(runs), NAN);
    CUDA_CHECK(cudaEventRecord(start));
    CUDA_CHECK(cudaEventRecord(stop));
    CUDA_CHECK(cudaEventSynchronize(stop));
    CUDA_CHECK(cudaEventElapsedTime(&ms[0], start, stop));
    bool clock_runs = !std::isnan(ms[0]);
    for (int i = -5; clock_runs && i < runs; i++) {      // five runs to warm up
        CUDA_CHECK(cudaEventRecord(start));
        launch();
        CUDA_CHECK(cudaEventRecord(stop));
        CUDA_CHECK(cudaGetLastError());
        CUDA_CHECK(cudaEventSynchronize(stop));
        if (i >= 0) CUDA_CHECK(cudaEventElapsedTime(&ms[size_t(i)], start, stop));
    }
    CUDA_CHECK(cudaEventDestroy(start));
    CUDA_CHECK(cudaEventDestroy(stop));
    if (clock_runs) std::sort(ms.begin(), ms.end());
    return {ms[size_t(runs) / 2], ms[size_t(runs) / 4], ms[size_t(runs) * 3 / 4], runs};
}

// "[gpu] vec_add: 0.7431 ms (0.7422 to 0.7440 in 30 runs), 4335.2 GB/s"; `amount` is bytes or operations for one run.
inline void print_rate(const char* name, Times t, double amount, const char* unit) {
    double per_unit = strcmp(unit, "GB/s") == 0 ? 1e9 : 1e12;
    if (std::isnan(t.median)) printf("[gpu] %s: time not measured (emulated)\n", name);
    else printf("[gpu] %s: %.5f ms (%.5f to %.5f in %d runs), %.3f %s\n", name, t.median, t.low, t.high, t.runs,
                amount / per_unit / (t.median * 1e-3), unit);
}
