#include "bn_stats.hpp"

#include <cmath>
#include <cstdlib>

#include "memory.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace kernels::KERNELS_ISA {

namespace {

using std::int64_t;

// Channels-last memory is walked in groups of a multiple of channels and of kLanes, the period: every lane of a group
// always meets the same channel, whatever the number of channels.
constexpr int64_t kBlockGroups = 128;  // groups whose sums are kept in float before they go into doubles
constexpr int64_t kPlaneBlock = 8192;  // the same for the elements of an NCHW plane
constexpr int64_t kMaxChunks = 64;     // stretches of work; their number depends on the shape alone

// Vectors in flight at a time: as many as the registers hold with their channels' parameters.
constexpr int kUnroll = kLanes == 16 ? 4 : 2;

int64_t gcd(int64_t a, int64_t b) { return b == 0 ? a : gcd(b, a % b); }
int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where results go: past the caches if there are too many to be there still when they are read.
template <typename T>
struct Output {
    T* data;
    bool past_caches;

    Output operator+(int64_t count) const { return {data + count, past_caches}; }
};

// `granule`: full vectors are stored at multiples of it only.
template <typename T>
Output<T> output(T* to, const BnStats& op, int64_t granule) {
    const int64_t bytes = op.batch * op.channels * op.spatial * static_cast<int64_t>(sizeof(T));
    const bool aligned = reinterpret_cast<std::uintptr_t>(to) % (kLanes * sizeof(T)) == 0 && granule % kLanes == 0;
    return {to, aligned && 2 * bytes > last_level_cache_bytes()};
}

template <typename T>
inline void put(Output<T> to, F32 v) {
    to.past_caches ? stream(to.data, v) : store(to.data, v);
}

template <typename T>
inline void put_partial(Output<T> to, F32 v, int64_t count) {
    store_partial(to.data, v, count);
}

// lcm(channels, kLanes), and more rows of few channels, so that kUnroll vectors find work.
int64_t period_of(int64_t channels) {
    int64_t period = channels / gcd(channels, kLanes) * kLanes;
    while (period < kUnroll * kLanes) period *= 2;
    return period;
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

// Zero in the lanes from `count` on.
inline F32 first_lanes(F32 v, int64_t count) {
    for (int64_t i = count; i < kLanes; ++i) v[i] = 0;
    return v;
}

// ---- forward ---------------------------------------------------------------------------------------------------

// One float per element of a period: y = act(x * scale + shift), and the sums of x - center and its square.
struct ForwardLanes {
    const float *scale, *shift, *center;
    float *sum, *sum_of_squares;
};

template <Activation A, bool kApply, bool kSums, typename T>
inline void forward_vector(F32 x, Output<T> y, F32 scale, F32 shift, F32 slope, F32 center, F32& sum, F32& squares) {
    if constexpr (kSums) {
        const F32 d = x - center;
        sum += d;
        squares += d * d;
    }
    if constexpr (kApply) put(y, activate<A>(x * scale + shift, slope));
}

// V neighbouring vectors of every group; their sums are added to those in `lanes`.
template <int V, Activation A, bool kApply, bool kSums, typename T>
void forward_column(const T* x, Output<T> y, int64_t groups, int64_t period, ForwardLanes lanes, int64_t at, F32 slope) {
    F32 scale[V], shift[V], center[V], sum[V], squares[V];
    for (int v = 0; v < V; ++v) {
        const int64_t lane = at + v * kLanes;
        scale[v] = kApply ? load(lanes.scale + lane) : F32{};
        shift[v] = kApply ? load(lanes.shift + lane) : F32{};
        center[v] = kSums ? load(lanes.center + lane) : F32{};
        sum[v] = kSums ? load(lanes.sum + lane) : F32{};
        squares[v] = kSums ? load(lanes.sum_of_squares + lane) : F32{};
    }
    for (int64_t g = 0; g < groups; ++g) {
        for (int v = 0; v < V; ++v) {
            const int64_t i = g * period + at + v * kLanes;
            forward_vector<A, kApply, kSums>(load(x + i), y + i, scale[v], shift[v], slope, center[v], sum[v],
                                             squares[v]);
        }
    }
    if constexpr (kSums) {
        for (int v = 0; v < V; ++v) {
            store(lanes.sum + at + v * kLanes, sum[v]);
            store(lanes.sum_of_squares + at + v * kLanes, squares[v]);
        }
    }
}

// `count` elements of which the first is the first of a period. Not more than kBlockGroups periods.
template <Activation A, bool kApply, bool kSums, typename T>
void forward_stretch(const T* x, Output<T> y, int64_t count, int64_t period, ForwardLanes lanes, F32 slope) {
    const int64_t groups = count / period;
    int64_t at = 0;
    for (; at + kUnroll * kLanes <= period; at += kUnroll * kLanes)
        forward_column<kUnroll, A, kApply, kSums>(x, y, groups, period, lanes, at, slope);
    for (; at < period; at += kLanes)
        forward_column<1, A, kApply, kSums>(x, y, groups, period, lanes, at, slope);
    const int64_t done = groups * period;
    for (at = 0; done + at < count; at += kLanes) {
        const int64_t left = count - done - at;
        if (left >= kLanes) {
            forward_column<1, A, kApply, kSums>(x + done, y + done, 1, period, lanes, at, slope);
            continue;
        }
        const F32 v = load_partial(x + done + at, left);
        if constexpr (kSums) {
            const F32 d = first_lanes(v - load(lanes.center + at), left);
            store(lanes.sum + at, load(lanes.sum + at) + d);
            store(lanes.sum_of_squares + at, load(lanes.sum_of_squares + at) + d * d);
        }
        if constexpr (kApply) {
            const F32 z = v * load(lanes.scale + at) + load(lanes.shift + at);
            put_partial(y + done + at, activate<A>(z, slope), left);
        }
    }
}

// Count, mean and sum of squared deviations of a channel within a chunk, in double.
struct Moments {
    double count, mean, squared_deviations;
};

// Chan, Golub and LeVeque (1979): moments of the union of disjoint parts, `stride` apart.
Moments combine(const Moments* parts, int64_t num_parts, int64_t stride) {
    double count = 0, weighted = 0, squared_deviations = 0;
    for (int64_t p = 0; p < num_parts; ++p) {
        count += parts[p * stride].count;
        weighted += parts[p * stride].count * parts[p * stride].mean;
    }
    const double mean = weighted / count;
    for (int64_t p = 0; p < num_parts; ++p) {
        const double offset = parts[p * stride].mean - mean;
        squared_deviations += parts[p * stride].squared_deviations + parts[p * stride].count * offset * offset;
    }
    return {count, mean, squared_deviations};
}

Moments moments_of(double count, double center, double sum, double sum_of_squares) {
    if (count == 0) return {0, 0, 0};
    return {count, center + sum / count, sum_of_squares - sum * sum / count};
}

// The part of the work that one thread takes in one go.
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

// bn(x) = x * scale + shift.
void fold_affine(const BnStats& op, float* scale, float* shift) {
    for (int64_t c = 0; c < op.channels; ++c) {
        const double weight = op.weight ? op.weight[c] : 1, bias = op.bias ? op.bias[c] : 0;
        const double s = weight / std::sqrt(op.running_var[c] + op.eps);
        scale[c] = static_cast<float>(s);
        shift[c] = static_cast<float>(bias - op.running_mean[c] * s);
    }
}

// From the moments of all channels: loss and coefficients. The norm's gradient at zero is zero, as torch has it.
void finish(const BnStats& op, const Moments* moments, float* loss, float* coefficients) {
    double mean_norm = 0, var_norm = 0;
    for (int64_t c = 0; c < op.channels; ++c) {
        const double d_mean = moments[c].mean - op.running_mean[c];
        const double d_var = moments[c].squared_deviations / moments[c].count - op.running_var[c];
        mean_norm += d_mean * d_mean;
        var_norm += d_var * d_var;
    }
    mean_norm = std::sqrt(mean_norm);
    var_norm = std::sqrt(var_norm);
    *loss = static_cast<float>(mean_norm + var_norm);
    for (int64_t c = 0; c < op.channels; ++c) {
        const double count = moments[c].count, mean = moments[c].mean;
        const double d_mean = mean - op.running_mean[c];
        const double d_var = moments[c].squared_deviations / count - op.running_var[c];
        const double b = var_norm == 0 ? 0 : 2 * d_var / (count * var_norm);
        const double a = (mean_norm == 0 ? 0 : d_mean / (count * mean_norm)) - b * mean;
        coefficients[c] = static_cast<float>(a);
        coefficients[op.channels + c] = static_cast<float>(b);
    }
}

template <Activation A, bool kSums, typename T>
void forward_channels_last(const BnStats& op, const T* x, T* y, const float* scale, const float* shift,
                           Moments* result) {
    const int64_t channels = op.channels, period = period_of(channels);
    const int64_t total = op.batch * op.spatial * channels, block = kBlockGroups * period;
    const Chunks chunks(total, period);
    const Output<T> out = output(y, op, period);
    const Scratch<float> lanes(2 * period);
    float *lane_scale = lanes.data, *lane_shift = lanes.data + period;
    repeat(scale, channels, lane_scale, period);
    repeat(shift, channels, lane_shift, period);
    const Scratch<Moments> parts(kSums ? chunks.count * period : 0);
#pragma omp parallel num_threads(op.threads)
    {
        const Scratch<float> mine(3 * period);
        const Scratch<double> totals(2 * period);
        const ForwardLanes own{lane_scale, lane_shift, mine.data, mine.data + period, mine.data + 2 * period};
        float* center = mine.data;
        const F32 slope = splat(op.negative_slope);
#pragma omp for schedule(static) nowait
        for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
            const int64_t begin = chunk * chunks.size, end = min(total, begin + chunks.size);
            if constexpr (kSums) {
                const int64_t groups = min((end - begin) / period, kBlockGroups / 4);
                fill(center, 3 * period, 0);
                forward_stretch<A, false, true>(x + begin, out, groups > 0 ? groups * period : end - begin, period, own,
                                                slope);
                for (int64_t i = 0; i < period; ++i) center[i] = own.sum[i] / max(groups, 1);
                for (int64_t i = 0; i < 2 * period; ++i) totals.data[i] = 0;
            }
            for (int64_t at = begin; at < end; at += block) {
                if constexpr (kSums) fill(own.sum, 2 * period, 0);
                forward_stretch<A, true, kSums>(x + at, out + at, min(block, end - at), period, own, slope);
                if constexpr (kSums)
                    for (int64_t i = 0; i < 2 * period; ++i) totals.data[i] += own.sum[i];
            }
            if constexpr (kSums) {
                for (int64_t i = 0; i < period; ++i) {
                    const double count = ceil_div(max(end - begin - i, 0), period);
                    parts.data[chunk * period + i] =
                        moments_of(count, center[i], totals.data[i], totals.data[period + i]);
                }
            }
        }
        end_stream();
    }
    if constexpr (kSums)
        for (int64_t c = 0; c < channels; ++c)
            result[c] = combine(parts.data + c, chunks.count * (period / channels), channels);
}

// One channel of one image: `count` elements; the sums are added to sums[0] and sums[1].
template <Activation A, bool kApply, bool kSums, typename T>
void forward_plane(const T* x, Output<T> y, int64_t count, float scale, float shift, float center, F32 slope, F32* sums) {
    const F32 s = splat(scale), t = splat(shift), c = splat(center);
    F32 sum[kUnroll] = {}, squares[kUnroll] = {};
    int64_t i = 0;
    for (; i + kUnroll * kLanes <= count; i += kUnroll * kLanes)
        for (int u = 0; u < kUnroll; ++u)
            forward_vector<A, kApply, kSums>(load(x + i + u * kLanes), y + i + u * kLanes, s, t, slope, c, sum[u],
                                             squares[u]);
    for (; i + kLanes <= count; i += kLanes)
        forward_vector<A, kApply, kSums>(load(x + i), y + i, s, t, slope, c, sum[0], squares[0]);
    if (i < count) {
        const F32 v = load_partial(x + i, count - i);
        const F32 d = first_lanes(v - c, count - i);
        sum[0] += d;
        squares[0] += d * d;
        if constexpr (kApply) put_partial(y + i, activate<A>(v * s + t, slope), count - i);
    }
    if constexpr (kSums) {
        for (int u = 0; u < kUnroll; ++u) {
            sums[0] += sum[u];
            sums[1] += squares[u];
        }
    }
}

template <Activation A, bool kSums, typename T>
void forward_nchw(const BnStats& op, const T* x, T* y, const float* scale, const float* shift, Moments* result) {
    const int64_t channels = op.channels, spatial = op.spatial;
    const Chunks chunks(op.batch, 1);
    const Output<T> out = output(y, op, spatial);
    const Scratch<Moments> parts(kSums ? chunks.count * channels : 0);
#pragma omp parallel num_threads(op.threads)
    {
        const Scratch<float> centers(channels);
        const Scratch<double> totals(kSums ? 2 * channels : 0);
        const AlignedScratch<F32> sums(kSums ? 2 * channels : 0);
        const F32 slope = splat(op.negative_slope);
        const auto move_sums = [&] {
            for (int64_t i = 0; i < 2 * channels; ++i) {
                totals.data[i] += sum(sums.data[i]);
                sums.data[i] = F32{};
            }
        };
#pragma omp for schedule(static) nowait
        for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
            const int64_t begin = chunk * chunks.size, end = min(op.batch, begin + chunks.size);
            for (int64_t c = 0; c < channels; ++c) centers.data[c] = 0;
            if constexpr (kSums) {
                const int64_t count = min(spatial, kUnroll * kLanes);
                for (int64_t c = 0; c < channels; ++c) {
                    F32 probe[2] = {};
                    const T* plane = x + (begin * channels + c) * spatial;
                    forward_plane<A, false, true>(plane, out, count, 1, 0, 0, slope, probe);
                    centers.data[c] = static_cast<float>(sum(probe[0]) / count);
                    sums.data[2 * c] = sums.data[2 * c + 1] = F32{};
                    totals.data[2 * c] = totals.data[2 * c + 1] = 0;
                }
            }
            int64_t unmoved = 0;
            for (int64_t n = begin; n < end; ++n) {
                for (int64_t at = 0; at < spatial; at += kPlaneBlock) {
                    const int64_t count = min(kPlaneBlock, spatial - at);
                    for (int64_t c = 0; c < channels; ++c) {
                        const int64_t first = (n * channels + c) * spatial + at;
                        forward_plane<A, true, kSums>(x + first, out + first, count, scale[c], shift[c],
                                                      centers.data[c], slope, kSums ? sums.data + 2 * c : nullptr);
                    }
                    unmoved += count;
                    if (kSums && unmoved >= kPlaneBlock) {
                        move_sums();
                        unmoved = 0;
                    }
                }
            }
            if constexpr (kSums) {
                move_sums();
                for (int64_t c = 0; c < channels; ++c)
                    parts.data[chunk * channels + c] =
                        moments_of(static_cast<double>((end - begin) * spatial), centers.data[c], totals.data[2 * c],
                                   totals.data[2 * c + 1]);
            }
        }
        end_stream();
    }
    if constexpr (kSums)
        for (int64_t c = 0; c < channels; ++c) result[c] = combine(parts.data + c, chunks.count, channels);
}

