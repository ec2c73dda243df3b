#include "entry_points.hpp"

#define KERNELS_QUOTE(x) #x
#define KERNELS_NAME(x) KERNELS_QUOTE(x)

namespace kernels::KERNELS_ISA {

BnStatsForward bn_stats_forward;
BnStatsBackward bn_stats_backward;
CropFlipForward crop_flip_forward;
KdLossForward kd_loss_forward;

extern const Isa kIsa;
const Isa kIsa = {KERNELS_NAME(KERNELS_ISA), &bn_stats_forward, &bn_stats_backward, &crop_flip_forward,
                  &kd_loss_forward};

}  // namespace kernels::KERNELS_ISA
