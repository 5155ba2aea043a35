// Tiles to registers: the codes of one group of 32 columns x 8 rows as bytes, and the numbers that scale them.
#pragma once

#include "activations.h"

namespace finback::FINBACK_NAMESPACE {

// How a format's integer products become values.
enum class Kind {
    offset,         // scale * (code - offset)
    affine,         // scale * code + min
    halves,         // scale * sub[half] * (code - offset): integer scales per 16 columns
    halves_affine,  // scale * sub[half] * code - min * sub_min[half]
    byte,           // scale * signed byte
};
constexpr Kind kind(Format f) {
    switch (f) {
        case Format::q4_1:
        case Format::q5_1:
        case Format::q4_k:
        case Format::q5_k:
            return Kind::affine;
        case Format::q3_k:
        case Format::q6_k:
            return Kind::halves;
        case Format::q2_k:
            return Kind::halves_affine;
        case Format::q8_0:
            return Kind::byte;
        default:
            return Kind::offset;
    }
}

// One group of 32 columns of a row block, unpacked: quads 0..7 of 8 rows, and what scales them.
template <Kind K>
struct GroupOf {
    I8x32 code[8];
    F32x8 scale;
};
template <>
struct GroupOf<Kind::affine> {
    I8x32 code[8];
    F32x8 scale, min;
};
template <>
struct GroupOf<Kind::halves> {
    I8x32 code[8];
    F32x8 scale;
    I16x16 sub[2];  // (s, s) word pairs
};
template <>
struct GroupOf<Kind::halves_affine> {
    I8x32 code[8];
    F32x8 scale, min;
    I16x16 sub[2], sub_min[2];
};
template <Format F>
using Group = GroupOf<kind(F)>;

// Bits [Bits*T, Bits*T + Bits) of every byte, moved to [To, To + Bits).
template <int Bits, int T, int To>
inline I8x32 plane_bits(I8x32 x) {
    constexpr int from = Bits * T;
    constexpr int mask = ((1 << Bits) - 1) << To;
    if constexpr (from >= To)
        return shift_mask<from - To, mask>(x);
    else
        return shift_left_mask<To - from, mask>(x);
}

// code[v + Bits*t] gets (To == 0) or gains (To > 0) its bits of vector v.
template <int Bits, int To, int T = 0>
inline void spread_vector(I8x32 x, I8x32* code) {
    const I8x32 bits = plane_bits<Bits, T, To>(x);
    code[Bits * T] = To == 0 ? bits : code[Bits * T] | bits;
    if constexpr (Bits * (T + 1) < 8) spread_vector<Bits, To, T + 1>(x, code);
}
template <int Bits, int To>
inline const uint8_t* spread_plane(const uint8_t* plane, I8x32* code) {
    FINBACK_UNROLL(4)
    for (int v = 0; v < Bits; ++v) spread_vector<Bits, To>(load_bytes(plane + 32 * v), code + v);
    return plane + 32 * Bits;
}

template <int Bits>
inline void unpack_codes(const uint8_t* planes, I8x32* code) {
    if constexpr (Bits == 8) {
        FINBACK_UNROLL(8)
        for (int j = 0; j < 8; ++j) code[j] = load_bytes(planes + 32 * j);
    } else if constexpr (Bits >= 4) {
        planes = spread_plane<4, 0>(planes, code);
        if constexpr (Bits > 4) spread_plane<Bits - 4, 4>(planes, code);
    } else {
        planes = spread_plane<2, 0>(planes, code);
        if constexpr (Bits == 3) spread_plane<1, 2>(planes, code);
    }
}

inline I32x8 pairs_low(const uint8_t* pairs, size_t g) { return widen_bytes(pairs + 8 * g); }
inline I32x8 pairs_high(const uint8_t* pairs, size_t g) {
    return shift_right(widen_bytes(pairs + 64 + 8 * (g % 4)), g < 4 ? 0 : 4);
}
inline I32x8 pairs_a(I32x8 low, I32x8 high) { return shift_mask<0, 15>(low) | shift_left<4>(shift_mask<0, 3>(high)); }
inline I32x8 pairs_b(I32x8 low, I32x8 high) { return shift_mask<4, 15>(low) | shift_left<4>(shift_mask<2, 3>(high)); }

inline const uint16_t* halves_at(const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); }

// `scales` points behind the planes of all groups of the tile; g is the group within the tile.
template <Format F>
inline void unpack_scales(const uint8_t* scales, size_t g, Group<F>& out) {
    if constexpr (F == Format::mxfp4) {
        // Half of 2^(e - 127), the codes being doubled. e = 0 and 1 are subnormal; 2^-127 stands for both.
        const I32x8 bits = shift_left<23>(widen_bytes(scales) + set1_i32(-1));
        out.scale = as_float(max(bits, set1_i32(0x00400000)));
    } else if constexpr (F == Format::q4_k || F == Format::q5_k) {
        const I32x8 low = pairs_low(scales, g), high = pairs_high(scales, g);
        out.scale = load_f16(halves_at(scales + 96)) * to_float(pairs_a(low, high));
        out.min = zero() - load_f16(halves_at(scales + 112)) * to_float(pairs_b(low, high));
    } else if constexpr (F == Format::q3_k) {
        const I32x8 low = pairs_low(scales, g), high = pairs_high(scales, g);
        out.scale = load_f16(halves_at(scales + 96));
        out.sub[0] = pair_up(pairs_a(low, high) + set1_i32(-32));
        out.sub[1] = pair_up(pairs_b(low, high) + set1_i32(-32));
    } else if constexpr (F == Format::q2_k || F == Format::q6_k) {
        out.scale = load_f16(halves_at(scales + 128));
        for (size_t half = 0; half < 2; ++half) {
            const uint8_t* s = scales + 8 * (2 * g + half);
            if constexpr (F == Format::q6_k) {
                out.sub[half] = pair_up(widen_signed_bytes(s));
            } else {
                out.sub[half] = pair_up(shift_mask<0, 15>(widen_bytes(s)));
                out.sub_min[half] = pair_up(shift_mask<4, 15>(widen_bytes(s)));
            }
        }
        // Activation::minus_32 carries the factor -32 that this takes back.
        if constexpr (F == Format::q2_k) out.min = load_f16(halves_at(scales + 144)) * set1(1.0f / 32);
    } else {
        out.scale = load_f16(halves_at(scales));
        if constexpr (F == Format::q4_1 || F == Format::q5_1) out.min = load_f16(halves_at(scales + 16));
    }
}

inline constexpr uint8_t kMxCodes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

template <Format F>
inline void unpack_group(const uint8_t* tile, size_t g, Group<F>& out) {
    constexpr size_t groups = info(F).block_cols / kGroupCols;
    unpack_codes<info(F).code_bits>(tile + g * plane_bytes(F), out.code);
    if constexpr (F == Format::mxfp4) {
        FINBACK_UNROLL(8)
        for (int j = 0; j < 8; ++j) out.code[j] = look_up(kMxCodes, out.code[j]);
    }
    unpack_scales<F>(tile + groups * plane_bytes(F), g, out);
}

}  // namespace finback::FINBACK_NAMESPACE