template <Activation A, typename T>
void forward(const BnStats& op, const T* x, T* y, float* loss, float* coefficients) {
    const Scratch<float> affine(2 * op.channels);
    float *scale = affine.data, *shift = affine.data + op.channels;
    fold_affine(op, scale, shift);
    if (loss == nullptr) {
        op.channels_last ? forward_channels_last<A, false>(op, x, y, scale, shift, nullptr)
                         : forward_nchw<A, false>(op, x, y, scale, shift, nullptr);
        return;
    }
    const Scratch<Moments> moments(op.channels);
    op.channels_last ? forward_channels_last<A, true>(op, x, y, scale, shift, moments.data)
                     : forward_nchw<A, true>(op, x, y, scale, shift, moments.data);
    finish(op, moments.data, loss, coefficients);
}

// ---- backward --------------------------------------------------------------------------------------------------

// One float per element of a period: grad_x = act'(x * scale + shift) * grad_y * scale + a + b * x, and for the
// affine gradients the sums of u = act' * grad_y and of u * (x - center), with the running mean as center.
struct BackwardLanes {
    const float *scale, *shift, *a, *b, *center;
    float *sum, *sum_with_x;
};

template <Activation A, bool kAffine, typename T>
inline F32 backward_vector(F32 x, F32 grad, F32 scale, F32 shift, F32 a, F32 b, F32 slope, F32 center, F32& sum,
                           F32& sum_with_x) {
    const F32 u = activation_gradient<A>(x * scale + shift, grad, slope);
    if constexpr (kAffine) {
        sum += u;
        sum_with_x += u * (x - center);
    }
    return u * scale + (b * x + a);
}

