// Random crop and flip of decoded images, scaled to floats, in one pass; see kernels/crop_flip/README.md.
#pragma once

#include <cstdint>

namespace kernels {

// Images of `height` x `width` pixels of three bytes. Image i is seen through a window of its own size whose first pixel
// is at (top[i] - pad, left[i] - pad), and mirrored if flip[i] is not 0. Outside of the image, the window is black.
struct CropFlip {
    std::int64_t batch, height, width, pad;
    const std::int64_t* top;
    const std::int64_t* left;
    const std::uint8_t* flip;
    int threads;
};

// Writes the windows, bytes times 1 / 255; images and out are dense [batch, height, width, 3].
using CropFlipForward = void(const CropFlip& op, const std::uint8_t* images, float* out);

}  // namespace kernels
