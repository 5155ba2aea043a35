// The innermost loops: R row blocks x T tokens in registers. Every shape does the same operations in the same order per
// result, so a result does not depend on the shape it was computed in.
#pragma once

#include "tiles.h"

namespace finback::FINBACK_NAMESPACE {

template <int R, int T>
struct Sums {
    F32x8 at[R][T];
};

// ---- integer formats: one group of 32 columns

// Where the running sums start: at -offset times the sum of the activations' codes.
template <Format F>
inline Partial start(const Activation& a, int half) {
    if constexpr (F == Format::q4_0) return start_at(broadcast_pair(a.minus_8));
    if constexpr (F == Format::q5_0) return start_at(broadcast_pair(a.minus_16));
    if constexpr (F == Format::mxfp4) return start_at(broadcast_pair(a.minus_12));
    if constexpr (F == Format::q6_k) return start_at(broadcast_pair(a.minus_32[half]));
    if constexpr (F == Format::q3_k) return start_at(shift_right<3>(broadcast_pair(a.minus_32[half])));
    return start_at(set1_i16(0));
}

// Quads First .. First + Count - 1 of R row blocks and T tokens: every unpacked vector serves T tokens, every broadcast
// R row blocks.
template <Format F, int First, int Count, int R, int T>
inline void dot_quads(const Group<F>* const (&w)[R], const Activation* const (&a)[T], size_t g, Partial (&sum)[R][T]) {
    FINBACK_UNROLL(8)
    for (int t = 0; t < T; ++t) {
        const Partial begin = start<F>(a[t][g], First / 4);
        FINBACK_UNROLL(2)
        for (int r = 0; r < R; ++r) sum[r][t] = begin;
    }
    FINBACK_UNROLL(8)
    for (int j = First; j < First + Count; ++j) {
        I8x32 code[R];
        FINBACK_UNROLL(2)
        for (int r = 0; r < R; ++r) code[r] = w[r][g].code[j];
        FINBACK_UNROLL(8)
        for (int t = 0; t < T; ++t) {
            const I8x32 x = broadcast_quad(a[t][g].codes + 4 * j);
            FINBACK_UNROLL(2)
            for (int r = 0; r < R; ++r) sum[r][t] = add_dot(sum[r][t], code[r], x);
        }
    }
}

template <int R, int T>
struct Dots {
    I32x8 at[R][T];
};

// Signed bytes times signed bytes.
template <Format F, int R, int T>
inline void dot_bytes(const Group<F>* const (&w)[R], const Activation* const (&a)[T], size_t g, Dots<R, T>& dot) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    // Codes + 128 are unsigned; the sum of the activations' codes, times -128, takes the offset back.
    for (int t = 0; t < T; ++t) {
        const I32x8 sums = start_at(broadcast_pair(a[t][g].minus_16));
        for (int r = 0; r < R; ++r) dot.at[r][t] = shift_left<3>(sums);
    }
    FINBACK_UNROLL(8)
    for (int j = 0; j < 8; ++j)
        for (int t = 0; t < T; ++t)
            for (int r = 0; r < R; ++r)
                dot.at[r][t] =
                    add_dot(dot.at[r][t], flip_sign_bits(w[r][g].code[j]), broadcast_quad(a[t][g].codes + 4 * j));
#else
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) dot.at[r][t] = zero_i32();
    const I16x16 ones = set1_i16(1);
    FINBACK_UNROLL(8)
    for (int j = 0; j < 8; ++j) {
        I8x32 magnitude[R];
        FINBACK_UNROLL(2)
        for (int r = 0; r < R; ++r) magnitude[r] = abs_bytes(w[r][g].code[j]);
        FINBACK_UNROLL(8)
        for (int t = 0; t < T; ++t) {
            const I8x32 x = broadcast_quad(a[t][g].codes + 4 * j);
            FINBACK_UNROLL(2)
            for (int r = 0; r < R; ++r) {
                const I16x16 pairs = dot_pairs(magnitude[r], with_sign(x, w[r][g].code[j]));
                dot.at[r][t] = settled(dot.at[r][t] + dot_pairs(pairs, ones));
            }
        }
    }
#endif
}