template <int V, Activation A, bool kAffine, typename T>
void backward_column(const T* x, const T* grad, Output<T> out, int64_t groups, int64_t period, BackwardLanes lanes, int64_t at,
                     F32 slope) {
    F32 scale[V], shift[V], a[V], b[V], center[V], sum[V], sum_with_x[V];
    for (int v = 0; v < V; ++v) {
        const int64_t lane = at + v * kLanes;
        scale[v] = load(lanes.scale + lane);
        shift[v] = load(lanes.shift + lane);
        a[v] = load(lanes.a + lane);
        b[v] = load(lanes.b + lane);
        center[v] = kAffine ? load(lanes.center + lane) : F32{};
        sum[v] = kAffine ? load(lanes.sum + lane) : F32{};
        sum_with_x[v] = kAffine ? load(lanes.sum_with_x + lane) : F32{};
    }
    for (int64_t g = 0; g < groups; ++g) {
        for (int v = 0; v < V; ++v) {
            const int64_t i = g * period + at + v * kLanes;
            put(out + i, backward_vector<A, kAffine, T>(load(x + i), load(grad + i), scale[v], shift[v], a[v], b[v],
                                                          slope, center[v], sum[v], sum_with_x[v]));
        }
    }
    if constexpr (kAffine) {
        for (int v = 0; v < V; ++v) {
            store(lanes.sum + at + v * kLanes, sum[v]);
            store(lanes.sum_with_x + at + v * kLanes, sum_with_x[v]);
        }
    }
}

