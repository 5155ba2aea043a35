// Entry points of sample.cpp, one set per instruction set.
#pragma once

#include "dispatch_macros.h"

namespace finback {

struct SampleKernels {
    int placeholder = 0;
};

#define FINBACK_DECLARE(isa) \
    namespace isa {          \
    SampleKernels sample_kernels(); \
    }
FINBACK_FOR_EACH_ISA(FINBACK_DECLARE)
#undef FINBACK_DECLARE

}  // namespace finback
