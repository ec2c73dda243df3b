// Chooses at run time among the instruction sets that the sources in by_isa/ are compiled for.
#pragma once

#include <string>
#include <vector>

#include "entry_points.hpp"

namespace kernels {

// The instruction sets that this build has and this processor runs, widest first; the last is "baseline".
std::vector<std::string> isas();

// The instruction set in use: the widest, or the one last selected.
const Isa& isa();

// Selects an instruction set for the whole process. Throws std::invalid_argument if `name` is not in isas().
void select_isa(const std::string& name);

}  // namespace kernels