template <Activation A, bool kAffine, typename T>
void backward_stretch(const T* x, const T* grad, Output<T> out, int64_t count, int64_t period, BackwardLanes lanes,
                      F32 slope) {
    const int64_t groups = count / period;
    int64_t at = 0;
    for (; at + kUnroll * kLanes <= period; at += kUnroll * kLanes)
        backward_column<kUnroll, A, kAffine>(x, grad, out, groups, period, lanes, at, slope);
    for (; at < period; at += kLanes)
        backward_column<1, A, kAffine>(x, grad, out, groups, period, lanes, at, slope);
    const int64_t done = groups * period;
    for (at = 0; done + at < count; at += kLanes) {
        const int64_t left = count - done - at;
        if (left >= kLanes) {
            backward_column<1, A, kAffine>(x + done, grad + done, out + done, 1, period, lanes, at, slope);
            continue;
        }
        F32 sum = kAffine ? load(lanes.sum + at) : F32{}, sum_with_x = kAffine ? load(lanes.sum_with_x + at) : F32{};
        const F32 center = kAffine ? load(lanes.center + at) : F32{};
        // Lanes from `left` on hold grad = 0: they add nothing to the sums.
        const F32 grad_x = backward_vector<A, kAffine, T>(
            load_partial(x + done + at, left), load_partial(grad + done + at, left), load(lanes.scale + at),
            load(lanes.shift + at), load(lanes.a + at), load(lanes.b + at), slope, center, sum, sum_with_x);
        put_partial(out + done + at, grad_x, left);
        if constexpr (kAffine) {
            store(lanes.sum + at, sum);
            store(lanes.sum_with_x + at, sum_with_x);
        }
    }
}

