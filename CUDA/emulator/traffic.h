// Purpose: counts what a kernel moves, the way the memory system of a GPU sees it.
//
// 32 threads with consecutive numbers are a warp. When a warp executes a load, the hardware turns 32 addresses into one
// request, and fetches every 32-byte sector that the request touches, whole. So neighbours that read neighbouring floats
// share sectors (4 sectors a request: coalesced), and neighbours that read far apart do not (32 sectors a request).
// Shared memory has 32 banks, four bytes wide: a request takes one pass (wavefront) for each different word that falls
// into its busiest bank.
//
// Requests are rebuilt from single accesses: the n-th time since the last barrier that the lanes of a warp touch the same
// array on the same line of the source is one request. That is exact where the lanes of a warp take the same path, or some
// of them none; lanes that skip an access inside a loop are matched with their next one. Caches are not modelled: a sector
// counts each time it is asked for.
#pragma once
#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "state.h"

namespace emu {

enum class Kind { load, store, atomic };

struct Flow { long long accesses = 0, bytes = 0, requests = 0, units = 0; };   // units: sectors, or wavefronts in shared memory

struct Counts {                                      // of one kernel, all its launches together
    int launches = 0;
    long long threads = 0, barriers = 0;
    std::map<std::tuple<std::string, bool, Kind>, Flow> flows;                 // by array, is it shared, kind of access
};

struct Request { std::vector<std::pair<uintptr_t, size_t>> lanes; };           // address and size for each lane

struct Site {                                        // one array on one line, seen by one warp
    int times[32] = {};                              // how often each lane was here
    std::vector<Request> requests;
};

inline bool counting = false;                        // set by CUDA_EMULATOR_TRAFFIC, see cuda_runtime.h
inline std::map<std::string, Counts> traffic;        // by kernel
inline std::map<std::tuple<int, int, const char*, bool, Kind>, Site> sites;    // by warp, line, array, is it shared, kind

inline void count(const char* name, bool is_shared, uintptr_t address, size_t size, Kind kind, int line) {
    if (!counting) return;
    Site& site = sites[{thread_number / warpSize, line, name, is_shared, kind}];
    size_t turn = size_t(site.times[thread_number % warpSize]++);
    if (site.requests.size() <= turn) site.requests.resize(turn + 1);
    site.requests[turn].lanes.push_back({address, size});
}

// How many different 32-byte sectors the lanes of a request touch.
inline long long sectors(const Request& r) {
    std::vector<uintptr_t> seen;
    for (auto [address, size] : r.lanes)
        for (uintptr_t s = address / 32; s <= (address + size - 1) / 32; s++) seen.push_back(s);
    std::sort(seen.begin(), seen.end());
    return std::unique(seen.begin(), seen.end()) - seen.begin();
}

// How many passes over the 32 banks a request needs: lanes that read the same word share it.
inline long long wavefronts(const Request& r) {
    std::vector<uintptr_t> words;
    for (auto [address, size] : r.lanes)
        for (uintptr_t w = address / 4; w <= (address + size - 1) / 4; w++) words.push_back(w);
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    long long bank[32] = {}, most = 0;
    for (uintptr_t w : words) most = std::max(most, ++bank[w % 32]);
    return most;
}

// At a barrier and at the end of a block: turn what the warps did since the last one into sums.
inline void count_epoch() {
    for (auto& [key, site] : sites) {
        auto& [warp, line, name, is_shared, kind] = key;
        Flow& flow = traffic[kernel].flows[{name, is_shared, kind}];
        for (const Request& r : site.requests) {
            flow.requests++;
            flow.accesses += (long long)r.lanes.size();
            for (auto& lane : r.lanes) flow.bytes += (long long)lane.second;
            flow.units += is_shared ? wavefronts(r) : sectors(r);
        }
    }
    sites.clear();
}

inline void write_traffic(FILE* out) {
    const char* kinds[] = {"load", "store", "atomic"};
    fprintf(out, "{");
    const char* comma = "";
    for (auto& [name, c] : traffic) {
        fprintf(out, "%s\n \"%s\": {\"launches\": %d, \"threads\": %lld, \"barriers\": %lld, \"flows\": [", comma, name.c_str(),
                c.launches, c.threads, c.barriers);
        const char* inner = "";
        for (auto& [key, f] : c.flows) {
            auto& [array, is_shared, kind] = key;
            fprintf(out, "%s\n  {\"array\": \"%s\", \"space\": \"%s\", \"kind\": \"%s\", \"accesses\": %lld, \"bytes\": %lld, "
                    "\"requests\": %lld, \"%s\": %lld}", inner, array.c_str(), is_shared ? "shared" : "global",
                    kinds[int(kind)], f.accesses, f.bytes, f.requests, is_shared ? "wavefronts" : "sectors", f.units);
            inner = ",";
        }
        fprintf(out, "]}");
        comma = ",";
    }
    fprintf(out, "\n}\n");
}

}  // namespace emu
