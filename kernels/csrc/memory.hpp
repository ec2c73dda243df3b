#pragma once

#include <cstdint>

namespace kernels {

// Makes malloc keep large freed blocks instead of giving them back to the operating system, so that the next
// large tensor finds its pages present. False where the C library is not glibc: nothing is changed there.
bool retain_freed_memory();

// Size of the cache that all cores share, at most 32 MiB for each of them; 32 MiB where the system does not tell.
std::int64_t last_level_cache_bytes();

// What the function above returns from now on.
void set_last_level_cache_bytes(std::int64_t bytes);

// Whether results of so many bytes are written past the caches: they fill more than half of the last one.
bool outgrows_caches(std::int64_t bytes);

}  // namespace kernels
