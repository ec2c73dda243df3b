// Combines the mean and variance of the parts of a channel, and computes the loss from them.
#pragma once

#include <cmath>

#include "bn_stats.hpp"

namespace kernels::KERNELS_ISA {

namespace {

using std::int64_t;

// Count, mean and sum of squared deviations of a channel within a chunk, in double.
struct Moments {
    double count, mean, squared_deviations;
};

// Returns the moments of the union of disjoint parts, `stride` apart: Chan, Golub and LeVeque (1979).
Moments combine(const Moments* parts, int64_t num_parts, int64_t stride) {
    double count = 0, weighted = 0, squared_deviations = 0;
    for (int64_t p = 0; p < num_parts; ++p) {
        count += parts[p * stride].count;
        weighted += parts[p * stride].count * parts[p * stride].mean;
    }
    const double mean = weighted / count;
    for (int64_t p = 0; p < num_parts; ++p) {
        const double offset = parts[p * stride].mean - mean;
        squared_deviations += parts[p * stride].squared_deviations + parts[p * stride].count * offset * offset;
    }
    return {count, mean, squared_deviations};
}

Moments moments_of(double count, double center, double sum, double sum_of_squares) {
    if (count == 0) return {0, 0, 0};
    return {count, center + sum / count, sum_of_squares - sum * sum / count};
}

// Computes the loss and the coefficients from the moments of all channels. The gradient of a norm at zero is zero, as in
// torch.
void finish(const BnStats& op, const Moments* moments, float* loss, float* coefficients) {
    double mean_norm = 0, var_norm = 0;
    for (int64_t c = 0; c < op.channels; ++c) {
        const double d_mean = moments[c].mean - op.running_mean[c];
        const double d_var = moments[c].squared_deviations / moments[c].count - op.running_var[c];
        mean_norm += d_mean * d_mean;
        var_norm += d_var * d_var;
    }
    mean_norm = std::sqrt(mean_norm);
    var_norm = std::sqrt(var_norm);
    *loss = static_cast<float>(mean_norm + var_norm);
    for (int64_t c = 0; c < op.channels; ++c) {
        const double count = moments[c].count, mean = moments[c].mean;
        const double d_mean = mean - op.running_mean[c];
        const double d_var = moments[c].squared_deviations / count - op.running_var[c];
        const double b = var_norm == 0 ? 0 : 2 * d_var / (count * var_norm);
        const double a = (mean_norm == 0 ? 0 : d_mean / (count * mean_norm)) - b * mean;
        coefficients[c] = static_cast<float>(a);
        coefficients[op.channels + c] = static_cast<float>(b);
    }
}

}  // namespace

}  // namespace kernels::KERNELS_ISA
