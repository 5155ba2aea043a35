// The input rows of a product in the forms that its weights take: normalised if asked, as floats and as int8 groups.
#pragma once

#include "activations.h"
#include "norm.h"
#include "product.h"
#include "thread_pool.h"
#include "work.h"

namespace finback::FINBACK_NAMESPACE {

// The forms that some weights take.
struct Forms {
    bool integers = false, floats = false;

    FINBACK_INLINE void add(const Weight& weight) { (is_integer(weight.format) ? integers : floats) = true; }
};

// Row i is x + i * stride, `cols` floats. What its memory holds is valid once prepare() has returned.
struct Rows {
    const float* x = nullptr;
    size_t n = 0, cols = 0, stride = 0;
    Norm norm;
    Forms forms;
    float* normed = nullptr;       // null without a norm; where no weight takes floats, one row for each thread
    Activation* groups = nullptr;  // null if no weight is of an integer format

    size_t group_count() const { return cols / kGroupCols; }
    size_t normed_rows() const {
        return norm.weight == nullptr ? 0 : forms.floats ? n : static_cast<size_t>(thread_count());
    }
    size_t bytes() const {
        return piece_bytes<float>(normed_rows() * cols) +
               (forms.integers ? piece_bytes<Activation>(n * group_count()) : 0);
    }
    void take(Pieces& pieces) {
        if (norm.weight != nullptr) normed = pieces.take<float>(normed_rows() * cols);
        if (forms.integers) groups = pieces.take<Activation>(n * group_count());
    }
    const float* values() const { return normed != nullptr ? normed : x; }
    size_t value_stride() const { return normed != nullptr ? cols : stride; }

    // The team's threads share the rows; every row is ready when the last thread is.
    void prepare(Team& team) const {
        if (normed == nullptr && groups == nullptr) return;
        for (size_t i = team.next(); i < n; i = team.next()) {
            const float* row = x + i * stride;
            if (normed != nullptr) {
                float* to = normed + (forms.floats ? i : static_cast<size_t>(team.index)) * cols;
                norm_row(row, norm, to, static_cast<int64_t>(cols));
                row = to;
            }
            if (groups != nullptr) quantize_row(row, cols, groups + i * group_count());
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
