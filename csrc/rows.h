// The input rows of a product in the forms that its weights take: normalised if asked, as floats and as int8 groups.
#pragma once

#include "activations.h"
#include "norm.h"
#include "product.h"
#include "thread_pool.h"
#include "work.h"

namespace finback::FINBACK_NAMESPACE {

// Row i is x + i * stride, `cols` floats. What its memory holds is valid once prepare() has returned.
struct Rows {
    const float* x = nullptr;
    size_t n = 0, cols = 0, stride = 0;
    Norm norm;
    float* normed = nullptr;       // null without a norm
    Activation* groups = nullptr;  // null if no weight is of an integer format

    size_t group_count() const { return cols / kGroupCols; }
    size_t bytes(bool integers) const {
        return (norm.weight != nullptr ? piece_bytes<float>(n * cols) : 0) +
               (integers ? piece_bytes<Activation>(n * group_count()) : 0);
    }
    void take(Pieces& pieces, bool integers) {
        if (norm.weight != nullptr) normed = pieces.take<float>(n * cols);
        if (integers) groups = pieces.take<Activation>(n * group_count());
    }
    const float* values() const { return normed != nullptr ? normed : x; }
    size_t value_stride() const { return normed != nullptr ? cols : stride; }

    // The team's threads share the rows; every row is ready when the last thread is.
    void prepare(Team& team) const {
        if (normed == nullptr && groups == nullptr) return;
        for (size_t i = team.next(); i < n; i = team.next()) {
            if (normed != nullptr) norm_row(x + i * stride, norm, normed + i * cols, static_cast<int64_t>(cols));
            if (groups != nullptr) quantize_row(values() + i * value_stride(), cols, groups + i * group_count());
        }
        team.barrier();
    }
    // Rows first, first + every, ...: `count` of them.
    Input input(size_t first, size_t every, size_t count) const {
        Input in;
        in.n = count;
        in.group_stride = every * group_count();
        in.value_stride = every * value_stride();
        if (groups != nullptr) in.groups = groups + first * group_count();
        in.values = values() + first * value_stride();
        return in;
    }
};

}  // namespace finback::FINBACK_NAMESPACE
