// Entry points of sample.cpp, one set per instruction set. Arguments have been checked by the caller.
#pragma once

#include <cstdint>

#include "dispatch_macros.h"

namespace finback {

struct SampleCall {
    const float* logits;  // [vocab]
    int64_t vocab;
    float temperature;  // > 0
    int64_t top_k;      // 0: no limit
    float top_p, min_p;
    double uniform;  // in [0, 1)
};

enum class Scoring { softmax, sigmoid };
enum class GroupRule { none, max, top2 };

struct RouteCall {
    const float* logits;  // [tokens, experts]
    const float* bias;    // [experts], or null
    int32_t* ids;         // [tokens, top_k]
    float* weights;       // [tokens, top_k]
    int64_t tokens, experts, top_k, groups, top_groups;
    Scoring scoring;
    GroupRule group_rule;
    bool normalize;
    float scale;
};

struct SampleKernels {
    // Index of the largest logit, the smallest such index; -1 if one is NaN or +infinity or none is finite.
    int64_t (*argmax)(const float* logits, int64_t vocab);
    // The chosen index; -1 as above.
    int64_t (*sample)(const SampleCall&);
    // log(sum(exp(logits))) with the largest logit taken out: two numbers, because their sum would lose digits.
    // False as above.
    bool (*log_sum_exp)(const float* logits, int64_t vocab, float* largest, double* log_sum);
    // Indices of the k largest logits (k <= vocab), largest first, smaller index first among equals.
    void (*top_indices)(const float* logits, int64_t vocab, int64_t k, int32_t* ids);
    void (*route)(const RouteCall&);
};

#define FINBACK_DECLARE(isa)        \
    namespace isa {                 \
    SampleKernels sample_kernels(); \
    }
FINBACK_FOR_EACH_ISA(FINBACK_DECLARE)
#undef FINBACK_DECLARE

}  // namespace finback
