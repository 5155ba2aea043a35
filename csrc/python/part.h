// Parts of a decoder layer as Python holds them: bound to their weights and their cache and checked when they are made,
// so that a step of many layers is one call that looks at nothing but the step's own arrays.
#pragma once

#include <functional>

#include "array_args.h"
#include "work.h"

namespace finback {

// What all layers of a step share: [n] rows of tokens, where their sequences lie in the cache, and which rows [first,
// end) are prompts.
struct StepArrays {
    const InputArray &slots, &cos, &sin, &block_tables, &seq_ids, &positions, &prompts;
};

// What a part does in a step.
struct PartWork {
    size_t bytes;  // of working memory, which run is given
    std::function<void(Pieces)> run;
};

class Part {
public:
    virtual ~Part() = default;
    virtual int64_t width() const = 0;  // of a row
    // Refuses what does not fit; else the work, which adds what the part does to x [n, width] in place.
    virtual PartWork prepare(const StepArrays& step, int64_t n, float* x) const = 0;
};

}  // namespace finback
