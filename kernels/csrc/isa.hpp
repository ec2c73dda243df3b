// The choice among the instruction sets that the sources in by_isa/ are compiled for, made at run time.
#pragma once

#include <string>
#include <vector>

#include "entry_points.hpp"

namespace kernels {

// Those that this build has and this processor runs, widest first; the last is "baseline".
std::vector<std::string> isas();

// The one in use: the widest, or the one last selected.
const Isa& isa();

// Selects one for the whole process. Throws std::invalid_argument for a name that is not in isas().
void select_isa(const std::string& name);

}  // namespace kernels
