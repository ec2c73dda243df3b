#pragma once

namespace kernels {

enum class Dtype : int { kFloat32, kBfloat16, kFloat16 };

}  // namespace kernels
