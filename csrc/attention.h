// Entry points of attention.cpp, one set per instruction set.
#pragma once

#include "dispatch_macros.h"

namespace finback {

struct AttentionKernels {
    int placeholder = 0;
};

#define FINBACK_DECLARE(isa) \
    namespace isa {          \
    AttentionKernels attention_kernels(); \
    }
FINBACK_FOR_EACH_ISA(FINBACK_DECLARE)
#undef FINBACK_DECLARE

}  // namespace finback
