#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <type_traits>

#include "cpu.hpp"
#include "isa.hpp"
#include "memory.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Tensors are passed as addresses, because DLPack costs more than the small kernels do. The public functions in
// kernels/*/__init__.py check shapes and devices; kernels/*/cpp.py ensures dtypes and layouts and keeps tensors alive.
using Address = std::uintptr_t;

template <typename T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// The Python type of a field: integers stand for addresses and enumerators.
template <typename Field>
using FromPython = std::conditional_t<std::is_pointer_v<Field>, Address,
                                      std::conditional_t<std::is_enum_v<Field>, int, Field>>;

template <typename Field>
Field to_field(FromPython<Field> value) {
    if constexpr (std::is_pointer_v<Field>)
        return reinterpret_cast<Field>(value);
    else
        return static_cast<Field>(value);
}

// Binds the aggregate `Op`, whose constructor takes every field by keyword. Fields and names are in the struct's order.
template <typename Op, typename... Fields, typename... Names>
void bind_op(nb::module_& m, const char* name, Names... names) {
    nb::class_<Op>(m, name).def(
        "__init__",
        [](Op* self, FromPython<Fields>... fields) { new (self) Op{to_field<Fields>(fields)...}; },
        nb::kw_only(), nb::arg(names)...);
}

}  // namespace

NB_MODULE(_native, m) {
    m.def("cpu_features", &kernels::cpu_features);
    m.def("retain_freed_memory", &kernels::retain_freed_memory);
    m.def("last_level_cache_bytes", &kernels::last_level_cache_bytes);
    m.def("set_last_level_cache_bytes", &kernels::set_last_level_cache_bytes, "bytes"_a);
    m.def("isas", &kernels::isas);
    m.def("isa", [] { return std::string(kernels::isa().name); });
    m.def("select_isa", &kernels::select_isa, "name"_a);

    bind_op<kernels::BnStats, kernels::Dtype, bool, std::int64_t, std::int64_t, std::int64_t, const float*, const float*,
            const float*, const float*, double, kernels::Activation, float, int>(
        m, "BnStats", "dtype", "channels_last", "batch", "channels", "spatial", "weight", "bias", "running_mean",
        "running_var", "eps", "activation", "negative_slope", "threads");
    m.def(
        "bn_stats_forward",
        [](const kernels::BnStats& op, Address x, Address y, Address loss, Address coefficients) {
            nb::gil_scoped_release released;
            kernels::isa().bn_stats_forward(op, at(x), at(y), at<float>(loss), at<float>(coefficients));
        },
        "op"_a, "x"_a, "y"_a, "loss"_a, "coefficients"_a);
    m.def(
        "bn_stats_backward",
        [](const kernels::BnStats& op, Address grad_y, float grad_loss, Address x, Address coefficients, Address grad_x,
           Address grad_weight, Address grad_bias) {
            nb::gil_scoped_release released;
            kernels::isa().bn_stats_backward(op, at(grad_y), grad_loss, at(x), at<float>(coefficients), at(grad_x),
                                             at<float>(grad_weight), at<float>(grad_bias));
        },
        "op"_a, "grad_y"_a, "grad_loss"_a, "x"_a, "coefficients"_a, "grad_x"_a, "grad_weight"_a, "grad_bias"_a);

    bind_op<kernels::CropFlip, std::int64_t, std::int64_t, std::int64_t, std::int64_t, const std::int64_t*,
            const std::int64_t*, const std::uint8_t*, int>(
        m, "CropFlip", "batch", "height", "width", "pad", "top", "left", "flip", "threads");
    m.def(
        "crop_flip_forward",
        [](const kernels::CropFlip& op, Address images, Address out) {
            nb::gil_scoped_release released;
            kernels::isa().crop_flip_forward(op, at<std::uint8_t>(images), at<float>(out));
        },
        "op"_a, "images"_a, "out"_a);

    bind_op<kernels::KdLoss, kernels::Dtype, kernels::Dtype, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
            const std::int64_t*, double, double, double, double, std::int64_t, bool, int>(
        m, "KdLoss", "student_dtype", "teacher_dtype", "rows", "classes", "student_stride", "teacher_stride", "labels",
        "temperature", "w_kl", "w_ce", "label_smoothing", "ignore_index", "standardize", "threads");
    m.def(
        "kd_loss_forward",
        [](const kernels::KdLoss& op, Address student, Address teacher, Address total, Address kl, Address ce,
           Address grad_student, Address grad_teacher) {
            nb::gil_scoped_release released;
            return kernels::isa().kd_loss_forward(op, at(student), at(teacher), at<float>(total), at<float>(kl),
                                                  at<float>(ce), at(grad_student), at(grad_teacher));
        },
        "op"_a, "student"_a, "teacher"_a, "total"_a, "kl"_a, "ce"_a, "grad_student"_a, "grad_teacher"_a);
}
