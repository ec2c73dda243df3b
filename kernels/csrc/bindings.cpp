#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cpu.hpp"
#include "isa.hpp"
#include "memory.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Tensors come as addresses: taking them through DLPack costs more than the small kernels do. The public functions in
// kernels/*/__init__.py check shapes and devices; kernels/*/cpp.py sees to dtypes and layouts and keeps them alive.
using Address = std::uintptr_t;

template <typename T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
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

    nb::class_<kernels::BnStats>(m, "BnStats")
        .def(
            "__init__",
            [](kernels::BnStats* self, int dtype, bool channels_last, std::int64_t batch, std::int64_t channels,
               std::int64_t spatial, Address weight, Address bias, Address running_mean, Address running_var,
               double eps, int activation, float negative_slope, int threads) {
                new (self) kernels::BnStats{static_cast<kernels::Dtype>(dtype),
                                            channels_last,
                                            batch,
                                            channels,
                                            spatial,
                                            at<float>(weight),
                                            at<float>(bias),
                                            at<float>(running_mean),
                                            at<float>(running_var),
                                            eps,
                                            static_cast<kernels::Activation>(activation),
                                            negative_slope,
                                            threads};
            },
            nb::kw_only(), "dtype"_a, "channels_last"_a, "batch"_a, "channels"_a, "spatial"_a, "weight"_a, "bias"_a,
            "running_mean"_a, "running_var"_a, "eps"_a, "activation"_a, "negative_slope"_a, "threads"_a);
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

    nb::class_<kernels::CropFlip>(m, "CropFlip")
        .def(
            "__init__",
            [](kernels::CropFlip* self, std::int64_t batch, std::int64_t height, std::int64_t width, std::int64_t pad,
               Address top, Address left, Address flip, int threads) {
                new (self) kernels::CropFlip{batch,
                                             height,
                                             width,
                                             pad,
                                             at<std::int64_t>(top),
                                             at<std::int64_t>(left),
                                             at<std::uint8_t>(flip),
                                             threads};
            },
            nb::kw_only(), "batch"_a, "height"_a, "width"_a, "pad"_a, "top"_a, "left"_a, "flip"_a, "threads"_a);
    m.def(
        "crop_flip_forward",
        [](const kernels::CropFlip& op, Address images, Address out) {
            nb::gil_scoped_release released;
            kernels::isa().crop_flip_forward(op, at<std::uint8_t>(images), at<float>(out));
        },
        "op"_a, "images"_a, "out"_a);

    nb::class_<kernels::KdLoss>(m, "KdLoss")
        .def(
            "__init__",
            [](kernels::KdLoss* self, int student_dtype, int teacher_dtype, std::int64_t rows, std::int64_t classes,
               std::int64_t student_stride, std::int64_t teacher_stride, Address labels, double temperature,
               double w_kl, double w_ce, double label_smoothing, std::int64_t ignore_index, int threads) {
                new (self) kernels::KdLoss{static_cast<kernels::Dtype>(student_dtype),
                                           static_cast<kernels::Dtype>(teacher_dtype),
                                           rows,
                                           classes,
                                           student_stride,
                                           teacher_stride,
                                           at<std::int64_t>(labels),
                                           temperature,
                                           w_kl,
                                           w_ce,
                                           label_smoothing,
                                           ignore_index,
                                           threads};
            },
            nb::kw_only(), "student_dtype"_a, "teacher_dtype"_a, "rows"_a, "classes"_a, "student_stride"_a,
            "teacher_stride"_a, "labels"_a, "temperature"_a, "w_kl"_a, "w_ce"_a, "label_smoothing"_a, "ignore_index"_a,
            "threads"_a);
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
