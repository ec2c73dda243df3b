#pragma once

#include <cstdint>
#include <cstdlib>

namespace kernels::KERNELS_ISA {

// Uninitialised memory for the length of a scope. Aborts the process if the allocation fails.
template <typename T>
struct Scratch {
    T* const data;

    explicit Scratch(std::int64_t count) : data(static_cast<T*>(std::malloc(count * sizeof(T)))) {
        if (data == nullptr && count > 0) std::abort();
    }
    ~Scratch() { std::free(data); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

// The same, aligned for vectors.
template <typename T>
struct AlignedScratch {
    T* const data;

    explicit AlignedScratch(std::int64_t count)
        : data(static_cast<T*>(std::aligned_alloc(alignof(T), (count > 0 ? count : 1) * sizeof(T)))) {
        if (data == nullptr) std::abort();
    }
    ~AlignedScratch() { std::free(data); }
    AlignedScratch(const AlignedScratch&) = delete;
    AlignedScratch& operator=(const AlignedScratch&) = delete;
};

}  // namespace kernels::KERNELS_ISA
