// RMSNorm and rotary position embedding: one pass over each row, rows shared out between threads when there are many.
#include "norm_rope.h"

#include "norm.h"
#include "thread_pool.h"

namespace finback::FINBACK_NAMESPACE {
namespace {

constexpr int64_t kInlineElements = 65'536;  // below this the fork costs more than it saves
constexpr int64_t kElementsPerItem = 8'192;

// body(first, last) over ranges of [0, rows); `width` is the cost of a row in elements.
template <class Body>
void for_row_ranges(int64_t rows, int64_t width, Body body) {
    const int64_t step = width >= kElementsPerItem ? 1 : kElementsPerItem / width;
    const int threads = rows * width < kInlineElements ? 1 : thread_count();
    parallel_for(threads, static_cast<size_t>((rows + step - 1) / step), [&](size_t item) {
        const auto first = static_cast<int64_t>(item) * step;
        body(first, first + step < rows ? first + step : rows);
    });
}

void rms_norm(const float* x, Norm norm, float* out, int64_t rows, int64_t width, int64_t stride) {
    for_row_ranges(rows, width, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) norm_row(x + r * stride, norm, out + r * stride, width);
    });
}

void rotate_interleaved(float* x, const float* cos, const float* sin, int64_t pairs) {
    for (int64_t i = 0; i < pairs; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cos[i] - b * sin[i];
        x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
}

void rotate_halves(float* x, const float* cos, const float* sin, int64_t pairs) {
    int64_t i = 0;
    for (; i + kLanes <= pairs; i += kLanes) {
        const F32x8 a = load(x + i), b = load(x + pairs + i), c = load(cos + i), s = load(sin + i);
        store(x + i, a * c - b * s);
        store(x + pairs + i, b * c + a * s);
    }
    for (; i < pairs; ++i) {
        const float a = x[i], b = x[pairs + i];
        x[i] = a * cos[i] - b * sin[i];
        x[pairs + i] = b * cos[i] + a * sin[i];
    }
}

void rope(const RopeCall& call) {
    const auto rotate = call.interleaved ? rotate_interleaved : rotate_halves;
    for_row_ranges(call.tokens, call.heads * call.pairs * 2, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; ++t)
            for (int64_t h = 0; h < call.heads; ++h)
                rotate(call.x + (t * call.heads + h) * call.width + call.start, call.cos + t * call.pairs,
                       call.sin + t * call.pairs, call.pairs);
    });
}

}  // namespace

NormRopeKernels norm_rope_kernels() { return {rms_norm, rope}; }

}  // namespace finback::FINBACK_NAMESPACE
