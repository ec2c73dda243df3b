// Eval-mode BatchNorm, activation and statistics loss in one pass; kernels/bn_stats/README.md has the derivation.
#pragma once

#include <cstdint>

#include "dtype.hpp"

namespace kernels {

// In the order of ACTIVATIONS in kernels/bn_stats/reference.py.
enum class Activation : int { kNone, kRelu, kRelu6, kLeakyRelu, kSilu };

// What forward and backward need to know about their tensors. Parameters are float [channels]; weight and bias may be
// null, which means 1 and 0.
struct BnStats {
    Dtype dtype;
    bool channels_last;
    std::int64_t batch, channels, spatial;
    const float* weight;
    const float* bias;
    const float* running_mean;
    const float* running_var;
    double eps;
    Activation activation;
    float negative_slope;
    int threads;
};

// Writes y = act(bn(x)), in the dense layout of x. If `loss` is not null, also writes loss = ||var - running_var|| +
// ||mean - running_mean|| of the batch, and coefficients [2, channels], the a and b of d loss / d x = a + b x.
using BnStatsForward = void(const BnStats& op, const void* x, void* y, float* loss, float* coefficients);

// Writes grad_x from grad_y and, if coefficients is not null, from grad_loss. If grad_weight is not null, also writes
// the gradients of weight and bias, float [channels]. grad_y and grad_x have the layout of x.
using BnStatsBackward = void(const BnStats& op, const void* grad_y, float grad_loss, const void* x,
                             const float* coefficients, void* grad_x, float* grad_weight, float* grad_bias);

}  // namespace kernels
