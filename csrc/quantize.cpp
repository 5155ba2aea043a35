// See quantize.h. Every block tries some scales; for the codes that a scale gives, the best scale (and min) is the
// solution of a least-squares problem; its rounding to f16 is part of the trial. The smallest error wins.
#include "quantize.h"

#include "thread_pool.h"
#include "work.h"

namespace finback::FINBACK_NAMESPACE {
namespace {

constexpr int kVectors = 4;  // 32 columns

struct Block {
    F32x8 x[kVectors];
};
// A trial's outcome: value = d * code + m.
struct Fit {
    F32x8 code[kVectors];
    float d = 0.0f;
    float m = 0.0f;
    float error = 0.0f;
};
struct Range {
    float low, high;  // of the codes
};

F32x8 clamp(F32x8 a, Range range) { return min(max(a, set1(range.low)), set1(range.high)); }

float through_f16(float x) { return f16_to_float(float_to_f16(x)); }

void take_codes(const Block& block, float inverse, float m, Range range, Fit& fit) {
    for (int v = 0; v < kVectors; ++v) fit.code[v] = clamp(round_even((block.x[v] - set1(m)) * set1(inverse)), range);
}

// Least squares of x = d * code (+ m) for the fit's codes, rounded to f16.
void solve(const Block& block, bool with_min, Fit& fit) {
    F32x8 qq = zero(), qx = zero(), q = zero(), x = zero();
    for (int v = 0; v < kVectors; ++v) {
        qq = fma(fit.code[v], fit.code[v], qq);
        qx = fma(fit.code[v], block.x[v], qx);
        q = q + fit.code[v];
        x = x + block.x[v];
    }
    const float sqq = sum(qq), sqx = sum(qx), sq = sum(q), sx = sum(x);
    if (!with_min) {
        fit.d = sqq > 0.0f ? through_f16(sqx / sqq) : 0.0f;
        return;
    }
    const float determinant = 32.0f * sqq - sq * sq;
    const float d = determinant > 0.0f ? (32.0f * sqx - sq * sx) / determinant : 0.0f;
    fit.d = through_f16(d);
    fit.m = through_f16((sx - fit.d * sq) / 32.0f);
}

void try_scale(const Block& block, float inverse, float m, Range range, bool with_min, Fit& best) {
    Fit fit;
    fit.m = m;
    take_codes(block, inverse, m, range, fit);
    solve(block, with_min, fit);
    take_codes(block, fit.d != 0.0f ? 1.0f / fit.d : 0.0f, fit.m, range, fit);
    F32x8 error = zero();
    for (int v = 0; v < kVectors; ++v) {
        const F32x8 difference = block.x[v] - fma(fit.code[v], set1(fit.d), set1(fit.m));
        error = fma(difference, difference, error);
    }
    fit.error = sum(error);
    if (fit.error < best.error) best = fit;
}

Fit nothing(const Block& block) {
    Fit fit;
    F32x8 squares = zero();
    for (int v = 0; v < kVectors; ++v) {
        fit.code[v] = zero();
        squares = fma(block.x[v], block.x[v], squares);
    }
    fit.error = sum(squares);
    return fit;
}

// Scales around the one that maps the largest magnitude to `top`, of both signs where the code range is lopsided.
Fit fit_symmetric(const Block& block, Range range, float top, float step, int steps, bool both_signs) {
    Fit best = nothing(block);
    F32x8 magnitude = zero();
    for (int v = 0; v < kVectors; ++v) magnitude = max(magnitude, max(block.x[v], zero() - block.x[v]));
    const float largest = max_lane(magnitude);
    if (!(largest > 1e-30f)) return best;
    for (int i = -steps; i <= steps; ++i) {
        const float inverse = (top + step * static_cast<float>(i)) / largest;
        try_scale(block, inverse, 0.0f, range, false, best);
        if (both_signs) try_scale(block, -inverse, 0.0f, range, false, best);
    }
    return best;
}

Fit fit_affine(const Block& block) {
    F32x8 high = block.x[0], low = block.x[0];
    for (int v = 1; v < kVectors; ++v) {
        high = max(high, block.x[v]);
        low = min(low, block.x[v]);
    }
    const float most = max_lane(high), least = -max_lane(zero() - low);
    Fit best = nothing(block);
    best.m = through_f16(0.5f * (most + least));
    F32x8 error = zero();
    for (int v = 0; v < kVectors; ++v) {
        const F32x8 difference = block.x[v] - set1(best.m);
        error = fma(difference, difference, error);
    }
    best.error = sum(error);
    if (!(most - least > 1e-30f)) return best;
    for (int i = -5; i <= 5; ++i) {
        const float levels = 15.0f + 0.3f * static_cast<float>(i);
        // Levels beyond 15 cut both tails by half a level each.
        const float m = least + 0.5f * (levels - 15.0f) * (most - least) / levels;
        try_scale(block, levels / (most - least), m, {0.0f, 15.0f}, true, best);
    }
    return best;
}

void put_half(uint8_t* to, float x) {
    const uint16_t h = float_to_f16(x);
    std::memcpy(to, &h, sizeof h);
}

void put_nibbles(const Fit& fit, float offset, uint8_t* to) {
    float code[32];
    for (int v = 0; v < kVectors; ++v) store(code + 8 * v, fit.code[v]);
    for (int j = 0; j < 16; ++j) {
        const int low = static_cast<int>(code[j] + offset), high = static_cast<int>(code[j + 16] + offset);
        to[j] = static_cast<uint8_t>(low | high << 4);
    }
}

float quantize_block(Format format, const float* x, uint8_t* to) {
    Block block;
    for (int v = 0; v < kVectors; ++v) block.x[v] = load(x + 8 * v);
    if (format == Format::q4_1) {
        const Fit fit = fit_affine(block);
        put_half(to, fit.d);
        put_half(to + 2, fit.m);
        put_nibbles(fit, 0.0f, to + 4);
        return fit.error;
    }
    if (format == Format::q4_0) {
        const Fit fit = fit_symmetric(block, {-8.0f, 7.0f}, 7.6f, 0.2f, 6, true);
        put_half(to, fit.d);
        put_nibbles(fit, 8.0f, to + 2);
        return fit.error;
    }
    const Fit fit = fit_symmetric(block, {-127.0f, 127.0f}, 127.0f, 0.5f, 2, false);
    put_half(to, fit.d);
    float code[32];
    for (int v = 0; v < kVectors; ++v) store(code + 8 * v, fit.code[v]);
    for (int j = 0; j < 32; ++j) to[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(code[j]));
    return fit.error;
}

struct RowError {
    double error, square;
};

RowError quantize_row_of(Format format, const float* x, size_t cols, uint8_t* blocks) {
    RowError total{0.0, 0.0};
    for (size_t b = 0; b < cols / kGroupCols; ++b) {
        total.error += static_cast<double>(quantize_block(format, x + 32 * b, blocks + info(format).block_bytes * b));
        F32x8 squares = zero();
        for (int v = 0; v < kVectors; ++v) {
            const F32x8 values = load(x + 32 * b + 8 * v);
            squares = fma(values, values, squares);
        }
        total.square += static_cast<double>(sum(squares));
    }
    return total;
}

}  // namespace

double quantize(Format format, const float* x, size_t rows, size_t cols, uint8_t* blocks) {
    Pieces pieces(piece_bytes<RowError>(rows));
    RowError* errors = pieces.take<RowError>(rows);
    parallel_for(thread_count(), rows, [&](size_t row) {
        errors[row] = quantize_row_of(format, x + row * cols, cols, blocks + row * row_bytes(format, cols));
    });
    double error = 0.0, square = 0.0;
    for (size_t row = 0; row < rows; ++row) {
        error += errors[row].error;
        square += errors[row].square;
    }
    return square > 0.0 ? error / square : 0.0;
}

}  // namespace finback::FINBACK_NAMESPACE
