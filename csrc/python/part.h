// Parts of a decoder layer as Python holds them: bound to their weights and their cache and checked when they are made,
// so that a step of many layers is one call that looks at nothing but the step's own arrays.
#pragma once

#include <functional>

#include "array_args.h"

namespace finback {

// What all layers of a step share: [n] rows of tokens, and where their sequences lie in the cache.
struct StepArrays {
    const InputArray &slots, &cos, &sin, &block_tables, &seq_ids, &positions;
};

class Part {
public:
    virtual ~Part() = default;
    virtual int64_t width() const = 0;           // of a row
    virtual int64_t floats_per_row() const = 0;  // of working memory
    // Refuses what does not fit; else the work, which adds what the part does to x [n, width] in place.
    virtual std::function<void()> prepare(const StepArrays& step, int64_t n, float* x, float* memory) const = 0;
};

}  // namespace finback
