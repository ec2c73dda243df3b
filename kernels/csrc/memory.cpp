#include "memory.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>  // defines __GLIBC__
#include <thread>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace kernels {

bool retain_freed_memory() {
#ifdef __GLIBC__
    constexpr int kNever = -1;          // a trim threshold of -1 turns trimming off
    constexpr int kTopPad = 16 << 20;   // grow the heap by at least 16 MiB at a time
    const bool no_mmap = mallopt(M_MMAP_MAX, 0) == 1;
    const bool no_trim = mallopt(M_TRIM_THRESHOLD, kNever) == 1;
    const bool padded = mallopt(M_TOP_PAD, kTopPad) == 1;
    return no_mmap && no_trim && padded;
#else
    return false;
#endif
}

namespace {

// A plausible maximum for this number of cores: a small virtual machine reports the whole cache of its host, most of
// which serves other machines.
std::int64_t most_kib() { return std::max(1u, std::thread::hardware_concurrency()) * (std::int64_t{32} << 10); }

std::int64_t shared_cache_bytes() {
    long kib = 0;  // sysconf counts the caches of all core complexes as one
    if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
        if (std::fscanf(file, "%ldK", &kib) != 1) kib = 0;
        std::fclose(file);
    }
    return std::min(std::int64_t{kib > 0 ? kib : 32 << 10}, most_kib()) << 10;
}

std::atomic<std::int64_t>& cache_bytes() {
    static std::atomic<std::int64_t> bytes{shared_cache_bytes()};
    return bytes;
}

}  // namespace

std::int64_t last_level_cache_bytes() { return cache_bytes(); }

void set_last_level_cache_bytes(std::int64_t bytes) { cache_bytes() = bytes; }

bool outgrows_caches(std::int64_t bytes) { return 2 * bytes > last_level_cache_bytes(); }

}  // namespace kernels
