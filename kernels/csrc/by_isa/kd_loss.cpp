#include "kd_loss.hpp"

#include <cmath>

#include "scratch.hpp"
#include "simd.hpp"

namespace kernels::KERNELS_ISA {

namespace {

using std::int64_t;

constexpr int64_t kBlock = 16 * kLanes;        // elements that are summed in float before the sum is added to a double
constexpr int64_t kElementsPerThread = 16384;  // for fewer, waking another thread takes longer
constexpr float kNear = 0.5f;                  // |log(q / p)| below which KL terms are summed as a series
constexpr double kEpsilon = 1e-7;              // added to the standard deviation of a row

typedef double F64 __attribute__((vector_size(8 * kLanes)));

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

inline void add(F64& total, F32 part) { total += __builtin_convertvector(part, F64); }

inline double sum(const F64& v) {
    double total = 0;
    for (int i = 0; i < kLanes; ++i) total += v[i];
    return total;
}

// e^x for x <= 0, as accurate as exp() and a third cheaper: 2^n is a normal number whenever the result is not 0.
inline F32 exp_of_negative(F32 x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const F32 bounded = x < -87.3f ? splat(-87.3f) : x;
    const F32 shifted = bounded * 1.44269504f + kRound;
    const F32 n = shifted - kRound;
    const F32 r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    F32 p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const F32 power = (F32)(((I32)shifted + 127) << 23);  // the bits above those of n are shifted out
    return x < -87.3f ? F32{} : p * power;
}

inline float largest(F32 v) {
    float most = v[0];
    for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
    return most;
}

// Gradients of float16 logits stay in float until the backward pass: a loss scale may lift them out of the subnormals.
template <typename T>
struct GradientOf {
    using Type = T;
};
template <>
struct GradientOf<F16> {
    using Type = float;
};

// How the KL term scales the logits of one side of a row.
struct Side {
    float* centred;    // logits less their mean; only if they are standardized
    double inverse;    // 1 / T, over the deviation if they are standardized
    double deviation;  // standard deviation of the logits, plus kEpsilon; only if they are standardized
};

// The working memory of one thread for one row: floats [padded(classes)] each, maxima and sums.
struct Row {
    float* student;          // logits; then log(q / p), first without its constant
    float* teacher;          // logits; then exp(logits / T) below the maximum; then p
    float* student_exp;      // exp(logits / T) below the maximum; then maybe q - p
    float* student_exp_one;  // the same with T = 1
    float student_max, teacher_max;
    float student_base, teacher_base;  // subtracted from the logits before their difference
    double student_sum, teacher_sum, student_sum_one;
    double inverse, constant;  // of log(q / p): the lower inverse temperature, and what completes it
    Side student_side, teacher_side;
};

// Copies a row to floats, padded with -inf, and returns its maximum.
template <typename T>
float load_row(const T* from, int64_t count, float* to) {
    const F32 lowest = splat(-__builtin_inff());
    F32 most[2] = {lowest, lowest};
    int64_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
        for (int u = 0; u < 2; ++u) {
            const F32 v = load(from + i + u * kLanes);
            store(to + i + u * kLanes, v);
            most[u] = larger(most[u], v);
        }
    }
    for (; i < count; i += kLanes) {
        const int64_t left = count - i;
        F32 v = left < kLanes ? load_partial(from + i, left) : load(from + i);
        for (int64_t lane = left; lane < kLanes; ++lane) v[lane] = -__builtin_inff();
        store(to + i, v);
        most[0] = larger(most[0], v);
    }
    return largest(larger(most[0], most[1]));
}

float load_row(Dtype dtype, const void* from, int64_t offset, int64_t count, float* to) {
    float most = 0;
    with_element_type(dtype, [&]<typename T>() { most = load_row(static_cast<const T*>(from) + offset, count, to); });
    return most;
}

// Measures the deviation of a row of logits and stores them less their mean.
void standardize(const float* logits, int64_t classes, float most, double temperature, Side& side) {
    double total = 0, squares = 0;
    for (int64_t i = 0; i < classes; ++i) total += logits[i] - most;
    const float mean = static_cast<float>(total / classes);
    for (int64_t i = 0; i < classes; ++i) {
        side.centred[i] = logits[i] - most - mean;
        squares += static_cast<double>(side.centred[i]) * side.centred[i];
    }
    for (int64_t i = classes; i < padded(classes); ++i) side.centred[i] = 0;
    side.deviation = std::sqrt(squares / classes) + kEpsilon;
    side.inverse = 1 / (temperature * side.deviation);
}

// log(q / p) is student * a - teacher * b plus a constant, with the inverse temperatures a and b. It is computed as
// (student - teacher) * min(a, b) plus a rest, which is 0 if a = b. If the maxima are close, the logits may be, too, and
// their plain difference is exact; else the maxima are subtracted first, so that a large gap adds no rounding.
void choose_bases(Row& row) {
    const double a = row.student_side.inverse, b = row.teacher_side.inverse;
    row.inverse = static_cast<float>(a < b ? a : b);  // as the elements are scaled, or the constant would not fit them
    const bool close = __builtin_fabsf(row.student_max - row.teacher_max) * row.inverse < 1;
    row.student_base = close ? 0 : row.student_max;
    row.teacher_base = close ? 0 : row.teacher_max;
}

// Computes both softmaxes for the KL term and, with kOne, the student's at temperature 1, all before division by their
// sums.
template <bool kOne>
void exponentials(Row& row, int64_t count) {
    const F32 student_max = splat(row.student_max), teacher_max = splat(row.teacher_max);
    const F32 student_base = splat(row.student_base), teacher_base = splat(row.teacher_base);
    const double a = row.student_side.inverse, b = row.teacher_side.inverse;
    const float student_inverse = a, teacher_inverse = b, inverse = row.inverse, rest = a - b;
    const bool one_is_known = student_inverse == 1;
    F64 student_sum = {}, teacher_sum = {}, student_sum_one = {};
    for (int64_t begin = 0; begin < count; begin += kBlock) {
        const int64_t end = min(count, begin + kBlock);
        F32 student_part = {}, teacher_part = {}, one_part = {};
        for (int64_t i = begin; i < end; i += kLanes) {
            const F32 s = load(row.student + i), t = load(row.teacher + i);
            const F32 s_exp = exp_of_negative((s - student_max) * student_inverse);
            const F32 t_exp = exp_of_negative((t - teacher_max) * teacher_inverse);
            F32 ratio = ((s - student_base) - (t - teacher_base)) * inverse;
            if (rest != 0) ratio += (rest < 0 ? t - teacher_max : s - student_max) * rest;
            store(row.student + i, ratio);
            store(row.student_exp + i, s_exp);
            store(row.teacher + i, t_exp);
            student_part += s_exp;
            teacher_part += t_exp;
            if constexpr (kOne) {
                const F32 one = one_is_known ? s_exp : exp_of_negative(s - student_max);
                store(row.student_exp_one + i, one);
                one_part += one;
            }
        }
        add(student_sum, student_part);
        add(teacher_sum, teacher_part);
        if constexpr (kOne) add(student_sum_one, one_part);
    }
    row.student_sum = sum(student_sum);
    row.teacher_sum = sum(teacher_sum);
    row.student_sum_one = sum(student_sum_one);
    const double gap = (row.student_max - row.student_base) - (row.teacher_max - row.teacher_base);
    row.constant = std::log(row.student_sum / row.teacher_sum) + gap * row.inverse;
}

// e^d - 1 - d for |d| < kNear, with a relative error below 2e-7.
inline F32 exp_less_linear(F32 d) {
    F32 series = splat(1.0f / 40320);
    series = series * d + 1.0f / 5040;
    series = series * d + 1.0f / 720;
    series = series * d + 1.0f / 120;
    series = series * d + 1.0f / 24;
    series = series * d + 1.0f / 6;
    series = series * d + 0.5f;
    return series * d * d;
}

struct Weights {
    float kl;         // factor of q - p, or of p (log(p / q) - KL), in the gradients
    float ce;         // factor of the softmax at temperature 1
    float smoothing;  // subtracted from the gradient of every class by label smoothing
};

template <typename T>
inline void store_up_to(int64_t count, T* to, F32 v) {
    if (count >= kLanes)
        store(to, v);
    else
        store_partial(to, v, count);
}

// Returns the KL of one row, and leaves p in row.teacher and log(q / p) in row.student. With kGradient, writes the
// student's gradient, else leaves q - p in row.student_exp; with kCe, the gradient includes the cross-entropy.
template <bool kGradient, bool kCe, typename T>
double kl_of_row(Row& row, int64_t classes, Weights weights, T* gradient) {
    const F32 constant = splat(static_cast<float>(row.constant));
    const F32 student_scale = splat(static_cast<float>(1 / row.student_sum));
    const F32 teacher_scale = splat(static_cast<float>(1 / row.teacher_sum));
    const F32 one_scale = kCe ? splat(static_cast<float>(weights.ce / row.student_sum_one)) : F32{};
    F64 total = {};
    for (int64_t begin = 0; begin < classes; begin += kBlock) {
        const int64_t end = min(classes, begin + kBlock);
        F32 part = {};
        for (int64_t i = begin; i < end; i += kLanes) {
            const F32 p = load(row.teacher + i) * teacher_scale, q = load(row.student_exp + i) * student_scale;
            const F32 d = load(row.student + i) - constant;
            const F32 series = exp_less_linear(d);
            const auto near = (d > -kNear) & (d < kNear);
            const F32 excess = near ? p * (d + series) : q - p;
            part += near ? p * series : (p == 0 ? q : excess - p * d);
            store(row.teacher + i, p);
            store(row.student + i, d);
            if constexpr (kGradient) {
                F32 g = excess * weights.kl;
                if constexpr (kCe) g += load(row.student_exp_one + i) * one_scale - weights.smoothing;
                store_up_to(classes - i, gradient + i, g);
            } else {
                store(row.student_exp + i, excess);
            }
        }
        add(total, part);
    }
    return sum(total);
}

// Writes the teacher's gradient from what kl_of_row left in the row.
template <typename T>
void teacher_gradient(const Row& row, int64_t classes, float kl, float weight, T* gradient) {
    for (int64_t i = 0; i < classes; i += kLanes) {
        const F32 p = load(row.teacher + i), d = load(row.student + i);
        const F32 g = p == 0 ? F32{} : p * (-d - kl) * weight;
        store_up_to(classes - i, gradient + i, g);
    }
}

// Returns the factor of the centred logits that makes a gradient [count], zero beyond the classes, orthogonal to them.
// It is 0 if all logits of the row are equal.
double projection(const float* gradient, const Side& side, int64_t classes) {
    F64 dot = {};
    for (int64_t i = 0; i < classes; i += kLanes) add(dot, load(gradient + i) * load(side.centred + i));
    const double deviation = side.deviation - kEpsilon;
    return deviation > 0 ? sum(dot) / classes / deviation / side.deviation : 0;
}

// Writes the student's gradient if its logits are standardized, from the q - p that kl_of_row left in the row.
template <bool kCe, typename T>
void standardized_student_gradient(const Row& row, int64_t classes, Weights weights, T* gradient) {
    const F32 factor = splat(static_cast<float>(projection(row.student_exp, row.student_side, classes)));
    const F32 scale = splat(static_cast<float>(weights.kl / row.student_side.deviation));
    const F32 one_scale = kCe ? splat(static_cast<float>(weights.ce / row.student_sum_one)) : F32{};
    for (int64_t i = 0; i < classes; i += kLanes) {
        F32 g = (load(row.student_exp + i) - load(row.student_side.centred + i) * factor) * scale;
        if constexpr (kCe) g += load(row.student_exp_one + i) * one_scale - weights.smoothing;
        store_up_to(classes - i, gradient + i, g);
    }
}

// Writes the teacher's gradient if its logits are standardized. Overwrites log(q / p) in row.student.
template <typename T>
void standardized_teacher_gradient(Row& row, int64_t classes, float kl, float weight, T* gradient) {
    for (int64_t i = 0; i < classes; i += kLanes) {
        const F32 p = load(row.teacher + i), d = load(row.student + i);
        store(row.student + i, p == 0 ? F32{} : p * (-d - kl));
    }
    const F32 factor = splat(static_cast<float>(projection(row.student, row.teacher_side, classes)));
    const F32 scale = splat(static_cast<float>(weight / row.teacher_side.deviation));
    for (int64_t i = 0; i < classes; i += kLanes) {
        const F32 g = (load(row.student + i) - load(row.teacher_side.centred + i) * factor) * scale;
        store_up_to(classes - i, gradient + i, g);
    }
}

double mean_below_max(const Row& row, int64_t classes) {
    double total = 0;
    for (int64_t i = 0; i < classes; ++i) total += row.student[i] - row.student_max;
    return total / classes;
}

struct RowLosses {
    double kl, ce;
};

// Returns both losses of row `at`, and writes the gradients whose addresses are not null.
RowLosses forward_row(const KdLoss& op, int64_t at, double counted, Row& row, const void* student, const void* teacher,
                      void* grad_student, void* grad_teacher) {
    const int64_t classes = op.classes, count = padded(classes);
    row.student_max = load_row(op.student_dtype, student, at * op.student_stride, classes, row.student);
    row.teacher_max = load_row(op.teacher_dtype, teacher, at * op.teacher_stride, classes, row.teacher);
    row.student_side.inverse = row.teacher_side.inverse = 1 / op.temperature;
    if (op.standardize) {
        standardize(row.student, classes, row.student_max, op.temperature, row.student_side);
        standardize(row.teacher, classes, row.teacher_max, op.temperature, row.teacher_side);
    }
    choose_bases(row);
    const bool with_ce = op.labels != nullptr && op.labels[at] != op.ignore_index;
    Weights weights{static_cast<float>(op.w_kl * op.temperature / op.rows), 0, 0};
    RowLosses losses{0, 0};
    if (with_ce) {
        const double smoothing = op.label_smoothing, sure = 1 - smoothing;
        float* const label_exp = row.student_exp_one + op.labels[at];
        const double of_label = row.student[op.labels[at]] - row.student_max;
        const double of_all = smoothing > 0 ? smoothing * mean_below_max(row, classes) : 0;
        exponentials<true>(row, count);
        losses.ce = std::log(row.student_sum_one) - sure * of_label - of_all;
        weights.ce = static_cast<float>(op.w_ce / counted);
        weights.smoothing = static_cast<float>(op.w_ce / counted * smoothing / classes);
        *label_exp = static_cast<float>(*label_exp - sure * row.student_sum_one);
    } else {
        exponentials<false>(row, count);
    }
    const auto write_student = [&]<typename T>() {
        auto* gradient = static_cast<typename GradientOf<T>::Type*>(grad_student) + at * classes;
        if (op.standardize)
            with_ce ? standardized_student_gradient<true>(row, classes, weights, gradient)
                    : standardized_student_gradient<false>(row, classes, weights, gradient);
        else
            losses.kl = with_ce ? kl_of_row<true, true>(row, classes, weights, gradient)
                                : kl_of_row<true, false>(row, classes, weights, gradient);
    };
    if (grad_student == nullptr || op.standardize)
        losses.kl = kl_of_row<false, false, float>(row, classes, weights, nullptr);
    if (grad_student != nullptr) with_element_type(op.student_dtype, write_student);
    if (grad_teacher != nullptr) {
        with_element_type(op.teacher_dtype, [&]<typename T>() {
            auto* gradient = static_cast<typename GradientOf<T>::Type*>(grad_teacher) + at * classes;
            const float kl = static_cast<float>(losses.kl);
            op.standardize ? standardized_teacher_gradient(row, classes, kl, weights.kl, gradient)
                           : teacher_gradient(row, classes, kl, weights.kl, gradient);
        });
    }
    return losses;
}

int64_t first_wrong_label(const KdLoss& op) {
    for (int64_t i = 0; op.labels != nullptr && i < op.rows; ++i)
        if (op.labels[i] != op.ignore_index && (op.labels[i] < 0 || op.labels[i] >= op.classes)) return i;
    return -1;
}

// Returns the number of rows that the cross-entropy is averaged over.
int64_t count_rows(const KdLoss& op) {
    int64_t counted = 0;
    for (int64_t i = 0; op.labels != nullptr && i < op.rows; ++i) counted += op.labels[i] != op.ignore_index;
    return counted;
}

}  // namespace