// The exact integer sums of (code - offset) * activation over the group, sub-scales included.
template <Format F, int R, int T>
inline void dot_group(const Group<F>* const (&w)[R], const Activation* const (&a)[T], size_t g, Dots<R, T>& dot) {
    if constexpr (kind(F) == Kind::byte) {
        dot_bytes<F, R, T>(w, a, g, dot);
        return;
    } else {
        // Sums over all 8 quads would leave 16 bits with 5-bit codes that have no offset: 31 x 127 x 16.
        constexpr bool in_halves = kind(F) == Kind::halves || kind(F) == Kind::halves_affine ||
                                   (kind(F) == Kind::affine && info(F).code_bits == 5);
        Partial sum[R][T];
        dot_quads<F, 0, in_halves ? 4 : 8, R, T>(w, a, g, sum);
        FINBACK_UNROLL(8)
        for (int t = 0; t < T; ++t) FINBACK_UNROLL(2)
        for (int r = 0; r < R; ++r) {
            if constexpr (kind(F) == Kind::halves || kind(F) == Kind::halves_affine)
                dot.at[r][t] = settled(total(sum[r][t], w[r][g].sub[0]));
            else
                dot.at[r][t] = settled(total(sum[r][t]));
        }
        if constexpr (in_halves) {
            dot_quads<F, 4, 4, R, T>(w, a, g, sum);
            FINBACK_UNROLL(8)
            for (int t = 0; t < T; ++t) FINBACK_UNROLL(2)
            for (int r = 0; r < R; ++r) {
                if constexpr (kind(F) == Kind::affine)
                    dot.at[r][t] = dot.at[r][t] + total(sum[r][t]);
                else
                    dot.at[r][t] = dot.at[r][t] + total(sum[r][t], w[r][g].sub[1]);
            }
        }
    }
}

template <Format F, int R, int T>
inline void add_group(const Group<F>* const (&w)[R], const Activation* const (&a)[T], size_t g, Sums<R, T>& sums) {
    Dots<R, T> dot;
    dot_group<F, R, T>(w, a, g, dot);
    FINBACK_UNROLL(8)
    for (int t = 0; t < T; ++t) {
        const F32x8 scale = set1(a[t][g].scale);
        FINBACK_UNROLL(2)
        for (int r = 0; r < R; ++r) {
            const Group<F>& group = w[r][g];
            F32x8 sum = fma(to_float(dot.at[r][t]), group.scale * scale, sums.at[r][t]);
            if constexpr (kind(F) == Kind::affine) sum = fma(group.min, set1(a[t][g].scaled_sum), sum);
            if constexpr (kind(F) == Kind::halves_affine) {
                const I32x8 mins = dot_pairs(broadcast_pair(a[t][g].minus_32[0]), group.sub_min[0]) +
                                   dot_pairs(broadcast_pair(a[t][g].minus_32[1]), group.sub_min[1]);
                sum = fma(to_float(mins), group.min * scale, sum);
            }
            sums.at[r][t] = sum;
        }
    }
}

// sums += part * scale_of(row block)
template <int R, int T, class Scale>
inline void scale_into(const Sums<R, T>& part, Scale scale_of, Sums<R, T>& sums) {
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) sums.at[r][t] = fma(part.at[r][t], scale_of(r), sums.at[r][t]);
}

// ---- float formats: some columns whose weights lie unpacked, 8 rows per column

template <int R, int T>
inline void add_columns(const F32x8* const (&w)[R], const float* const (&x)[T], size_t count, Sums<R, T>& sums) {
    Sums<R, T> sum = sums;
    for (size_t k = 0; k < count; ++k) {
        F32x8 column[R];
        FINBACK_UNROLL(4)
        for (int r = 0; r < R; ++r) column[r] = w[r][k];
        FINBACK_UNROLL(8)
        for (int t = 0; t < T; ++t) {
            const F32x8 value = set1(x[t][k]);
            FINBACK_UNROLL(4)
            for (int r = 0; r < R; ++r) sum.at[r][t] = fma(column[r], value, sum.at[r][t]);
        }
    }
    sums = sum;
}

}  // namespace finback::FINBACK_NAMESPACE
