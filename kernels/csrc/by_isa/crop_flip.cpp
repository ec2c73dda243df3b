#include "crop_flip.hpp"

#include "memory.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace kernels::KERNELS_ISA {

namespace {

using std::int64_t;
using std::uint8_t;

constexpr float kScale = 1.0f / 255;
constexpr int64_t kChannels = 3;
constexpr int64_t kBytesPerThread = 65536;  // for fewer, waking another thread takes longer

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

void blacken(uint8_t* to, int64_t pixels) { __builtin_memset(to, 0, pixels * kChannels); }

void copy(const uint8_t* from, int64_t pixels, uint8_t* to) { __builtin_memcpy(to, from, pixels * kChannels); }

void scale(const uint8_t* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] * kScale;
}

using Scale = void(const uint8_t* from, int64_t count, float* to);

// As `scale`, with non-temporal stores; `to` is aligned as a vector.
void scale_past_caches(const uint8_t* from, int64_t count, float* to) {
    constexpr int64_t kBlock = kLanes == 4 ? 16 : kLanes;  // compilers convert 16 bytes at once, 4 in many moves
    int64_t i = 0;
    for (; i + kBlock <= count; i += kBlock) {
        float block[kBlock];
        scale(from + i, kBlock, block);
        for (int64_t lane = 0; lane < kBlock; lane += kLanes) stream(to + i + lane, load(block + lane));
    }
    scale(from + i, count - i, to + i);
}

// Moves four bytes at a time, so that it writes one byte past the last pixel.
void mirror(const uint8_t* from, int64_t pixels, uint8_t* to) {
    __builtin_memcpy(to, from + (pixels - 1) * kChannels, kChannels);
    for (int64_t i = 1; i < pixels; ++i) {
        __builtin_memcpy(to + i * kChannels, from + (pixels - 1 - i) * kChannels, kChannels + 1);
    }
}

// Writes row `y` of the window of one image to `seen`, which has room for one more byte.
void crop_row(const CropFlip& op, int64_t image, int64_t y, const uint8_t* images, uint8_t* seen) {
    const int64_t row = y + op.top[image] - op.pad, shift = op.left[image] - op.pad;
    const int64_t first = min(op.width, max(0, -shift));  // first of the window's pixels inside the image
    const int64_t last = max(first, min(op.width, op.width - shift));
    if (row < 0 || row >= op.height || first == last) return blacken(seen, op.width);
    const uint8_t* from = images + ((image * op.height + row) * op.width + first + shift) * kChannels;
    const bool flip = op.flip[image] != 0;
    const int64_t before = flip ? op.width - last : first, after = op.width - before - (last - first);
    blacken(seen, before);
    (flip ? mirror : copy)(from, last - first, seen + before * kChannels);
    blacken(seen + (op.width - after) * kChannels, after);
}

// Whether to write past the caches, because they could not hold the result until it is read.
bool streamed(const float* out, const CropFlip& op) {
    const int64_t row = op.width * kChannels, bytes = op.batch * op.height * row * static_cast<int64_t>(sizeof(float));
    const bool aligned = reinterpret_cast<std::uintptr_t>(out) % sizeof(F32) == 0 && row % kLanes == 0;
    return aligned && outgrows_caches(bytes);
}

}  // namespace

void crop_flip_forward(const CropFlip& op, const uint8_t* images, float* out) {
    const int64_t rows = op.batch * op.height, elements = op.width * kChannels;
    const int threads = static_cast<int>(max(1, min(op.threads, rows * elements / kBytesPerThread)));
    Scale* const into = streamed(out, op) ? scale_past_caches : scale;
#pragma omp parallel num_threads(threads)
    {
        Scratch<uint8_t> seen(elements + 1);
#pragma omp for schedule(static)
        for (int64_t at = 0; at < rows; ++at) {
            crop_row(op, at / op.height, at % op.height, images, seen.data);
            into(seen.data, elements, out + at * elements);
        }
        end_stream();
    }
}

}  // namespace kernels::KERNELS_ISA
