// What each instruction set offers; see isa.hpp.
#pragma once

#include "bn_stats.hpp"

namespace kernels {

struct Isa {
    const char* name;
    BnStatsForward* bn_stats_forward;
    BnStatsBackward* bn_stats_backward;
};

}  // namespace kernels
