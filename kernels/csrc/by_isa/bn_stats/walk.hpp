// How bn_stats walks over a tensor: the portions, the parameters of each lane, and the stores.
#pragma once

#include <cmath>
#include <cstdint>

#include "bn_stats.hpp"
#include "memory.hpp"
#include "../scratch.hpp"
#include "../simd.hpp"

namespace kernels::KERNELS_ISA {

namespace {  // in each source that includes this, so that unused functions are dropped

using std::int64_t;

// Channels-last memory is walked in groups of one period, a multiple of channels and of kLanes: every lane of a group
// always meets the same channel, for any number of channels.
constexpr int64_t kBlockGroups = 128;  // groups that are summed in float before the sums are added to doubles
constexpr int64_t kPlaneBlock = 8192;  // the same for the elements of an NCHW plane
constexpr int64_t kMaxChunks = 64;     // the number of chunks depends on the shape alone

// Vectors in flight at a time: as many as fit into registers together with the parameters of their channels.
constexpr int kUnroll = kLanes == 16 ? 4 : 2;

int64_t gcd(int64_t a, int64_t b) { return b == 0 ? a : gcd(b, a % b); }
int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The destination of results: past the caches if these could not hold them until they are read.
template <typename T>
struct Output {
    T* data;
    bool past_caches;

    Output operator+(int64_t count) const { return {data + count, past_caches}; }
};

// Full vectors must be stored at multiples of `granule` only.
template <typename T>
Output<T> output(T* to, const BnStats& op, int64_t granule) {
    const int64_t bytes = op.batch * op.channels * op.spatial * static_cast<int64_t>(sizeof(T));
    const bool aligned = reinterpret_cast<std::uintptr_t>(to) % (kLanes * sizeof(T)) == 0 && granule % kLanes == 0;
    return {to, aligned && outgrows_caches(bytes)};
}

template <typename T>
inline void put(Output<T> to, F32 v) {
    to.past_caches ? stream(to.data, v) : store(to.data, v);
}

template <typename T>
inline void put_partial(Output<T> to, F32 v, int64_t count) {
    store_partial(to.data, v, count);
}

// Returns lcm(channels, kLanes), doubled until kUnroll vectors have work.
int64_t period_of(int64_t channels) {
    int64_t period = channels / gcd(channels, kLanes) * kLanes;
    while (period < kUnroll * kLanes) period *= 2;
    return period;
}

// The parts of the work; a thread takes one at a time.
struct Chunks {
    int64_t count, size;  // of images (NCHW) or elements (channels-last, a multiple of the period)

    Chunks(int64_t total, int64_t granule) {
        size = max(1, ceil_div(ceil_div(total, kMaxChunks), granule)) * granule;
        count = ceil_div(total, size);
    }
};

// Expands per-channel parameters to one float per lane of a period.
void repeat(const float* per_channel, int64_t channels, float* lanes, int64_t period) {
    for (int64_t i = 0; i < period; ++i) lanes[i] = per_channel[i % channels];
}

void fill(float* to, int64_t count, float value) {
    for (int64_t i = 0; i < count; ++i) to[i] = value;
}

// Computes scale and shift of bn(x) = x * scale + shift.
void fold_affine(const BnStats& op, float* scale, float* shift) {
    for (int64_t c = 0; c < op.channels; ++c) {
        const double weight = op.weight ? op.weight[c] : 1, bias = op.bias ? op.bias[c] : 0;
        const double s = weight / std::sqrt(op.running_var[c] + op.eps);
        scale[c] = static_cast<float>(s);
        shift[c] = static_cast<float>(bias - op.running_mean[c] * s);
    }
}

template <Activation A>
inline F32 activate(F32 z, F32 slope) {
    if constexpr (A == Activation::kRelu) return z < 0 ? F32{} : z;
    if constexpr (A == Activation::kRelu6) return smaller(z < 0 ? F32{} : z, splat(6));
    if constexpr (A == Activation::kLeakyRelu) return z > 0 ? z : z * slope;
    if constexpr (A == Activation::kSilu) return z / (1 + exp(-z));
    return z;
}

template <Activation A>
inline F32 activation_gradient(F32 z, F32 grad, F32 slope) {
    if constexpr (A == Activation::kRelu) return z <= 0 ? F32{} : grad;  // NaN passes, as in torch
    if constexpr (A == Activation::kRelu6) return (z <= 0) | (z >= 6) ? F32{} : grad;
    if constexpr (A == Activation::kLeakyRelu) return z > 0 ? grad : grad * slope;
    if constexpr (A == Activation::kSilu) {
        const F32 sigmoid = 1 / (1 + exp(-z));
        return grad * sigmoid * (1 + z * (1 - sigmoid));
    }
    return grad;
}

// Returns `v` with zeros in the lanes from `count` on.
inline F32 first_lanes(F32 v, int64_t count) {
    for (int64_t i = count; i < kLanes; ++i) v[i] = 0;
    return v;
}

template <typename Call>
void with_activation(Activation activation, Call call) {
    switch (activation) {
        case Activation::kNone: return call.template operator()<Activation::kNone>();
        case Activation::kRelu: return call.template operator()<Activation::kRelu>();
        case Activation::kRelu6: return call.template operator()<Activation::kRelu6>();
        case Activation::kLeakyRelu: return call.template operator()<Activation::kLeakyRelu>();
        case Activation::kSilu: return call.template operator()<Activation::kSilu>();
    }
}

}  // namespace

}  // namespace kernels::KERNELS_ISA
