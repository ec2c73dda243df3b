#include "isa.hpp"

#include <atomic>
#include <stdexcept>

namespace kernels {

namespace baseline {
extern const Isa kIsa;
}
#ifdef KERNELS_X86_ISAS
namespace avx2 {
extern const Isa kIsa;
}
namespace avx512 {
extern const Isa kIsa;
}
namespace avx512_bf16 {
extern const Isa kIsa;
}
#endif

namespace {

std::vector<const Isa*> available() {
    std::vector<const Isa*> found;
#ifdef KERNELS_X86_ISAS
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16::kIsa);
    if (avx512) found.push_back(&avx512::kIsa);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kIsa);
#endif
    found.push_back(&baseline::kIsa);
    return found;
}

std::atomic<const Isa*>& selected() {
    static std::atomic<const Isa*> chosen{available().front()};
    return chosen;
}

}  // namespace

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Isa* each : available()) names.emplace_back(each->name);
    return names;
}

const Isa& isa() { return *selected(); }

void select_isa(const std::string& name) {
    for (const Isa* each : available()) {
        if (name == each->name) {
            selected() = each;
            return;
        }
    }
    std::string names;
    for (const std::string& each : isas()) names += (names.empty() ? "" : ", ") + each;
    throw std::invalid_argument("instruction set is '" + name + "', but this build and processor have " + names);
}

}  // namespace kernels
