// Entry points of norm_rope.cpp, one set per instruction set.
#pragma once

#include "dispatch_macros.h"

namespace finback {

struct NormRopeKernels {
    int placeholder = 0;
};

#define FINBACK_DECLARE(isa) \
    namespace isa {          \
    NormRopeKernels norm_rope_kernels(); \
    }
FINBACK_FOR_EACH_ISA(FINBACK_DECLARE)
#undef FINBACK_DECLARE

}  // namespace finback
