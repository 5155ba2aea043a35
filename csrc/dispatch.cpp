// See dispatch.h. A set is offered only if cpuid has all of its instructions and the OS saves its registers.
#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#if defined(FINBACK_X86)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace finback {
namespace {

struct Candidate {
    const char* name;
    bool (*supported)();
    Kernels kernels;
};

bool supported_scalar() { return true; }
#if defined(FINBACK_X86)
// __builtin_cpu_supports also checks XGETBV, so a feature that the OS does not save reads as absent.
bool supported_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("f16c");
}
// Processors of PCs have it in place of AVX-512: Intel Core from the 12th generation on.
bool supported_avxvnni() {
    constexpr unsigned avx_vnni = 1u << 4;  // of the second leaf 7's eax; not every compiler knows its name
    unsigned eax = 0, ebx, ecx, edx;
    return supported_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & avx_vnni) != 0;
}
bool supported_avx512() {
    return supported_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool supported_avx512vnni() { return supported_avx512() && __builtin_cpu_supports("avx512vnni"); }
// Linux hands out the large state of tile registers only to a process that asks for it.
bool tile_registers_granted() {
#if defined(__linux__)
    constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
    return false;
#endif
}
bool supported_avx512amx() {
    constexpr unsigned tiles_of_bf16 = 1u << 24 | 1u << 22;  // of leaf 7's edx; not every compiler knows their names
    unsigned eax, ebx, ecx, edx = 0;
    return supported_avx512vnni() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
           (edx & tiles_of_bf16) == tiles_of_bf16 && tile_registers_granted();
}
#endif

#define FINBACK_CANDIDATE(isa)  \
    Candidate{#isa,             \
              &supported_##isa, \
              {isa::gemm_kernels(), isa::attention_kernels(), isa::norm_rope_kernels(), isa::sample_kernels()}},

const std::vector<Candidate>& candidates() {
    static const std::vector<Candidate> all = {FINBACK_FOR_EACH_ISA(FINBACK_CANDIDATE)};
    return all;
}

const Candidate* best() {
    const Candidate* chosen = nullptr;
    for (const Candidate& candidate : candidates())
        if (candidate.supported()) chosen = &candidate;
    return chosen;
}

std::atomic<const Candidate*>& current() {
    static std::atomic<const Candidate*> chosen{best()};
    return chosen;
}

}  // namespace

const Kernels& kernels() { return current().load(std::memory_order_acquire)->kernels; }

std::string isa() { return current().load(std::memory_order_acquire)->name; }

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Candidate& candidate : candidates())
        if (candidate.supported()) names.emplace_back(candidate.name);
    return names;
}

std::string select_isa(const std::string& name) {
    for (const Candidate& candidate : candidates())
        if (candidate.name == name && candidate.supported())
            return current().exchange(&candidate, std::memory_order_acq_rel)->name;
    throw std::invalid_argument("instruction set '" + name + "' is not available on this processor");
}

}  // namespace finback
