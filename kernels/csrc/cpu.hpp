#pragma once

#include <string>
#include <vector>

namespace kernels {

// The instruction sets among avx2, avx512f, avx512_bf16 and amx_bf16 that the processor has and whose registers the
// operating system saves; empty on anything but x86-64.
std::vector<std::string> cpu_features();

}  // namespace kernels
