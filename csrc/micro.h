// The innermost loops: N row blocks x T tokens in registers. Every shape does the same operations in the same order per
// result, so a result does not depend on the shape it was computed in.
#pragma once

#include "tiles.h"

namespace finback::FINBACK_NAMESPACE {

template <size_t N, int T>
struct Sums {
    Floats<N> at[T];
};

// sums += part * scale
template <size_t N, int T>
inline void scale_into(const Sums<N, T>& part, Floats<N> scale, Sums<N, T>& sums) {
    for (int t = 0; t < T; ++t) sums.at[t] = fma(part.at[t], scale, sums.at[t]);
}

// ---- integer formats: one group of 32 columns

// Where the running sums start: at -offset times the sum of the activations' codes, of the half whose sum is scaled by
// itself or else of the group, once.
template <Format F, size_t N>
inline Partial<N> start(const Activation& a, int half) {
    if constexpr (F == Format::q6_k) return start_at<N>(a.minus_32[half]);
    if constexpr (F == Format::q3_k) return shift_right<3>(start_at<N>(a.minus_32[half]));
    if (half == 0) {
        if constexpr (F == Format::q4_0) return start_at<N>(a.minus_8);
        if constexpr (F == Format::q5_0) return start_at<N>(a.minus_16);
        if constexpr (F == Format::q8_0) return shift_left<3>(start_at<N>(a.minus_16));
        if constexpr (F == Format::mxfp4) return start_at<N>(a.minus_12);
    }
    return start_at_zero<N>();
}

// Quads First .. First + Count - 1 of T tokens: every unpacked vector serves T tokens, every broadcast N row blocks.
template <Format F, int First, int Count, size_t N, int T>
FINBACK_INLINE void dot_quads(const Group<F, N>& w, const Activation* const (&a)[T], size_t g, Partial<N> (&sum)[T]) {
    FINBACK_UNROLL(8)
    for (int t = 0; t < T; ++t) sum[t] = start<F, N>(a[t][g], First / 4);
    FINBACK_UNROLL(8)
    for (int j = First; j < First + Count; ++j) {
        FINBACK_UNROLL(8)
        for (int t = 0; t < T; ++t) sum[t] = add_dot(sum[t], w.code[j], a[t][g].codes + 4 * j);
    }
}

// Signed bytes times signed bytes.
template <Format F, size_t N, int T>
FINBACK_INLINE void dot_bytes(const Group<F, N>& w, const Activation* const (&a)[T], size_t g, Ints<N> (&dot)[T]) {
    for (int t = 0; t < T; ++t) dot[t] = set1_i32<N>(0);
    const Words<N> ones = set1_i16<N>(1);
    FINBACK_UNROLL(8)
    for (int j = 0; j < 8; ++j) {
        const Bytes<N> code = taken(w.code[j]), magnitude = abs_bytes(code);
        FINBACK_UNROLL(8)
        for (int t = 0; t < T; ++t) {
            const Bytes<N> x = broadcast_quad<N>(a[t][g].codes + 4 * j);
            dot[t] = settled(dot[t] + dot_pairs(dot_pairs(magnitude, with_sign(x, code)), ones));
        }
    }
}

// The exact integer sums of (code - offset) * activation over the group, sub-scales included.
template <Format F, size_t N, int T>
FINBACK_INLINE void dot_group(const Group<F, N>& w, const Activation* const (&a)[T], size_t g, Ints<N> (&dot)[T]) {
    constexpr bool sub_scales = kind(F) == Kind::halves || kind(F) == Kind::halves_affine;
    // Sums over all 8 quads would leave 16 bits with 5-bit codes that have no offset: 31 x 127 x 16. In 32 bits, eight
    // additions one after the other take so long that few tokens would wait for them.
    constexpr bool in_halves = sub_scales || (kWideSums ? T <= 2 : kind(F) == Kind::affine && info(F).code_bits == 5);
    if constexpr (kind(F) == Kind::byte) {
        dot_bytes<F, N, T>(w, a, g, dot);
        return;
    } else {
        Partial<N> sum[T];
        dot_quads<F, 0, in_halves ? 4 : 8, N, T>(w, a, g, sum);
        FINBACK_UNROLL(8)
        for (int t = 0; t < T; ++t) {
            if constexpr (sub_scales)
                dot[t] = settled(total(sum[t], w.sub[0]));
            else
                dot[t] = settled(total(sum[t]));
        }
        if constexpr (in_halves) {
            dot_quads<F, 4, 4, N, T>(w, a, g, sum);
            FINBACK_UNROLL(8)
            for (int t = 0; t < T; ++t) {
                if constexpr (sub_scales)
                    dot[t] = dot[t] + total(sum[t], w.sub[1]);
                else
                    dot[t] = dot[t] + total(sum[t]);
            }
        }
    }
}

template <Format F, size_t N, int T>
FINBACK_INLINE void add_group(const Group<F, N>& w, const Activation* const (&a)[T], size_t g, Sums<N, T>& sums) {
    Ints<N> dot[T];
    dot_group<F, N, T>(w, a, g, dot);
    FINBACK_UNROLL(8)
    for (int t = 0; t < T; ++t) {
        const Activation& x = a[t][g];
        const Floats<N> scale = set1<N>(x.scale);
        Floats<N> sum = fma(to_float(dot[t]), w.scale * scale, sums.at[t]);
        if constexpr (kind(F) == Kind::affine) sum = fma(w.min, set1<N>(x.scaled_sum), sum);
        if constexpr (kind(F) == Kind::halves_affine) {
            const Ints<N> mins =
                total(start_at<N>(x.minus_32[0]), w.sub_min[0]) + total(start_at<N>(x.minus_32[1]), w.sub_min[1]);
            sum = fma(to_float(mins), w.min * scale, sum);
        }
        sums.at[t] = taken(sum);
    }
}

// ---- float formats: some columns whose weights lie unpacked

// w[k] is column k of R pairs of row blocks.
template <size_t R, int T>
FINBACK_INLINE void add_columns(const F32x16 (*w)[R], const float* const (&x)[T], size_t count, Sums<2, T> (&sums)[R]) {
    for (size_t k = 0; k < count; ++k) {
        FINBACK_UNROLL(8)
        for (int t = 0; t < T; ++t) {
            const F32x16 value = set1<2>(x[t][k]);
            for (size_t r = 0; r < R; ++r) sums[r].at[t] = taken(fma(w[k][r], value, sums[r].at[t]));
        }
    }
}

}  // namespace finback::FINBACK_NAMESPACE
