// Entry points of norm_rope.cpp, one set per instruction set. Arguments have been checked by the caller.
#pragma once

#include <cstdint>

#include "dispatch_macros.h"

namespace finback {

// RMSNorm (Zhang and Sennrich, 2019) of a row: weight * (x / sqrt(mean(x^2) + eps)). Without a weight: no norm.
struct Norm {
    const float* weight = nullptr;
    float eps = 0.0f;
};

// Rotates elements start .. start + 2 * pairs - 1 of every head of every token, in place.
struct RopeCall {
    float* x;          // [tokens, heads, width]
    const float* cos;  // [tokens, pairs]
    const float* sin;  // [tokens, pairs]
    int64_t tokens, heads, width, pairs, start;
    bool interleaved;  // pairs are (2i, 2i + 1), else (i, i + pairs)
};

struct NormRopeKernels {
    // The norm of each of `rows` rows of `width` elements, `stride` apart in x and in out, which may be the same.
    void (*rms_norm)(const float* x, Norm norm, float* out, int64_t rows, int64_t width, int64_t stride);
    void (*rope)(const RopeCall&);
};

#define FINBACK_DECLARE(isa)             \
    namespace isa {                      \
    NormRopeKernels norm_rope_kernels(); \
    }
FINBACK_FOR_EACH_ISA(FINBACK_DECLARE)
#undef FINBACK_DECLARE

}  // namespace finback
