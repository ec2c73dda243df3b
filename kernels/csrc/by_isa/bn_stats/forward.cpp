#include "bn_stats.hpp"

#include "moments.hpp"
#include "walk.hpp"

namespace kernels::KERNELS_ISA {

namespace {

// Parameters of y = act(x * scale + shift), and the sums of x - center and its square: one float per element of a period.
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

// Processes V adjacent vectors of every group and adds to the sums in `lanes`.
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

// Processes `count` elements from the start of a period, at most kBlockGroups periods.
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

// The working memory of one thread for channels-last memory; it owns center, sum and sum_of_squares of `lanes`.
struct FlatScratch {
    const Scratch<float> own;
    const Scratch<double> totals;
    const ForwardLanes lanes;

    FlatScratch(const float* scale, const float* shift, int64_t period)
        : own(3 * period),
          totals(2 * period),
          lanes{scale, shift, own.data, own.data + period, own.data + 2 * period} {}
};

// Sets the center to the means of the first groups of a chunk, and the totals to zero.
template <Activation A, typename T>
void find_center(const T* x, Output<T> y, int64_t count, int64_t period, const FlatScratch& scratch) {
    float* center = scratch.own.data;
    const int64_t groups = min(count / period, kBlockGroups / 4);
    fill(center, 3 * period, 0);
    forward_stretch<A, false, true>(x, y, groups > 0 ? groups * period : count, period, scratch.lanes, F32{});
    for (int64_t i = 0; i < period; ++i) center[i] = scratch.lanes.sum[i] / max(groups, 1);
    for (int64_t i = 0; i < 2 * period; ++i) scratch.totals.data[i] = 0;
}

// Processes `count` elements from the start of a period; with kSums, writes the moments [period] of the lanes.
template <Activation A, bool kSums, typename T>
void forward_chunk(const T* x, Output<T> y, int64_t count, int64_t period, const FlatScratch& scratch, F32 slope,
                   Moments* moments) {
    const ForwardLanes& lanes = scratch.lanes;
    double* totals = scratch.totals.data;
    const int64_t block = kBlockGroups * period;
    if constexpr (kSums) find_center<A>(x, y, count, period, scratch);
    for (int64_t at = 0; at < count; at += block) {
        if constexpr (kSums) fill(lanes.sum, 2 * period, 0);
        forward_stretch<A, true, kSums>(x + at, y + at, min(block, count - at), period, lanes, slope);
        if constexpr (kSums)
            for (int64_t i = 0; i < 2 * period; ++i) totals[i] += lanes.sum[i];
    }
    if constexpr (kSums)
        for (int64_t i = 0; i < period; ++i)
            moments[i] = moments_of(static_cast<double>(ceil_div(max(count - i, 0), period)), lanes.center[i],
                                    totals[i], totals[period + i]);
}

template <Activation A, bool kSums, typename T>
void forward_channels_last(const BnStats& op, const T* x, T* y, const float* scale, const float* shift,
                           Moments* result) {
    const int64_t channels = op.channels, period = period_of(channels);
    const int64_t total = op.batch * op.spatial * channels;
    const Chunks chunks(total, period);
    const Output<T> out = output(y, op, period);
    const Scratch<float> lanes(2 * period);
    repeat(scale, channels, lanes.data, period);
    repeat(shift, channels, lanes.data + period, period);
    const Scratch<Moments> parts(kSums ? chunks.count * period : 0);
#pragma omp parallel num_threads(op.threads)
    {
        const FlatScratch scratch(lanes.data, lanes.data + period, period);
        const F32 slope = splat(op.negative_slope);
#pragma omp for schedule(static) nowait
        for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
            const int64_t begin = chunk * chunks.size, count = min(chunks.size, total - begin);
            forward_chunk<A, kSums>(x + begin, out + begin, count, period, scratch, slope,
                                    parts.data + chunk * period);
        }
        end_stream();
    }
    if constexpr (kSums)
        for (int64_t c = 0; c < channels; ++c)
            result[c] = combine(parts.data + c, chunks.count * (period / channels), channels);
}

// Processes `count` elements of one channel of one image, and adds to sums[0] and sums[1].
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

// The working memory of one thread for NCHW memory: for each channel a center, and two vectors of sums that are
// regularly added to doubles.
struct PlanarScratch {
    const int64_t channels;
    const Scratch<float> centers;
    const Scratch<double> totals;
    const AlignedScratch<F32> sums;