// scale, shift, a, b and center of every channel, one after the other.
struct BackwardParameters {
    const float *scale, *shift, *a, *b, *center;
};

template <Activation A, bool kAffine, typename T>
void backward_channels_last(const BnStats& op, const T* grad, const T* x, BackwardParameters p, T* grad_x,
                            double* sums) {
    const int64_t channels = op.channels, period = period_of(channels);
    const int64_t total = op.batch * op.spatial * channels, block = kBlockGroups * period;
    const Chunks chunks(total, period);
    const Output<T> out = output(grad_x, op, period);
    const Scratch<float> lanes(5 * period);
    const float* per_channel[] = {p.scale, p.shift, p.a, p.b, p.center};
    for (int i = 0; i < 5; ++i) repeat(per_channel[i], channels, lanes.data + i * period, period);
    const Scratch<double> parts(kAffine ? chunks.count * 2 * period : 0);
#pragma omp parallel num_threads(op.threads)
    {
        const Scratch<float> mine(kAffine ? 2 * period : 0);
        const BackwardLanes own{lanes.data,
                                lanes.data + period,
                                lanes.data + 2 * period,
                                lanes.data + 3 * period,
                                lanes.data + 4 * period,
                                mine.data,
                                mine.data + period};
        const F32 slope = splat(op.negative_slope);
#pragma omp for schedule(static) nowait
        for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
            const int64_t begin = chunk * chunks.size, end = min(total, begin + chunks.size);
            double* totals = parts.data + chunk * 2 * period;
            if constexpr (kAffine)
                for (int64_t i = 0; i < 2 * period; ++i) totals[i] = 0;
            for (int64_t at = begin; at < end; at += block) {
                if constexpr (kAffine) fill(own.sum, 2 * period, 0);
                backward_stretch<A, kAffine>(x + at, grad + at, out + at, min(block, end - at), period, own, slope);
                if constexpr (kAffine)
                    for (int64_t i = 0; i < 2 * period; ++i) totals[i] += own.sum[i];
            }
        }
        end_stream();
    }
    if constexpr (kAffine) {
        for (int64_t i = 0; i < 2 * channels; ++i) sums[i] = 0;
        for (int64_t row = 0; row < chunks.count * 2; ++row)
            for (int64_t i = 0; i < period; ++i)
                sums[row % 2 * channels + i % channels] += parts.data[row * period + i];
    }
}

