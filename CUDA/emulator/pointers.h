// Purpose: what a kernel's `float*` and `__shared__ float tile[16][16]` become (rewrite.py does that): types that look the
// same in use, `a[i]`, `a + 4`, `tile[y][x]`, and send each access through emu::access.
#pragma once
#include <cstring>
#include <map>
#include <memory>
#include <tuple>
#include <type_traits>

#include "memory.h"

namespace emu {

// An index that remembers the line of the source that it stands on.
struct at {
    long long i;
    int line;
    template <class I, class = std::enable_if_t<std::is_convertible_v<I, long long>>>
    at(I i, int line = __builtin_LINE()) : i((long long)i), line(line) {}
};

template <class T> struct ptr;

template <class T> T load(Region* r, uintptr_t address, const char* name, int line) {
    std::remove_const_t<T> value;
    memcpy(&value, access(r, address, sizeof(T), Kind::load, name, line), sizeof(T));
    return value;
}

// What `a[i]` is when it may stand on the left of `=`: it reads when a value is wanted and writes when one is assigned.
template <class T> struct ref {
    Region* region;
    uintptr_t address;
    const char* name;
    int line;

    operator T() const { return load<T>(region, address, name, line); }
    T operator=(T value) const {
        memcpy(access(region, address, sizeof(T), Kind::store, name, line), &value, sizeof(T));
        return value;
    }
    T operator=(const ref& other) const { return *this = T(other); }
    template <class U> T operator+=(U x) const { return *this = T(T(*this) + x); }
    template <class U> T operator-=(U x) const { return *this = T(T(*this) - x); }
    template <class U> T operator*=(U x) const { return *this = T(T(*this) * x); }
    template <class U> T operator/=(U x) const { return *this = T(T(*this) / x); }
    T operator++(int) const { T old = *this; *this = T(old + 1); return old; }
    ptr<T> operator&() const;
};

template <class T> struct ptr {
    Region* region = nullptr;
    uintptr_t address = 0;
    const char* name = "a pointer";

    ptr() = default;
    ptr(std::nullptr_t) {}
    ptr(T* own) : address(reinterpret_cast<uintptr_t>(own)) {}                 // a local array, or null
    ptr(Region* r, uintptr_t a, const char* n) : region(r), address(a), name(n) {}
    operator ptr<const T>() const { return {region, address, name}; }
    explicit operator bool() const { return address != 0; }

    auto operator[](at i) const {
        uintptr_t a = address + uintptr_t(i.i) * sizeof(T);
        if constexpr (std::is_const_v<T>) return load<T>(region, a, name, i.line);
        else return ref<T>{region, a, name, i.line};
    }
    auto operator*() const { return (*this)[at(0, 0)]; }
    ptr operator+(long long n) const { return {region, address + uintptr_t(n) * sizeof(T), name}; }
    ptr operator-(long long n) const { return *this + -n; }
    ptr& operator+=(long long n) { return *this = *this + n; }
};

template <class T> ptr<T> ref<T>::operator&() const { return {region, address, name}; }

// reinterpret_cast<const float4*>(a)
template <class To, class From> ptr<To> cast(ptr<From> p) { return {p.region, p.address, p.name}; }

// A row of a shared array: one more index leads to an element or to a smaller row.
template <class A> struct row {
    using inner = std::remove_extent_t<A>;
    Region* region;
    uintptr_t address;
    const char* name;

    auto operator[](at i) const {
        if (i.i < 0 || size_t(i.i) >= std::extent_v<A>)
            fault(i.line, "uses index " + std::to_string(i.i) + " of " + name + ", a shared array with " +
                              std::to_string(std::extent_v<A>) + " entries there: out of bounds");
        uintptr_t a = address + uintptr_t(i.i) * sizeof(inner);
        if constexpr (std::is_array_v<inner>) return row<inner>{region, a, name};
        else return ref<inner>{region, a, name, i.line};
    }
    operator ptr<inner>() const { return {region, address, name}; }            // as an array becomes a pointer
    ptr<inner> operator+(long long n) const { return ptr<inner>(*this) + n; }
};

inline std::map<std::tuple<std::string, int, size_t>, std::unique_ptr<Region>> shared_arrays;   // by name, line and bytes
constexpr size_t SHARED_LIMIT = 48 * 1024;                                                      // bytes a block may have
inline size_t shared_bytes = 0, dynamic_bytes = 0;

// The running block's array of that name and line: the first thread to come by makes it, uninitialised.
inline Region* shared_region(const char* name, int line, size_t bytes, size_t scalar, std::vector<size_t> dims) {
    auto& r = shared_arrays[{name, line, bytes}];
    if (r) return r.get();
    r = std::make_unique<Region>();
    r->base = 1024 + (shared_bytes + 15) / 16 * 16;
    shared_bytes = r->base - 1024 + bytes;
    if (shared_bytes > SHARED_LIMIT)
        stop(line, std::string(kernel) + " needs " + std::to_string(shared_bytes) + " bytes of shared memory, and a block has " +
                       std::to_string(SHARED_LIMIT));
    r->bytes = bytes, r->is_shared = true, r->line = line, r->dims = std::move(dims);
    r->grain = scalar < 4 ? scalar : 4;
    r->storage = static_cast<char*>(malloc(bytes + 16));
    r->cells.resize(bytes / r->grain + 1);
    r->written.resize(bytes);
    return r.get();
}

inline void end_shared() {
    for (auto& [key, r] : shared_arrays) free(r->storage);
    shared_arrays.clear();
    shared_bytes = 0;
}

// __shared__ float tile[16][16];  becomes  emu::Shared<float[16][16]> tile("tile", __LINE__);
template <class A> struct Shared : row<A> {
    Shared(const char* name, int line) : row<A>{nullptr, 0, name} {
        std::vector<size_t> dims;
        if constexpr (std::rank_v<A> > 0) dims.push_back(std::extent_v<A, 0>);
        if constexpr (std::rank_v<A> > 1) dims.push_back(std::extent_v<A, 1>);
        if constexpr (std::rank_v<A> > 2) dims.push_back(std::extent_v<A, 2>);
        this->region = shared_region(name, line, sizeof(A), sizeof(std::remove_all_extents_t<A>), dims);
        this->address = this->region->base;
    }
};

// __shared__ float total;  becomes  emu::SharedScalar<float> total("total", __LINE__);  its uses do not carry a line.
template <class T> struct SharedScalar : ref<T> {
    SharedScalar(const char* name, int line)
        : ref<T>{shared_region(name, line, sizeof(T), sizeof(T), {}), 0, name, line} { this->address = this->region->base; }
    using ref<T>::operator=;
};

// extern __shared__ float smem[];  becomes  emu::ptr<float> smem = emu::dynamic<float>("smem", __LINE__);
template <class T> ptr<T> dynamic(const char* name, int line) {
    Region* r = shared_region(name, line, dynamic_bytes, sizeof(T), {});
    return {r, r->base, name};
}

template <class T, class U> T atomicAdd(ptr<T> p, U x, int line = __builtin_LINE()) {
    char* where = access(p.region, p.address, sizeof(T), Kind::atomic, p.name, line);
    T old, sum;
    memcpy(&old, where, sizeof(T));
    sum = T(old + x);
    memcpy(where, &sum, sizeof(T));
    return old;
}

}  // namespace emu

using emu::atomicAdd;
