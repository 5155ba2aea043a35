// See product.h. One register tile per format: 8 rows x up to 4 tokens, the unpacked weights reused over the tokens.
#include "product.h"

#include "tiles.h"

namespace finback::FINBACK_NAMESPACE {
namespace {

constexpr int kTokens = 4;

// ---- integer formats: one group of 8 rows and one token

template <Format F>
inline I16x16 start(const Activation& a, int half) {
    if constexpr (F == Format::q4_0) return broadcast_pair(a.minus_8);
    if constexpr (F == Format::q5_0) return broadcast_pair(a.minus_16);
    if constexpr (F == Format::mxfp4) return broadcast_pair(a.minus_12);
    if constexpr (F == Format::q6_k) return broadcast_pair(a.minus_32[half]);
    if constexpr (F == Format::q3_k) return shift_right<3>(broadcast_pair(a.minus_32[half]));
    return set1_i16(0);
}

template <int First, int Count>
inline I16x16 add_quads(I16x16 sum, const I8x32* code, const int8_t* codes) {
#pragma GCC unroll 8
    for (int j = First; j < First + Count; ++j) sum = sum + dot_pairs(code[j], broadcast_quad(codes + 4 * j));
    return sum;
}

// The exact integer sum of (code - offset) * activation over the group, sub-scales included.
template <Format F>
inline I32x8 integer_dot(const Group& w, const Activation& a) {
    const I16x16 ones = set1_i16(1);
    if constexpr (kind(F) == Kind::byte) {
        I32x8 sum = zero_i32();
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            const I8x32 x = with_sign(broadcast_quad(a.codes + 4 * j), w.code[j]);
            sum = sum + dot_pairs(dot_pairs(abs_bytes(w.code[j]), x), ones);
        }
        return sum;
    } else if constexpr (kind(F) == Kind::halves) {
        return dot_pairs(add_quads<0, 4>(start<F>(a, 0), w.code, a.codes), w.sub[0]) +
               dot_pairs(add_quads<4, 4>(start<F>(a, 1), w.code, a.codes), w.sub[1]);
    } else if constexpr (kind(F) == Kind::affine && info(F).code_bits == 5) {
        // 31 x 127 x 8 fits in 16 bits, twice that does not.
        return dot_pairs(add_quads<0, 4>(start<F>(a, 0), w.code, a.codes), ones) +
               dot_pairs(add_quads<4, 4>(start<F>(a, 0), w.code, a.codes), ones);
    } else {
        return dot_pairs(add_quads<0, 8>(start<F>(a, 0), w.code, a.codes), ones);
    }
}

template <Format F>
inline F32x8 add_group(const Group& w, const Activation& a, F32x8 sum) {
    const F32x8 scale = set1(a.scale);
    sum = fma(to_float(integer_dot<F>(w, a)), w.scale * scale, sum);
    if constexpr (kind(F) == Kind::affine) sum = fma(w.min, set1(a.scaled_sum), sum);
    if constexpr (F == Format::q2_k) {
        const I32x8 mins = dot_pairs(broadcast_pair(a.minus_32[0]), w.sub_min[0]) +
                           dot_pairs(broadcast_pair(a.minus_32[1]), w.sub_min[1]);
        sum = fma(to_float(mins), w.min * scale, sum);
    }
    return sum;
}

template <Format F, int T>
void integer_block(const uint8_t* tiles, size_t cols, const Activation* const* a, F32x8* sums) {
    constexpr size_t groups = info(F).block_cols / kGroupCols;
    F32x8 sum[T];
    for (int t = 0; t < T; ++t) sum[t] = zero();
    for (size_t tile = 0; tile < cols / info(F).block_cols; ++tile)
        for (size_t g = 0; g < groups; ++g) {
            Group w;
            unpack_group<F>(tiles + tile * tile_bytes(F), g, w);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) sum[t] = add_group<F>(w, a[t][tile * groups + g], sum[t]);
        }
    for (int t = 0; t < T; ++t) sums[t] = sum[t];
}

// ---- float formats

template <Format F>
inline F32x8 load_column(const uint8_t* tiles, size_t k) {
    if constexpr (F == Format::f32) return load(reinterpret_cast<const float*>(tiles) + 8 * k);
    if constexpr (F == Format::f16) return load_f16(reinterpret_cast<const uint16_t*>(tiles) + 8 * k);
    return load_bf16(reinterpret_cast<const uint16_t*>(tiles) + 8 * k);
}

template <Format F, int T>
void float_block(const uint8_t* tiles, size_t cols, const float* const* x, F32x8* sums) {
    F32x8 sum[T];
    for (int t = 0; t < T; ++t) sum[t] = zero();
    for (size_t k = 0; k < cols; ++k) {
        const F32x8 w = load_column<F>(tiles, k);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) sum[t] = fma(w, set1(x[t][k]), sum[t]);
    }
    for (int t = 0; t < T; ++t) sums[t] = sum[t];
}

template <int I, int T>
inline void add_fp8_column(I8x32 quad, size_t k, const float* const* x, F32x8* part) {
    const F32x8 w = fp8_to_float<I>(quad);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) part[t] = fma(w, set1(x[t][k + I]), part[t]);
}