template <Activation A, bool kAffine, typename T>
void backward_plane(const T* x, const T* grad, Output<T> out, int64_t count, const BackwardParameters& p, int64_t channel,
                    F32 slope, F32* sums) {
    const F32 scale = splat(p.scale[channel]), shift = splat(p.shift[channel]), a = splat(p.a[channel]),
              b = splat(p.b[channel]), center = splat(p.center[channel]);
    F32 sum[kUnroll] = {}, sum_with_x[kUnroll] = {};
    const auto vector = [&](F32 v, F32 g, int u) {
        return backward_vector<A, kAffine, T>(v, g, scale, shift, a, b, slope, center, sum[u], sum_with_x[u]);
    };
    int64_t i = 0;
    for (; i + kUnroll * kLanes <= count; i += kUnroll * kLanes)
        for (int u = 0; u < kUnroll; ++u) {
            const int64_t at = i + u * kLanes;
            put(out + at, vector(load(x + at), load(grad + at), u));
        }
    for (; i + kLanes <= count; i += kLanes) put(out + i, vector(load(x + i), load(grad + i), 0));
    if (i < count)
        put_partial(out + i, vector(load_partial(x + i, count - i), load_partial(grad + i, count - i), 0), count - i);
    if constexpr (kAffine) {
        for (int u = 0; u < kUnroll; ++u) {
            sums[0] += sum[u];
            sums[1] += sum_with_x[u];
        }
    }
}

