// One register of floats for every instruction set, with the same calls for float, bfloat16 and float16 memory.
//
// Included by sources that are compiled once per instruction set, with KERNELS_ISA as their namespace. Such sources
// must not use inline functions of the standard library: the linker keeps one copy of each, possibly one with
// instructions that the processor lacks.
#pragma once

#include <cstdint>

#include "dtype.hpp"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace kernels::KERNELS_ISA {

#if defined(__AVX512F__)
constexpr std::int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr std::int64_t kLanes = 8;
#else
constexpr std::int64_t kLanes = 4;
#endif

typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t U32 __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t U16 __attribute__((vector_size(2 * kLanes)));

struct Bf16 {
    std::uint16_t bits;
};
struct F16 {
    std::uint16_t bits;
};

// Calls call.operator()<T>() for the element type T of `dtype`.
template <typename Call>
void with_element_type(Dtype dtype, Call call) {
    switch (dtype) {
        case Dtype::kFloat32: return call.template operator()<float>();
        case Dtype::kBfloat16: return call.template operator()<Bf16>();
        case Dtype::kFloat16: return call.template operator()<F16>();
    }
}

inline F32 splat(float value) { return value - F32{}; }

inline F32 load(const float* from) {
    F32 v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, F32 v) { __builtin_memcpy(to, &v, sizeof v); }

inline F32 load(const Bf16* from) {
    U16 half;
    __builtin_memcpy(&half, from, sizeof half);
    return (F32)(__builtin_convertvector(half, U32) << 16);
}

inline void store(Bf16* to, F32 v) {
#ifdef __AVX512BF16__
    const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    __builtin_memcpy(to, &half, sizeof half);
#else
    const U32 bits = (U32)v;
    const U32 nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const U32 quiet_nan = (bits >> 16) | 0x40;
    const U16 half = __builtin_convertvector((U32)(v == v ? nearest_even : quiet_nan), U16);
    __builtin_memcpy(to, &half, sizeof half);
#endif
}

#if defined(__AVX512F__)
inline F32 load(const F16* from) {
    __m256i half;
    __builtin_memcpy(&half, from, sizeof half);
    return (F32)_mm512_cvtph_ps(half);
}

inline void store(F16* to, F32 v) {
    const __m256i half = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __builtin_memcpy(to, &half, sizeof half);
}
#elif defined(__F16C__)
inline F32 load(const F16* from) {
    __m128i half;
    __builtin_memcpy(&half, from, sizeof half);
    return (F32)_mm256_cvtph_ps(half);
}

inline void store(F16* to, F32 v) {
    const __m128i half = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(to, &half, sizeof half);
}
#else
inline F32 load(const F16* from) {
    F32 v;
    for (int i = 0; i < kLanes; ++i) {
        _Float16 half;
        __builtin_memcpy(&half, from + i, sizeof half);
        v[i] = static_cast<float>(half);
    }
    return v;
}

inline void store(F16* to, F32 v) {
    for (int i = 0; i < kLanes; ++i) {
        const _Float16 half = static_cast<_Float16>(v[i]);
        __builtin_memcpy(to + i, &half, sizeof half);
    }
}
#endif

// As `store`, past the caches: for memory that would leave them before it is read. `to` must be aligned to the number of
// bytes written, and `end_stream` called before another thread reads.
template <typename T>
inline void stream(T* to, F32 v) {
#ifdef __x86_64__
    T packed[kLanes];
    store(packed, v);
    if constexpr (sizeof packed == 8) {
        long long bits;
        __builtin_memcpy(&bits, packed, sizeof bits);
        _mm_stream_si64(reinterpret_cast<long long*>(to), bits);
    } else if constexpr (sizeof packed == 16) {
        __m128i bits;
        __builtin_memcpy(&bits, packed, sizeof bits);
        _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits);
    }
#ifdef __AVX2__
    if constexpr (sizeof packed == 32) {
        __m256i bits;
        __builtin_memcpy(&bits, packed, sizeof bits);
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits);
    }
#endif
#ifdef __AVX512F__
    if constexpr (sizeof packed == 64) {
        __m512i bits;
        __builtin_memcpy(&bits, packed, sizeof bits);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits);
    }
#endif
#else
    store(to, v);
#endif
}

inline void end_stream() {
#ifdef __x86_64__
    _mm_sfence();
#endif
}

// As `load` and `store`, for the first `count` lanes, 0 < count < kLanes; the others are zero or not written.
template <typename T>
inline F32 load_partial(const T* from, std::int64_t count) {
    T full[kLanes] = {};
    __builtin_memcpy(full, from, count * sizeof(T));
    return load(full);
}

template <typename T>
inline void store_partial(T* to, F32 v, std::int64_t count) {
    T full[kLanes];
    store(full, v);
    __builtin_memcpy(to, full, count * sizeof(T));
}

inline double sum(F32 v) {
    double total = 0;
    for (int i = 0; i < kLanes; ++i) total += v[i];
    return total;
}

inline F32 smaller(F32 a, F32 b) { return b < a ? b : a; }  // a if b is NaN
inline F32 larger(F32 a, F32 b) { return b > a ? b : a; }   // a if b is NaN

// e^x with a relative error below 2e-7; 0 below -87.3, inf from 88.8 on, NaN for NaN.
inline F32 exp(F32 x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const F32 bounded = x < -87.3f ? splat(-87.3f) : (x > 88.7f ? splat(88.7f) : x);
    const F32 shifted = bounded * 1.44269504f + kRound;
    const F32 n = shifted - kRound;
    const F32 r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    F32 p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    // 2^n in two factors, so that n = 128 does not overflow the exponent field.
    const I32 exponent = __builtin_convertvector(n, I32);
    const I32 half = exponent >> 1;
    const F32 result = p * (F32)((half + 127) << 23) * (F32)((exponent - half + 127) << 23);
    return x < -87.3f ? F32{} : (x > 88.7f ? splat(__builtin_inff()) : result);
}

}  // namespace kernels::KERNELS_ISA
