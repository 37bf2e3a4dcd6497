// Purpose: stands in for NVIDIA's cuda_runtime.h when a program is emulated: the runtime calls the course uses, the launch,
// and the words of CUDA C++ that a C++ compiler does not know. Errors are returned exactly where CUDA returns them.
#pragma once
#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <memory>
#include <tuple>
#include <utility>

#include "fibres.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float __expf(float x) { return expf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// One for each type, as CUDA has them: with int alone, max(0.5f, 0.7f) would be 0.
#define EMU_MIN_MAX(T)                                                                                          \
    inline T min(T a, T b) { return a < b ? a : b; }                                                            \
    inline T max(T a, T b) { return a > b ? a : b; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(size_t)
EMU_MIN_MAX(float)
EMU_MIN_MAX(double)

enum cudaError_t {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
using cudaStream_t = void*;
struct cudaEventDummy {};
using cudaEvent_t = cudaEventDummy*;
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, maxThreadsPerBlock, warpSize;
    size_t totalGlobalMem, sharedMemPerBlock;
};

namespace emu {

constexpr size_t GLOBAL_MEMORY = size_t(128) << 20;      // bytes; the cells that watch it take ten times as much
inline std::vector<std::unique_ptr<Region>> allocations; // freed ones stay, to be named when somebody uses them
inline size_t allocated = 0;
inline cudaError_t last_error = cudaSuccess;

inline Region* find(const void* p) {
    for (auto& r : allocations)
        if (r->holds(reinterpret_cast<uintptr_t>(p))) return r.get();
    return nullptr;
}

inline cudaError_t result(cudaError_t e) {
    if (e != cudaSuccess) last_error = e;
    return e;
}

// Device memory lies at addresses that the host cannot use, as on a real machine: find out who tried, and say so.
inline void on_segfault(int, siginfo_t* info, void*) {
    char* where = static_cast<char*>(info->si_addr);
    if (stacks && where >= stacks && where < stacks + MAX_THREADS * (STACK + GUARD))
        fault(0, "needs more than " + std::to_string(STACK / 1024) + " KiB for its local arrays and calls");
    if (kernel[0]) fault(0, "follows a pointer that was not an argument of the kernel");
    if (Region* r = find(where))
        stop(r->line, "host code followed a pointer to device memory (the one allocated here): copy with cudaMemcpy first");
    stop(0, "segmentation fault in host code");
}

inline void write_traffic_at_exit() {
    FILE* out = fopen(getenv("CUDA_EMULATOR_TRAFFIC"), "w");
    if (!out) stop(0, std::string("cannot write the traffic to ") + getenv("CUDA_EMULATOR_TRAFFIC"));
    write_traffic(out);
    fclose(out);
}

inline const bool ready = [] {
    static char stack[64 * 1024];                        // the handler needs a stack even when a fibre's is used up
    stack_t alternate{};
    alternate.ss_sp = stack, alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, nullptr);
    struct sigaction action{};
    action.sa_sigaction = on_segfault, action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
    counting = getenv("CUDA_EMULATOR_TRAFFIC") != nullptr;
    if (counting) atexit(write_traffic_at_exit);
    return true;
}();

// A pointer argument becomes a watched pointer that knows the parameter's name; other arguments go as they are.
template <class T> auto argument(T* p, const char* name, int line) {
    Region* r = find(p);
    if (p && !r)
        stop(line, std::string("argument ") + name + " of kernel " + kernel +
                       " points to host memory: a kernel needs a pointer from cudaMalloc");
    return ptr<T>(r, reinterpret_cast<uintptr_t>(p), name);
}
struct Null {                                            // nullptr, which has no type yet
    const char* name;
    template <class T> operator ptr<T>() const { return {nullptr, 0, name}; }
};
inline Null argument(std::nullptr_t, const char* name, int) { return {name}; }
template <class T> T argument(T value, const char*, int) { return value; }

// kernel<<<grid, block, bytes, stream>>>(arguments)  becomes  emu::launch("kernel", {"a", "n"}, line, call, grid, …)(arguments)
template <class Call> struct Launcher {
    const char* name;
    std::vector<const char*> parameters;
    int line;
    Call call;
    dim3 grid, block;
    size_t bytes;

    template <size_t... I, class... A> auto watch(std::index_sequence<I...>, A... a) {
        return std::make_tuple(argument(a, parameters[I], line)...);
    }
    template <class... A> void operator()(A... a) {
        bool fits = grid.x && grid.y && grid.z && grid.x <= 2147483647u && grid.y <= 65535 && grid.z <= 65535 && block.x &&
                    block.y && block.z && block.x <= 1024 && block.y <= 1024 && block.z <= 64 &&
                    (unsigned long long)block.x * block.y * block.z <= MAX_THREADS;
        if (!fits) { last_error = cudaErrorInvalidConfiguration; return; }
        if (bytes > SHARED_LIMIT) { last_error = cudaErrorInvalidValue; return; }
        kernel = name;
        auto watched = watch(std::index_sequence_for<A...>(), a...);
        body = [&] { std::apply(call, watched); };
        run_grid(name, grid, block, bytes);
    }
};

template <class Call>
Launcher<Call> launch(const char* name, std::vector<const char*> parameters, int line, Call call, dim3 grid, dim3 block,
                      size_t bytes = 0, cudaStream_t = nullptr) {
    return {name, std::move(parameters), line, call, grid, block, bytes};
}

}  // namespace emu