    explicit PlanarScratch(int64_t channels)
        : channels(channels), centers(channels), totals(2 * channels), sums(2 * channels) {}

    void move_sums() const {
        for (int64_t i = 0; i < 2 * channels; ++i) {
            totals.data[i] += sum(sums.data[i]);
            sums.data[i] = F32{};
        }
    }
};

// Sets the centers to the means of the first elements of an image's planes, and all sums to zero.
template <Activation A, typename T>
void find_centers(const T* image, Output<T> y, int64_t spatial, const PlanarScratch& scratch) {
    const int64_t count = min(spatial, kUnroll * kLanes);
    for (int64_t c = 0; c < scratch.channels; ++c) {
        F32 probe[2] = {};
        forward_plane<A, false, true>(image + c * spatial, y, count, 1, 0, 0, F32{}, probe);
        scratch.centers.data[c] = static_cast<float>(sum(probe[0]) / count);
        scratch.sums.data[2 * c] = scratch.sums.data[2 * c + 1] = F32{};
        scratch.totals.data[2 * c] = scratch.totals.data[2 * c + 1] = 0;
    }
}

// Processes `images` images starting at x; with kSums, writes the moments of their channels.
template <Activation A, bool kSums, typename T>
void forward_images(const T* x, Output<T> y, int64_t images, int64_t spatial, const float* scale, const float* shift,
                    const PlanarScratch& scratch, F32 slope, Moments* moments) {
    const int64_t channels = scratch.channels;
    if constexpr (kSums) find_centers<A>(x, y, spatial, scratch);
    int64_t unmoved = 0;
    for (int64_t n = 0; n < images; ++n) {
        for (int64_t at = 0; at < spatial; at += kPlaneBlock) {
            const int64_t count = min(kPlaneBlock, spatial - at);
            for (int64_t c = 0; c < channels; ++c) {
                const int64_t first = (n * channels + c) * spatial + at;
                const float center = kSums ? scratch.centers.data[c] : 0;
                forward_plane<A, true, kSums>(x + first, y + first, count, scale[c], shift[c], center, slope,
                                              scratch.sums.data + 2 * c);
            }
            unmoved += count;
            if (kSums && unmoved >= kPlaneBlock) {
                scratch.move_sums();
                unmoved = 0;
            }
        }
    }
    if constexpr (kSums) {
        scratch.move_sums();
        const double* totals = scratch.totals.data;
        for (int64_t c = 0; c < channels; ++c)
            moments[c] = moments_of(static_cast<double>(images * spatial), scratch.centers.data[c], totals[2 * c],
                                    totals[2 * c + 1]);
    }
}

template <Activation A, bool kSums, typename T>
void forward_nchw(const BnStats& op, const T* x, T* y, const float* scale, const float* shift, Moments* result) {
    const int64_t channels = op.channels, spatial = op.spatial, image = channels * spatial;
    const Chunks chunks(op.batch, 1);
    const Output<T> out = output(y, op, spatial);
    const Scratch<Moments> parts(kSums ? chunks.count * channels : 0);
#pragma omp parallel num_threads(op.threads)
    {
        const PlanarScratch scratch(channels);
        const F32 slope = splat(op.negative_slope);
#pragma omp for schedule(static) nowait
        for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
            const int64_t begin = chunk * chunks.size, images = min(chunks.size, op.batch - begin);
            forward_images<A, kSums>(x + begin * image, out + begin * image, images, spatial, scale, shift, scratch,
                                     slope, parts.data + chunk * channels);
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

}  // namespace

void bn_stats_forward(const BnStats& op, const void* x, void* y, float* loss, float* coefficients) {
    with_activation(op.activation, [&]<Activation A>() {
        with_element_type(op.dtype, [&]<typename T>() {
            forward<A>(op, static_cast<const T*>(x), static_cast<T*>(y), loss, coefficients);
        });
    });
}

}  // namespace kernels::KERNELS_ISA
