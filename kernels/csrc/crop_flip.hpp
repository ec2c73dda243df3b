// Random crop and flip of decoded images, scaled to floats, in one pass; kernels/crop_flip/README.md.
#pragma once

#include <cstdint>

namespace kernels {

// Images of `height` x `width` pixels of three bytes. Image i is seen through a window of its own size whose first pixel
// lies at (top[i] - pad, left[i] - pad), and mirrored where flip[i] is not 0; outside of the image there is black.
struct CropFlip {
    std::int64_t batch, height, width, pad;
    const std::int64_t* top;
    const std::int64_t* left;
    const std::uint8_t* flip;
    int threads;
};

// images and out are dense [batch, height, width, 3]; out is the bytes times 1 / 255.
using CropFlipForward = void(const CropFlip& op, const std::uint8_t* images, float* out);

}  // namespace kernels
