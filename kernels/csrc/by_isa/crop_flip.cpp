#include "crop_flip.hpp"

#include "scratch.hpp"

namespace kernels::KERNELS_ISA {

namespace {

using std::int64_t;
using std::uint8_t;

constexpr float kScale = 1.0f / 255;
constexpr int64_t kChannels = 3;
constexpr int64_t kBytesPerThread = 65536;  // fewer are done sooner than another thread wakes

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

void blacken(float* to, int64_t pixels) {
    for (int64_t i = 0; i < pixels * kChannels; ++i) to[i] = 0;
}

void scale(const uint8_t* from, int64_t pixels, float* to) {
    for (int64_t i = 0; i < pixels * kChannels; ++i) to[i] = from[i] * kScale;
}

void mirror(const float* from, int64_t pixels, float* to) {
    for (int64_t i = 0; i < pixels; ++i) {
        const float* pixel = from + i * kChannels;
        float* seen = to + (pixels - 1 - i) * kChannels;
        for (int64_t channel = 0; channel < kChannels; ++channel) seen[channel] = pixel[channel];
    }
}

// The window's row `y` of one image; `unmirrored` has room for a row.
void crop_row(const CropFlip& op, int64_t image, int64_t y, const uint8_t* images, float* unmirrored, float* out) {
    const int64_t row = y + op.top[image] - op.pad, shift = op.left[image] - op.pad;
    const int64_t first = min(op.width, max(0, -shift));  // of the window's pixels that see the image
    const int64_t last = max(first, min(op.width, op.width - shift));
    if (row < 0 || row >= op.height || first == last) return blacken(out, op.width);
    const uint8_t* from = images + ((image * op.height + row) * op.width + first + shift) * kChannels;
    if (op.flip[image] == 0) {
        blacken(out, first);
        scale(from, last - first, out + first * kChannels);
        blacken(out + last * kChannels, op.width - last);
        return;
    }
    scale(from, last - first, unmirrored);
    blacken(out, op.width - last);
    mirror(unmirrored, last - first, out + (op.width - last) * kChannels);
    blacken(out + (op.width - first) * kChannels, first);
}

}  // namespace

void crop_flip_forward(const CropFlip& op, const uint8_t* images, float* out) {
    const int64_t rows = op.batch * op.height, elements = op.width * kChannels;
    const int threads = static_cast<int>(max(1, min(op.threads, rows * elements / kBytesPerThread)));
#pragma omp parallel num_threads(threads)
    {
        Scratch<float> unmirrored(elements);
#pragma omp for schedule(static)
        for (int64_t at = 0; at < rows; ++at) {
            crop_row(op, at / op.height, at % op.height, images, unmirrored.data, out + at * elements);
        }
    }
}

}  // namespace kernels::KERNELS_ISA
