// Runs every native kernel on odd shapes in buffers of exactly their size, so that any access outside is caught.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "cpu.hpp"
#include "isa.hpp"
#include "memory.hpp"

namespace {

using namespace kernels;

struct Free {
    void operator()(char* memory) const { operator delete(memory, std::align_val_t{64}); }
};
using Memory = std::unique_ptr<char[], Free>;

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16};

// Allocates exactly `count` elements of `dtype`, all 1, aligned to the bytes of a vector.
Memory ones(std::int64_t count, Dtype dtype) {
    const bool wide = dtype == Dtype::kFloat32;
    Memory memory(static_cast<char*>(operator new(count * (wide ? 4 : 2), std::align_val_t{64})));
    for (std::int64_t i = 0; i < count; ++i) {
        if (wide) reinterpret_cast<float*>(memory.get())[i] = 1;
        if (!wide) reinterpret_cast<std::uint16_t*>(memory.get())[i] = dtype == Dtype::kBfloat16 ? 0x3f80 : 0x3c00;
    }
    return memory;
}

void require_finite(const char* what, float value) {
    if (std::isfinite(value)) return;
    std::fprintf(stderr, "%s is not finite\n", what);
    std::exit(1);
}

void bn_stats(std::int64_t batch, std::int64_t channels, std::int64_t spatial) {
    std::vector<float> weight(channels, 1), bias(channels, 0), mean(channels, 0.5f), var(channels, 2);
    std::vector<float> coefficients(2 * channels), grad_weight(channels), grad_bias(channels);
    const std::int64_t count = batch * channels * spatial;
    for (const Dtype dtype : kDtypes) {
        const auto x = ones(count, dtype), grad_y = ones(count, dtype), y = ones(count, dtype), grad_x = ones(count, dtype);
        for (const bool channels_last : {false, true}) {
            for (int activation = 0; activation <= static_cast<int>(Activation::kSilu); ++activation) {
                const BnStats op{dtype, channels_last, batch,       channels,   spatial,
                                 weight.data(), bias.data(), mean.data(), var.data(), 1e-5,
                                 static_cast<Activation>(activation), 0.1f, 2};
                float loss = 0;
                isa().bn_stats_forward(op, x.get(), y.get(), &loss, coefficients.data());
                require_finite("bn_stats loss", loss);
                isa().bn_stats_forward(op, x.get(), y.get(), nullptr, nullptr);
                isa().bn_stats_backward(op, grad_y.get(), 1, x.get(), coefficients.data(), grad_x.get(), nullptr, nullptr);
                isa().bn_stats_backward(op, grad_y.get(), 0, x.get(), nullptr, grad_x.get(), grad_weight.data(),
                                        grad_bias.data());
                require_finite("bn_stats grad_weight", grad_weight[channels - 1]);
            }
        }
    }
}

void kd_loss(std::int64_t rows, std::int64_t classes) {
    std::vector<std::int64_t> labels(rows, classes - 1);
    labels[0] = -100;
    for (const Dtype student_dtype : kDtypes) {
        for (const Dtype teacher_dtype : kDtypes) {
            const auto student = ones(rows * classes, student_dtype), teacher = ones(rows * classes, teacher_dtype);
            const auto grad_student = ones(rows * classes, Dtype::kFloat32), grad_teacher = ones(rows * classes, Dtype::kFloat32);
            for (const bool standardize : {false, true}) {
                const KdLoss op{student_dtype, teacher_dtype, rows, classes, classes, classes, labels.data(), 4, 1, 1, 0.1,
                                -100, standardize, 2};
                float total = 0, kl = 0, ce = 0;
                const auto forward = [&](char* of_student, char* of_teacher) {
                    return isa().kd_loss_forward(op, student.get(), teacher.get(), &total, &kl, &ce, of_student, of_teacher);
                };
                forward(grad_student.get(), grad_teacher.get());
                require_finite("kd_loss", total);
                forward(nullptr, nullptr);
                labels[rows - 1] = classes;
                if (forward(nullptr, nullptr) != rows - 1) std::exit(1);
                labels[rows - 1] = classes - 1;
            }
        }
    }
}

void crop_flip(std::int64_t batch, std::int64_t height, std::int64_t width, std::int64_t pad) {
    const std::vector<std::uint8_t> images(batch * height * width * 3, 255);
    const auto memory = ones(batch * height * width * 3, Dtype::kFloat32);
    const std::span out(reinterpret_cast<float*>(memory.get()), images.size());
    for (const std::int64_t offset : {std::int64_t{0}, pad, 2 * pad}) {
        const std::vector<std::int64_t> offsets(batch, offset);
        for (const std::uint8_t flipped : {0, 1}) {
            const std::vector<std::uint8_t> flip(batch, flipped);
            std::fill(out.begin(), out.end(), NAN);
            isa().crop_flip_forward({batch, height, width, pad, offsets.data(), offsets.data(), flip.data(), 2},
                                    images.data(), out.data());
            for (const float value : out) require_finite("crop_flip", value);
        }
    }
}

// Runs all kernels on one instruction set; results of more than half of `cache_bytes` are written past the caches.
void run(const std::string& name, std::int64_t cache_bytes) {
    select_isa(name);
    set_last_level_cache_bytes(cache_bytes);
    const std::int64_t shapes[][3] = {{1, 1, 1}, {2, 3, 35}, {3, 33, 16}, {5, 64, 1}, {70, 17, 9}, {1, 2, 9001}};
    for (const auto& shape : shapes) bn_stats(shape[0], shape[1], shape[2]);
    const std::int64_t logits[][2] = {{2, 1}, {3, 7}, {5, 16}, {2, 401}, {2, 5000}};
    for (const auto& shape : logits) kd_loss(shape[0], shape[1]);
    const std::int64_t sizes[][4] = {{1, 1, 1, 0}, {2, 7, 13, 4}, {3, 5, 33, 9}, {1, 3, 2, 4}, {2, 160, 160, 4}};
    for (const auto& size : sizes) crop_flip(size[0], size[1], size[2], size[3]);
    std::printf("%s, %s: no errors\n", name.c_str(), cache_bytes > 0 ? "through the caches" : "past the caches");
}

}  // namespace

int main() {
    cpu_features();
    const std::int64_t found = last_level_cache_bytes();
    for (const auto& name : isas()) {
        run(name, found);
        run(name, 0);
    }
}
