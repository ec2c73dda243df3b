#include "bn_stats.hpp"

#include "walk.hpp"

namespace kernels::KERNELS_ISA {

namespace {

// Parameters of grad_x = act'(x * scale + shift) * grad_y * scale + a + b * x and, for the affine gradients, the sums of
// u = act' * grad_y and of u * (x - center), with the running mean as center: one float per element of a period.
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

// The parameters of every channel, [channels] each.
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

}  // namespace

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
