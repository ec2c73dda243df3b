#pragma once

#include <string>
#include <vector>

namespace kernels {

// The vector and matrix instruction sets that the processor has and the operating system saves the registers
// of, among avx2, avx512f, avx512_bf16 and amx_bf16; empty on anything but x86-64.
std::vector<std::string> cpu_features();

}  // namespace kernels
