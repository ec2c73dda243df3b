#pragma once

#include <cstdint>

namespace kernels {

// Makes malloc keep large freed blocks instead of returning them to the operating system, so that the next
// large tensor finds its pages present. Returns false and changes nothing if the C library is not glibc.
bool retain_freed_memory();

// Size of the cache that all cores share, at most 32 MiB per core; 32 MiB if the system does not report it.
std::int64_t last_level_cache_bytes();

// Sets what the function above returns.
void set_last_level_cache_bytes(std::int64_t bytes);

// Whether results of `bytes` bytes fill more than half of the last-level cache, and are written past the caches.
bool outgrows_caches(std::int64_t bytes);

}  // namespace kernels