inline cudaError_t cudaMalloc(void** p, size_t bytes, int line = __builtin_LINE()) {
    *p = nullptr;
    if (!bytes) return cudaSuccess;
    if (bytes > emu::GLOBAL_MEMORY - emu::allocated) return emu::result(cudaErrorMemoryAllocation);
    auto r = std::make_unique<emu::Region>();
    // Reserved addresses that nobody may touch; a free page on either side keeps two allocations apart.
    size_t pages = (bytes + 3 * 4096 - 1) / 4096 * 4096;
    void* reserved = mmap(nullptr, pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    r->storage = static_cast<char*>(malloc(bytes));
    if (reserved == MAP_FAILED || !r->storage) return emu::result(cudaErrorMemoryAllocation);
    r->base = reinterpret_cast<uintptr_t>(reserved) + 4096, r->bytes = bytes, r->line = line;
    r->written.resize(bytes);
    r->cells.resize(bytes / r->grain + 1);
    *p = reinterpret_cast<void*>(r->base);
    emu::allocated += bytes;
    emu::allocations.push_back(std::move(r));
    return cudaSuccess;
}
template <class T> cudaError_t cudaMalloc(T** p, size_t bytes, int line = __builtin_LINE()) {
    return cudaMalloc(reinterpret_cast<void**>(p), bytes, line);
}

inline cudaError_t cudaFree(void* p) {
    if (!p) return cudaSuccess;
    emu::Region* r = emu::find(p);
    if (!r || !r->alive || r->base != reinterpret_cast<uintptr_t>(p)) return emu::result(cudaErrorInvalidValue);
    r->alive = false;
    free(r->storage);
    r->written = {}, r->cells = {};
    emu::allocated -= r->bytes;
    return cudaSuccess;
}

// Where `bytes` bytes from p on really are: p itself on the host's side, inside a living allocation on the device's.
inline char* emu_place(const void* p, size_t bytes, bool on_device, bool writes) {
    emu::Region* r = emu::find(p);
    if (!on_device) return r ? nullptr : static_cast<char*>(const_cast<void*>(p));
    size_t offset = r ? reinterpret_cast<uintptr_t>(p) - r->base : 0;
    if (!r || !r->alive || bytes > r->bytes - offset) return nullptr;
    if (writes) std::fill_n(r->written.begin() + long(offset), bytes, char(1));
    return r->storage + offset;
}

inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (!bytes) return cudaSuccess;
    char* source = emu_place(from, bytes, kind != cudaMemcpyHostToDevice, false);
    char* target = source ? emu_place(to, bytes, kind != cudaMemcpyDeviceToHost, true) : nullptr;
    if (!target) return emu::result(cudaErrorInvalidValue);
    memmove(target, source, bytes);
    return cudaSuccess;
}

inline cudaError_t cudaMemset(void* p, int value, size_t bytes) {
    char* target = bytes ? emu_place(p, bytes, true, true) : nullptr;
    if (bytes && !target) return emu::result(cudaErrorInvalidValue);
    if (bytes) memset(target, value, bytes);
    return cudaSuccess;
}

inline cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
    *total = emu::GLOBAL_MEMORY, *free_bytes = emu::GLOBAL_MEMORY - emu::allocated;
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* n) { *n = 1; return cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    *p = {"none (emulated)", 8, 0, 1, emu::MAX_THREADS, 32, emu::GLOBAL_MEMORY, emu::SHARED_LIMIT};
    return cudaSuccess;
}
inline cudaError_t cudaPeekAtLastError() { return emu::last_error; }
inline cudaError_t cudaGetLastError() {
    cudaError_t e = emu::last_error;
    emu::last_error = cudaSuccess;
    return e;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

// Events exist, but no clock runs: the time between two is not a number, so that nobody can take it for a measurement.
inline cudaError_t cudaEventCreate(cudaEvent_t* e) { *e = nullptr; return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t = nullptr) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) {
    *ms = std::numeric_limits<float>::quiet_NaN();
    return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t e) {
    switch (e) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    }
    return "unknown error";
}
