// Entry points of gemm.cpp and ffn.cpp, one set per instruction set. Callers have checked every shape and id.
#pragma once

#include "dispatch_macros.h"
#include "formats.h"
#include "norm_rope.h"
#include "streams.h"

namespace finback {

// out[w] [n, weights[w].rows] = the normalised rows of x [n, cols] times weights[w] transposed, + bias[w], + add.
struct LinearCall {
    const float* x = nullptr;
    size_t n = 0;
    Norm norm;
    const Weight* weights = nullptr;
    size_t count = 0;
    const float* const* bias = nullptr;  // one per weight, each may be null
    const float* add = nullptr;          // [n, rows]; with one weight only
    float* const* out = nullptr;
};

// out [n, H, rows]: head h of x times expert h of the weight. x is [n, H, stride], of which the first cols count, or
// [n, stride] for all heads.
struct HeadLinearCall {
    const float* x = nullptr;
    size_t n = 0;
    size_t stride = 0;
    bool shared_input = false;
    Weight weight;
    float* out = nullptr;
};

// One gated network, or one per expert: down(silu(gate x) * up x).
struct GatedWeights {
    Weight gate, up, down;
};

// out [n, hidden] = add + sum over j of weights[:, j] * expert ids[:, j] of x, in order, + shared of x, where x are the
// normalised rows.
struct FfnCall {
    const float* x = nullptr;
    size_t n = 0;
    Norm norm;
    size_t chosen = 0;             // k: experts per token; 0 without routed experts
    const int32_t* ids = nullptr;  // [n, k]
    const float* weights = nullptr;
    const GatedWeights* routed = nullptr;
    const GatedWeights* shared = nullptr;
    const float* add = nullptr;
    float* out = nullptr;
};

inline constexpr size_t kReadMultiple = 64 * kMostStreams;  // bytes

struct GemmKernels {
    void (*linear)(const LinearCall&);
    void (*head_linear)(const HeadLinearCall&);
    void (*ffn)(const FfnCall&);
    double (*quantize)(Format, const float*, size_t, size_t, uint8_t*);  // see quantize.h
    uint64_t (*read_all)(const uint8_t* data, size_t bytes);
    uint64_t (*multiply_bytes)(size_t rounds);
    size_t bytes_per_round;  // that multiply_bytes multiplies
};

#define FINBACK_DECLARE(isa)    \
    namespace isa {             \
    GemmKernels gemm_kernels(); \
    }
FINBACK_FOR_EACH_ISA(FINBACK_DECLARE)
#undef FINBACK_DECLARE

}  // namespace finback
