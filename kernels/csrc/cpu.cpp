#include "cpu.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>

#include <cstdint>
#endif

namespace kernels {

#if defined(__x86_64__) && defined(__GNUC__)

namespace {

struct Registers {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero if the processor has no such leaf.
Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

// XCR0: one bit for each register set that the operating system saves on a context switch.
std::uint64_t saved_register_sets() {
    std::uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<std::uint64_t>(high) << 32) | low;
}

constexpr bool has_all(std::uint64_t value, std::uint64_t bits) { return (value & bits) == bits; }

// Bit positions: Intel SDM vol. 1 §13.1 (XCR0) and vol. 2A, CPUID.
constexpr std::uint64_t kYmm = 0b110;
constexpr std::uint64_t kZmm = kYmm | (0b111 << 5);
constexpr std::uint64_t kTiles = 0b11 << 17;
constexpr std::uint64_t kOsxsave = 1 << 27;
constexpr std::uint64_t kAvx2 = 1 << 5;
constexpr std::uint64_t kAvx512f = 1 << 16;
constexpr std::uint64_t kAvx512Bf16 = 1 << 5;
constexpr std::uint64_t kAmxBf16AndTile = (1 << 22) | (1 << 24);

}  // namespace

std::vector<std::string> cpu_features() {
    std::vector<std::string> features;
    if (!has_all(cpuid(1, 0).ecx, kOsxsave)) return features;
    const std::uint64_t saved = saved_register_sets();
    const Registers extended = cpuid(7, 0);
    const Registers extended_1 = extended.eax >= 1 ? cpuid(7, 1) : Registers{};
    const bool avx512f = has_all(saved, kZmm) && has_all(extended.ebx, kAvx512f);
    if (has_all(saved, kYmm) && has_all(extended.ebx, kAvx2)) features.push_back("avx2");
    if (avx512f) features.push_back("avx512f");
    if (avx512f && has_all(extended_1.eax, kAvx512Bf16)) features.push_back("avx512_bf16");
    if (has_all(saved, kTiles) && has_all(extended.edx, kAmxBf16AndTile)) features.push_back("amx_bf16");
    return features;
}

#else

std::vector<std::string> cpu_features() { return {}; }

#endif

}  // namespace kernels
