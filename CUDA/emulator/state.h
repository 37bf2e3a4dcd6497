// Purpose: what the emulator knows at any moment: the kernel that runs, the block, the thread; and how it stops on a fault.
//
// The emulator runs a kernel on the CPU, one block after the other, one thread at a time. There is no parallelism to get
// lucky with: every check below is about the rules of CUDA, never about which thread happened to be first.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <unistd.h>

struct uint3 { unsigned x, y, z; };

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// The names that a kernel reads. The scheduler in fibres.h sets them before a thread goes on.
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emu {

constexpr int EXIT_FAULT = 86;                 // the exit status of a program stopped by the emulator

inline const char* source_file = "";           // the .cu file, set by the first line of the rewritten program
inline const char* kernel = "";                // name of the running kernel; empty while host code runs
inline int thread_number = 0;                  // threadIdx counted x first, then y, then z
inline int epoch = 0;                          // counts blocks and barriers, see memory.h
inline int block_epoch = 0, launch_epoch = 0;  // the first epoch of this block, and of this launch

inline std::string text(uint3 i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

inline uint3 thread_index(int number) {
    unsigned t = unsigned(number), x = blockDim.x, y = blockDim.y;
    return {t % x, t / x % y, t / (x * y)};
}

// Print one fault and stop the program. Line 0 means that no line of the source can be named.
[[noreturn]] inline void stop(int line, const std::string& what) {
    fflush(stdout);
    std::string where = source_file;
    if (line > 0) where += ":" + std::to_string(line);
    fprintf(stderr, "emulator: %s: %s\n", where.c_str(), what.c_str());
    fflush(stderr);
    _exit(EXIT_FAULT);
}

inline std::string by_thread() {
    return "thread " + text(threadIdx) + " of block " + text(blockIdx) + " in kernel " + kernel + " ";
}

// A fault of the running thread: names the thread, the block and the kernel, then says what it did.
[[noreturn]] inline void fault(int line, const std::string& what) { stop(line, by_thread() + what); }

}  // namespace emu
