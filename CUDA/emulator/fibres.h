// Purpose: runs a kernel. Each thread of a block is a fibre (ucontext): a function with a stack of its own that can stop in
// the middle and go on later. A thread runs until it reaches __syncthreads() or its end; when all of the block stand at the
// barrier, all go on.
#pragma once
#include <functional>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

#include "pointers.h"

namespace emu {

constexpr size_t STACK = 256 * 1024, GUARD = 4096;       // bytes a fibre; touching the guard page is a fault, see cuda_runtime.h
constexpr int MAX_THREADS = 1024;

struct Fibre {
    ucontext_t context;
    bool done;
    int barrier;                                         // the line of the __syncthreads() it waits at
};

inline std::vector<Fibre> fibres;
inline char* stacks = nullptr;
inline ucontext_t scheduler;
inline std::function<void()> body;                       // the kernel with its arguments

inline void fibre_main() {
    body();
    fibres[size_t(thread_number)].done = true;           // uc_link leads back to the scheduler
}

inline void start(Fibre& f, int number) {
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + size_t(number) * (STACK + GUARD) + GUARD;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = &scheduler;
    f.done = false, f.barrier = 0;
    makecontext(&f.context, fibre_main, 0);
}

inline void make_stacks() {
    size_t bytes = MAX_THREADS * (STACK + GUARD);        // only pages that are touched take memory
    stacks = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stacks == MAP_FAILED) stop(0, "no memory for the stacks of " + std::to_string(MAX_THREADS) + " threads");
    for (int i = 0; i < MAX_THREADS; i++) mprotect(stacks + size_t(i) * (STACK + GUARD), GUARD, PROT_NONE);
    fibres.resize(MAX_THREADS);
}

// After a round every thread must stand at the same barrier, or every thread must have ended.
inline bool all_ended(int threads) {
    int waiting = -1, ended = -1, elsewhere = -1, arrived = 0;
    for (int t = 0; t < threads; t++) {
        Fibre& f = fibres[size_t(t)];
        if (f.done) { if (ended < 0) ended = t; continue; }
        arrived++;
        if (waiting < 0) waiting = t;
        else if (f.barrier != fibres[size_t(waiting)].barrier) elsewhere = t;
    }
    if (waiting < 0) return true;
    int line = fibres[size_t(waiting)].barrier;
    std::string here = "the __syncthreads() of block " + text(blockIdx) + " in kernel " + kernel;
    if (ended >= 0)
        stop(line, here + " was reached by " + std::to_string(arrived) + " of its " + std::to_string(threads) +
                       " threads: thread " + text(thread_index(ended)) + " ended without it");
    if (elsewhere >= 0)
        stop(line, here + " was reached by thread " + text(thread_index(waiting)) + ", while thread " +
                       text(thread_index(elsewhere)) + " waits at another one, at line " +
                       std::to_string(fibres[size_t(elsewhere)].barrier));
    return false;
}

inline void run_block() {
    int threads = int(blockDim.x * blockDim.y * blockDim.z);
    for (int t = 0; t < threads; t++) start(fibres[size_t(t)], t);
    block_epoch = epoch;
    int rounds = 0;
    do {
        for (int t = 0; t < threads; t++) {
            thread_number = t;
            threadIdx = thread_index(t);
            if (!fibres[size_t(t)].done) swapcontext(&scheduler, &fibres[size_t(t)].context);
        }
        end_epoch();
        if (counting) count_epoch();
        rounds++;
    } while (!all_ended(threads));
    if (counting) {
        traffic[kernel].threads += threads;
        traffic[kernel].barriers += rounds - 1;
    }
    end_shared();
}

inline void run_grid(const char* name, dim3 grid, dim3 block, size_t bytes) {
    if (!stacks) make_stacks();
    kernel = name, gridDim = grid, blockDim = block, dynamic_bytes = bytes;
    launch_epoch = epoch;
    if (counting) traffic[kernel].launches++;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = {x, y, z};
                run_block();
            }
    kernel = "";
}

}  // namespace emu

inline void __syncthreads(int line = __builtin_LINE()) {
    emu::Fibre& f = emu::fibres[size_t(emu::thread_number)];
    f.barrier = line;
    swapcontext(&f.context, &emu::scheduler);
}
