// Purpose: memory that is watched. Every read and write of a kernel goes through emu::access, which says whether it is
// allowed (inside an allocation, of something written, ordered by a barrier) and hands it to the counters of traffic.h.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "state.h"
#include "traffic.h"

namespace emu {

// Who touched four bytes last, and when. Time is counted in epochs: a new one starts with every block and behind every
// __syncthreads(), so that what happens in one epoch has no order that a program may rely on.
struct Cell {
    int writer = -1, write_epoch = -1, write_line = 0;                         // writer -1: nobody yet
    int reader = -1, other_reader = -1, read_epoch = -1, read_line = 0;        // two different threads that read it
    int earlier_epoch = -1, earlier_line = 0;                                  // the last read before this block's first
};
constexpr int ATOMIC = -2;                                                     // a writer: atomics do not race with each other

// One cudaMalloc, or one __shared__ array of the running block.
struct Region {
    uintptr_t base = 0;             // the address that the program sees
    size_t bytes = 0;
    char* storage = nullptr;        // where the bytes really are
    bool is_shared = false, alive = true;
    int line = 0;                   // of the cudaMalloc or of the declaration
    size_t grain = 4;               // bytes of a cell
    std::vector<Cell> cells;
    std::vector<char> written;      // a flag for each byte
    std::vector<size_t> dims;       // of a __shared__ array

    bool holds(uintptr_t a) const { return a >= base && a < base + bytes; }
};

// "a[35]" for a pointer, "tile[2][3]" for a shared array of two dimensions.
inline std::string element(const Region& r, const char* name, long long index) {
    size_t left = 1;
    for (size_t d : r.dims) left *= d;
    if (r.dims.size() < 2 || index < 0 || size_t(index) >= left) return name + ("[" + std::to_string(index) + "]");
    std::string out = name;
    for (size_t d : r.dims) {
        left /= d;
        out += "[" + std::to_string(size_t(index) / left % d) + "]";
    }
    return out;
}

// Is what `who` did then unordered with what the running thread does now? It is if another thread did it in this epoch, or
// any thread of another block of this launch, whenever that was.
inline bool unordered(int then, int who) {
    return (then == epoch && who != thread_number) || (then >= launch_epoch && then < block_epoch);
}

[[noreturn]] inline void race(const Region& r, int line, const std::string& what, int then, int who, const char* did, int there) {
    std::string place = r.is_shared ? " in shared memory" : " in global memory";
    std::string other = then < block_epoch ? "a thread of another block" : who == ATOMIC ? "an atomic operation"
                                                                         : "thread " + text(thread_index(who));
    fault(line, what + place + ", which " + other + " " + did + " at line " + std::to_string(there) +
                    (then < block_epoch ? ": a race" : " with no __syncthreads() in between: a race"));
}

// Two threads may use the same cell, one of them writing, only with a barrier between the two.
inline void check_race(Region& r, size_t offset, size_t size, Kind kind, const char* name, long long index, int line) {
    int me = kind == Kind::atomic ? ATOMIC : thread_number;
    const char* verb = kind == Kind::load ? "reads " : "writes ";
    for (size_t i = offset / r.grain; i <= (offset + size - 1) / r.grain; i++) {
        Cell& c = r.cells[i];
        if (unordered(c.write_epoch, c.writer) && !(me == ATOMIC && c.writer == ATOMIC))
            race(r, line, verb + element(r, name, index), c.write_epoch, c.writer, "wrote", c.write_line);
        if (kind == Kind::load) {
            if (c.read_epoch < block_epoch) c.earlier_epoch = c.read_epoch, c.earlier_line = c.read_line;
            if (c.read_epoch != epoch) c.reader = me, c.other_reader = -1, c.read_epoch = epoch, c.read_line = line;
            else if (c.reader != me) c.other_reader = me;
            continue;
        }
        int other = c.reader == thread_number && c.other_reader != -1 ? c.other_reader : c.reader;
        if (unordered(c.read_epoch, other))
            race(r, line, verb + element(r, name, index), c.read_epoch, other, "read", c.read_line);
        if (unordered(c.earlier_epoch, -1))
            race(r, line, verb + element(r, name, index), c.earlier_epoch, -1, "read", c.earlier_line);
        c.writer = me, c.write_epoch = epoch, c.write_line = line;
    }
}

// A read of what nobody wrote. In shared memory the fault waits for the end of the epoch: if another thread writes the
// element by then, check_race names the better reason, the missing barrier.
inline std::string unwritten;
inline int unwritten_line = 0;

inline void check_written(Region& r, size_t offset, size_t size, Kind kind, const char* name, long long index, int line) {
    if (kind != Kind::load) std::fill_n(r.written.begin() + long(offset), size, char(1));
    else if (std::count(r.written.begin() + long(offset), r.written.begin() + long(offset + size), char(0))) {
        std::string what = "reads " + element(r, name, index);
        if (!r.is_shared) fault(line, what + " in global memory, which nobody has written");
        if (unwritten.empty()) {
            unwritten = by_thread() + what + " in shared memory, which no thread of the block has written";
            unwritten_line = line;
        }
    }
}

inline void end_epoch() {
    if (!unwritten.empty()) stop(unwritten_line, unwritten);
    epoch++;
}

// Check one access of `size` bytes, count it, and return where the bytes really are. Without a region the address is that
// of an array of the thread's own, which a GPU keeps in registers: nothing to check or count.
inline char* access(Region* r, uintptr_t address, size_t size, Kind kind, const char* name, int line) {
    if (!r && !address) fault(line, std::string("follows ") + name + ", which is a null pointer");
    if (!r) return reinterpret_cast<char*>(address);
    long long offset = (long long)(address - r->base), each = (long long)size;
    long long index = offset >= 0 ? offset / each : -((each - 1 - offset) / each);
    const char* verb = kind == Kind::load ? "reads " : "writes ";
    if (!r->alive) fault(line, verb + element(*r, name, index) + " after cudaFree");
    if (offset < 0 || size_t(offset) + size > r->bytes)
        fault(line, verb + element(*r, name, index) + ", but " + name + " has " + std::to_string(r->bytes / size) +
                        " elements: out of bounds");
    if (address % size)
        fault(line, verb + std::to_string(size) + " bytes of " + name + " at once from an address that is no multiple of " +
                        std::to_string(size) + ": misaligned");
    if (size >= r->grain) check_race(*r, size_t(offset), size, kind, name, index, line);
    if (kind == Kind::atomic) check_written(*r, size_t(offset), size, Kind::load, name, index, line);
    check_written(*r, size_t(offset), size, kind, name, index, line);
    count(name, r->is_shared, address, size, kind, line);
    return r->storage + offset;
}

}  // namespace emu