// Columns [first, first + width) share a scale per row: summed apart, then scaled.
template <int T>
inline const uint8_t* fp8_tile(const uint8_t* tile, size_t first, size_t width, const float* const* x, F32x8* sum) {
    F32x8 part[T];
    for (int t = 0; t < T; ++t) part[t] = zero();
    size_t k = first;
    for (; k + 4 <= first + width; k += 4, tile += 32) {
        const I8x32 quad = load_bytes(tile);
        add_fp8_column<0, T>(quad, k, x, part);
        add_fp8_column<1, T>(quad, k, x, part);
        add_fp8_column<2, T>(quad, k, x, part);
        add_fp8_column<3, T>(quad, k, x, part);
    }
    if (k < first + width) {
        const I8x32 quad = load_bytes(tile);
        const size_t left = first + width - k;
        add_fp8_column<0, T>(quad, k, x, part);
        if (left > 1) add_fp8_column<1, T>(quad, k, x, part);
        if (left > 2) add_fp8_column<2, T>(quad, k, x, part);
        tile += 32;
    }
    const F32x8 scale = load(reinterpret_cast<const float*>(tile));
    for (int t = 0; t < T; ++t) sum[t] = fma(part[t], scale, sum[t]);
    return tile + 32;
}

template <int T>
void fp8_block(const uint8_t* tiles, size_t cols, const float* const* x, F32x8* sums) {
    F32x8 sum[T];
    for (int t = 0; t < T; ++t) sum[t] = zero();
    for (size_t first = 0; first < cols; first += kFp8ScaleCols) {
        const size_t width = cols - first < kFp8ScaleCols ? cols - first : kFp8ScaleCols;
        tiles = fp8_tile<T>(tiles, first, width, x, sum);
    }
    for (int t = 0; t < T; ++t) sums[t] = sum[t];
}

// ---- one row block, up to 4 tokens: the table {format -> kernel}

struct Tokens {
    const Activation* groups[kTokens];
    const float* values[kTokens];
};

template <Format F, int T>
void block_of(const uint8_t* tiles, size_t cols, const Tokens& tokens, F32x8* sums) {
    if constexpr (is_integer(F))
        integer_block<F, T>(tiles, cols, tokens.groups, sums);
    else if constexpr (F == Format::f8_e4m3)
        fp8_block<T>(tiles, cols, tokens.values, sums);
    else
        float_block<F, T>(tiles, cols, tokens.values, sums);
}

using BlockKernel = void (*)(const uint8_t*, size_t, const Tokens&, F32x8*);

#define FINBACK_ROW(f) \
    {block_of<Format::f, 1>, block_of<Format::f, 2>, block_of<Format::f, 3>, block_of<Format::f, 4>}
constexpr BlockKernel kBlockKernels[kFormats][kTokens] = {
    FINBACK_ROW(f32),  FINBACK_ROW(f16),  FINBACK_ROW(bf16), FINBACK_ROW(f8_e4m3), FINBACK_ROW(q4_0),
    FINBACK_ROW(q4_1), FINBACK_ROW(q5_0), FINBACK_ROW(q5_1), FINBACK_ROW(q8_0),    FINBACK_ROW(q2_k),
    FINBACK_ROW(q3_k), FINBACK_ROW(q4_k), FINBACK_ROW(q5_k), FINBACK_ROW(q6_k),    FINBACK_ROW(mxfp4),
};
#undef FINBACK_ROW

void store_rows(F32x8 sum, size_t token, size_t row, size_t count, const Output& to) {
    float values[kBlockRows];
    store(values, sum);
    float* out = to.out + token * to.stride + row;
    for (size_t r = 0; r < count; ++r) {
        float value = values[r];
        if (to.bias != nullptr) value += to.bias[row + r];
        if (to.add != nullptr) value += to.add[token * to.add_stride + row + r];
        out[r] = value;
    }
}

}  // namespace

void product(const Weight& weight, size_t expert, size_t first, size_t end, const Input& in, const Output& to) {
    Tokens tokens;
    F32x8 sums[kTokens];
    for (size_t block = first; block < end; ++block) {
        const size_t row = (block - first) * kBlockRows;
        const size_t left = weight.rows - block * kBlockRows;
        const uint8_t* tiles = weight.row_block(expert, block);
        for (size_t token = 0; token < in.n; token += kTokens) {
            const size_t count = in.n - token < kTokens ? in.n - token : kTokens;
            for (size_t t = 0; t < count; ++t) {
                const size_t i = in.index != nullptr ? static_cast<size_t>(in.index[token + t]) : token + t;
                if (is_integer(weight.format))
                    tokens.groups[t] = in.groups + i * in.group_stride;
                else
                    tokens.values[t] = in.values + i * in.value_stride;
            }
            kBlockKernels[static_cast<int>(weight.format)][count - 1](tiles, weight.cols, tokens, sums);
            for (size_t t = 0; t < count; ++t)
                store_rows(sums[t], token + t, row, left < kBlockRows ? left : kBlockRows, to);
        }
    }
}

}  // namespace finback::FINBACK_NAMESPACE
