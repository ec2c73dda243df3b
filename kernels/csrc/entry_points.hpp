// The functions that are compiled once per instruction set; see isa.hpp.
#pragma once

#include "bn_stats.hpp"
#include "crop_flip.hpp"
#include "kd_loss.hpp"

namespace kernels {

struct Isa {
    const char* name;
    BnStatsForward* bn_stats_forward;
    BnStatsBackward* bn_stats_backward;
    CropFlipForward* crop_flip_forward;
    KdLossForward* kd_loss_forward;
};

}  // namespace kernels