int64_t kd_loss_forward(const KdLoss& op, const void* student, const void* teacher, float* total, float* kl, float* ce,
                        void* grad_student, void* grad_teacher) {
    const int64_t wrong = first_wrong_label(op);
    if (wrong >= 0) return wrong;
    const double counted = static_cast<double>(max(count_rows(op), 1));
    const Scratch<RowLosses> losses(op.rows);
    const int64_t threads = min(op.threads, 1 + op.rows * op.classes / kElementsPerThread);
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
        const int64_t count = padded(op.classes);
        const Scratch<float> floats((op.standardize ? 6 : 4) * count);
        Row row{};
        row.student = floats.data;
        row.teacher = floats.data + count;
        row.student_exp = floats.data + 2 * count;
        row.student_exp_one = floats.data + 3 * count;
        row.student_side.centred = floats.data + 4 * count;
        row.teacher_side.centred = floats.data + 5 * count;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < op.rows; ++i)
            losses.data[i] = forward_row(op, i, counted, row, student, teacher, grad_student, grad_teacher);
    }
    double kl_sum = 0, ce_sum = 0;
    for (int64_t i = 0; i < op.rows; ++i) {
        kl_sum += losses.data[i].kl;
        ce_sum += losses.data[i].ce;
    }
    const double kl_mean = op.temperature * op.temperature * kl_sum / op.rows, ce_mean = ce_sum / counted;
    *total = static_cast<float>(op.w_kl * kl_mean + op.w_ce * ce_mean);
    *kl = static_cast<float>(kl_mean);
    *ce = static_cast<float>(ce_mean);
    return -1;
}

}  // namespace kernels::KERNELS_ISA