template <Activation A, bool kAffine, typename T>
void backward_nchw(const BnStats& op, const T* grad, const T* x, BackwardParameters p, T* grad_x, double* sums) {
    const int64_t channels = op.channels, spatial = op.spatial;
    const Chunks chunks(op.batch, 1);
    const Output<T> out = output(grad_x, op, spatial);
    const Scratch<double> parts(kAffine ? chunks.count * 2 * channels : 0);
#pragma omp parallel num_threads(op.threads)
    {
        const F32 slope = splat(op.negative_slope);
#pragma omp for schedule(static) nowait
        for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
            const int64_t begin = chunk * chunks.size, end = min(op.batch, begin + chunks.size);
            double* totals = parts.data + chunk * 2 * channels;
            if constexpr (kAffine)
                for (int64_t i = 0; i < 2 * channels; ++i) totals[i] = 0;
            for (int64_t n = begin; n < end; ++n) {
                for (int64_t c = 0; c < channels; ++c) {
                    for (int64_t at = 0; at < spatial; at += kPlaneBlock) {
                        const int64_t first = (n * channels + c) * spatial + at;
                        F32 both[2] = {};
                        backward_plane<A, kAffine>(x + first, grad + first, out + first, min(kPlaneBlock, spatial - at),
                                                   p, c, slope, both);
                        if constexpr (kAffine) {
                            totals[c] += sum(both[0]);
                            totals[channels + c] += sum(both[1]);
                        }
                    }
                }
            }
        }
        end_stream();
    }
    if constexpr (kAffine) {
        for (int64_t i = 0; i < 2 * channels; ++i) sums[i] = 0;
        for (int64_t chunk = 0; chunk < chunks.count; ++chunk)
            for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += parts.data[chunk * 2 * channels + i];
    }
}

template <Activation A, typename T>
void backward(const BnStats& op, const T* grad_y, float grad_loss, const T* x, const float* coefficients, T* grad_x,
              float* grad_weight, float* grad_bias) {
    const int64_t channels = op.channels;
    const Scratch<float> parameters(4 * channels);
    float *scale = parameters.data, *shift = scale + channels, *a = shift + channels, *b = a + channels;
    fold_affine(op, scale, shift);
    for (int64_t c = 0; c < channels; ++c) {
        a[c] = coefficients ? grad_loss * coefficients[c] : 0;
        b[c] = coefficients ? grad_loss * coefficients[channels + c] : 0;
    }
    const BackwardParameters p{scale, shift, a, b, op.running_mean};
    if (grad_weight == nullptr) {
        op.channels_last ? backward_channels_last<A, false>(op, grad_y, x, p, grad_x, nullptr)
                         : backward_nchw<A, false>(op, grad_y, x, p, grad_x, nullptr);
        return;
    }
    const Scratch<double> sums(2 * channels);
    op.channels_last ? backward_channels_last<A, true>(op, grad_y, x, p, grad_x, sums.data)
                     : backward_nchw<A, true>(op, grad_y, x, p, grad_x, sums.data);
    for (int64_t c = 0; c < channels; ++c) {
        grad_bias[c] = static_cast<float>(sums.data[c]);
        grad_weight[c] = static_cast<float>(sums.data[channels + c] / std::sqrt(op.running_var[c] + op.eps));
    }
}

// ---- one instance for each activation and element type ---------------------------------------------------------

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

void bn_stats_forward(const BnStats& op, const void* x, void* y, float* loss, float* coefficients) {
    with_activation(op.activation, [&]<Activation A>() {
        with_element_type(op.dtype, [&]<typename T>() {
            forward<A>(op, static_cast<const T*>(x), static_cast<T*>(y), loss, coefficients);
        });
    });
}

void bn_stats_backward(const BnStats& op, const void* grad_y, float grad_loss, const void* x,
                       const float* coefficients, void* grad_x, float* grad_weight, float* grad_bias) {
    with_activation(op.activation, [&]<Activation A>() {
        with_element_type(op.dtype, [&]<typename T>() {
            backward<A>(op, static_cast<const T*>(grad_y), grad_loss, static_cast<const T*>(x), coefficients,
                        static_cast<T*>(grad_x), grad_weight, grad_bias);
        });
    });
}

}  // namespace kernels::KERNELS_ISA
