// Entry points of norm_rope.cpp, one set per instruction set. Arguments have been checked by the caller.
#pragma once

#include <cstdint>

#include "dispatch_macros.h"

namespace finback {

// Rotates elements start .. start + 2 * pairs - 1 of every head of every token, in place.
struct RopeCall {
    float* x;          // [tokens, heads, width]
    const float* cos;  // [tokens, pairs]
    const float* sin;  // [tokens, pairs]
    int64_t tokens, heads, width, pairs, start;
    bool interleaved;  // pairs are (2i, 2i + 1), else (i, i + pairs)
};

struct NormRopeKernels {
    // out[r] = weight * (x[r] / sqrt(mean(x[r]^2) + eps)) for each of `rows` rows of `width` elements.
    void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int64_t rows, int64_t width);
    void (*rope)(const RopeCall&);
};

#define FINBACK_DECLARE(isa)             \
    namespace isa {                      \
    NormRopeKernels norm_rope_kernels(); \
    }
FINBACK_FOR_EACH_ISA(FINBACK_DECLARE)
#undef FINBACK_DECLARE

}  // namespace finback
