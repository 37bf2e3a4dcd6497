// Purpose: no CUDA error passes unnoticed. Every runtime call goes through CUDA_CHECK; a launch returns nothing, so it is
// followed by CUDA_CHECK(cudaGetLastError()).
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>

// Exit statuses: 0 all checks passed, 1 a result is wrong, 2 the program could not run (arguments, memory, no GPU).
#define CUDA_CHECK(call)                                                                                        \
    do {                                                                                                        \
        cudaError_t status = (call);                                                                            \
        if (status != cudaSuccess) {                                                                            \
            fflush(stdout);                                                                                     \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status));          \
            exit(2);                                                                                            \
        }                                                                                                       \
    } while (0)

// Say which device this is, or that there is none.
inline void require_gpu() {
    int devices = 0;
    cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0) {
        fprintf(stderr, "No NVIDIA GPU to run on (%s); `make -C CUDA emulate` builds a version that needs none.\n",
                status == cudaSuccess ? "the driver lists no device" : cudaGetErrorString(status));
        exit(2);
    }
    cudaDeviceProp device;
    CUDA_CHECK(cudaGetDeviceProperties(&device, 0));
    printf("[gpu] device: %s\n", device.name);
}

// Before the first allocation: does everything the program will ask for fit?
inline void require_memory(double bytes) {
    size_t free_bytes, total;
    CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
    if (bytes > 0.98 * double(free_bytes)) {
        fflush(stdout);
        fprintf(stderr, "These sizes need %.2f GiB of GPU memory, and %.2f GiB are free.\n", bytes / (1 << 30),
                double(free_bytes) / (1 << 30));
        exit(2);
    }
}
