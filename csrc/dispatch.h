// Picks one set of kernels for this processor, once, and hands it to the bindings.
#pragma once

#include <string>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "norm_rope.h"
#include "sample.h"

namespace finback {

struct Kernels {
    GemmKernels gemm;
    AttentionKernels attention;
    NormRopeKernels norm_rope;
    SampleKernels sample;
};

// The chosen set: the highest that cpuid and the operating system allow, or what select_isa() asked for.
const Kernels& kernels();
std::string isa();
std::vector<std::string> available_isas();
// Returns the name that was in force; throws std::invalid_argument for one that this machine cannot run.
std::string select_isa(const std::string& name);

}  // namespace finback
