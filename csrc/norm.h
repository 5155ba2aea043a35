// RMSNorm of one row: shared by rms_norm and by the products that normalise their input on the way.
#pragma once

#include "norm_rope.h"
#include "simd.h"

namespace finback::FINBACK_NAMESPACE {

// Loads n < 8 elements, zeros behind them.
inline F32x8 load_some(const float* p, int64_t n) {
    float lanes[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
}

// Four sums of eight lanes each, joined in a fixed order; the last, partial vectors go to the first sum.
inline float sum_of_squares(const float* x, int64_t n) {
    F32x8 s[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes)
        for (int j = 0; j < 4; ++j) {
            const F32x8 v = load(x + i + j * kLanes);
            s[j] = fma(v, v, s[j]);
        }
    for (; i < n; i += kLanes) {
        const F32x8 v = n - i < kLanes ? load_some(x + i, n - i) : load(x + i);
        s[0] = fma(v, v, s[0]);
    }
    return sum((s[0] + s[1]) + (s[2] + s[3]));
}

// out may be x.
inline void norm_row(const float* x, Norm norm, float* out, int64_t n) {
    const float factor = 1.0f / __builtin_sqrtf(sum_of_squares(x, n) / static_cast<float>(n) + norm.eps);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, load(norm.weight + i) * (load(x + i) * set1(factor)));
    for (; i < n; ++i) out[i] = norm.weight[i] * (x[i] * factor);
}

}  // namespace finback::FINBACK_NAMESPACE
