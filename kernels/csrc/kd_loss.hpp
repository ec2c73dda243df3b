// Knowledge-distillation loss from logits, with its gradients; kernels/kd_loss/README.md has the derivation.
#pragma once

#include <cstdint>

#include "dtype.hpp"

namespace kernels {

// What the forward pass needs to know about its tensors. Rows of logits are dense, `student_stride` and
// `teacher_stride` elements apart. labels [rows] may be null: then there is no cross-entropy.
struct KdLoss {
    Dtype student_dtype, teacher_dtype;
    std::int64_t rows, classes;
    std::int64_t student_stride, teacher_stride;
    const std::int64_t* labels;
    double temperature, w_kl, w_ce, label_smoothing;
    std::int64_t ignore_index;
    bool standardize;  // z-score the logits of the KL term
    int threads;
};

// Writes total = w_kl kl + w_ce ce, its two terms and, if their addresses are not null, the gradients of total: dense
// [rows, classes] in the dtype of their logits, or float if that is float16. If a label is neither a class nor
// ignore_index, writes nothing and returns its row; else returns -1.
using KdLossForward = std::int64_t(const KdLoss& op, const void* student, const void* teacher, float* total, float* kl,
                                   float* ce, void* grad_student, void* grad_teacher);

}  // namespace kernels
