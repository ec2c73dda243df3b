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

void blacken(uint8_t* to, int64_t pixels) { __builtin_memset(to, 0, pixels * kChannels); }

void copy(const uint8_t* from, int64_t pixels, uint8_t* to) { __builtin_memcpy(to, from, pixels * kChannels); }

void scale(const uint8_t* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] * kScale;
}

// Writes one byte more than the pixels have, their neighbour's: four bytes are moved at once.
void mirror(const uint8_t* from, int64_t pixels, uint8_t* to) {
    __builtin_memcpy(to, from + (pixels - 1) * kChannels, kChannels);
    for (int64_t i = 1; i < pixels; ++i) {
        __builtin_memcpy(to + i * kChannels, from + (pixels - 1 - i) * kChannels, kChannels + 1);
    }
}

// The window's row `y` of one image; `seen` has room for its bytes and one more.
void crop_row(const CropFlip& op, int64_t image, int64_t y, const uint8_t* images, uint8_t* seen, float* out) {
    const int64_t row = y + op.top[image] - op.pad, shift = op.left[image] - op.pad;
    const int64_t first = min(op.width, max(0, -shift));  // of the window's pixels that see the image
    const int64_t last = max(first, min(op.width, op.width - shift));
    const bool black = row < 0 || row >= op.height || first == last, flip = op.flip[image] != 0;
    const int64_t pixels = black ? 0 : last - first, before = flip ? op.width - last : first;
    if (!black) {
        const uint8_t* from = images + ((image * op.height + row) * op.width + first + shift) * kChannels;
        flip ? mirror(from, pixels, seen + before * kChannels) : copy(from, pixels, seen + before * kChannels);
    }
    blacken(seen, before);
    blacken(seen + (before + pixels) * kChannels, op.width - before - pixels);
    scale(seen, op.width * kChannels, out);
}

}  // namespace

void crop_flip_forward(const CropFlip& op, const uint8_t* images, float* out) {
    const int64_t rows = op.batch * op.height, elements = op.width * kChannels;
    const int threads = static_cast<int>(max(1, min(op.threads, rows * elements / kBytesPerThread)));
#pragma omp parallel num_threads(threads)
    {
        Scratch<uint8_t> seen(elements + 1);
#pragma omp for schedule(static)
        for (int64_t at = 0; at < rows; ++at) {
            crop_row(op, at / op.height, at % op.height, images, seen.data, out + at * elements);
        }
    }
}

}  // namespace kernels::KERNELS_ISA
