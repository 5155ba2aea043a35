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

inline const uint16_t* halves_at(const uint8_t* p) { return reinterpret_cast<const uint16_t*>(p); }

// What the groups of a tile share, read once: nothing for tiles of one group. a and b are the pairs, 8 rows per group.
struct SixBitPairs {
    alignas(32) uint8_t a[64], b[64];
};
template <Format F>
struct TileScales {};
template <>
struct TileScales<Format::q4_k> {
    F32x8 d, minus_dmin;
    SixBitPairs pairs;
};
template <>
struct TileScales<Format::q5_k> : TileScales<Format::q4_k> {};
template <>
struct TileScales<Format::q3_k> {
    F32x8 d;
    SixBitPairs pairs;
};
template <>
struct TileScales<Format::q2_k> {
    F32x8 d, dmin;
};
template <>
struct TileScales<Format::q6_k> {
    F32x8 d;
};

// Groups 0 .. 3 have their upper two bits in the low nibbles behind the low bytes, groups 4 .. 7 in the high nibbles.
inline void read_pairs(const uint8_t* p, SixBitPairs& out) {
    const I8x32 first = load_bytes(p), second = load_bytes(p + 32), high = load_bytes(p + 64);
    store_bytes(out.a, shift_mask<0, 15>(first) | shift_left_mask<4, 0x30>(high));
    store_bytes(out.b, shift_mask<4, 15>(first) | shift_left_mask<2, 0x30>(high));
    store_bytes(out.a + 32, shift_mask<0, 15>(second) | shift_mask<0, 0x30>(high));
    store_bytes(out.b + 32, shift_mask<4, 15>(second) | shift_mask<2, 0x30>(high));
}

template <Format F>
inline void read_scales(const uint8_t* tile, TileScales<F>& out) {
    const uint8_t* scales = tile + info(F).block_cols / kGroupCols * plane_bytes(F);
    if constexpr (F == Format::q4_k || F == Format::q5_k) {
        read_pairs(scales, out.pairs);
        out.d = load_f16(halves_at(scales + 96));
        out.minus_dmin = zero() - load_f16(halves_at(scales + 112));
    } else if constexpr (F == Format::q3_k) {
        read_pairs(scales, out.pairs);
        out.d = load_f16(halves_at(scales + 96));
    } else if constexpr (F == Format::q2_k || F == Format::q6_k) {
        out.d = load_f16(halves_at(scales + 128));
        // Activation::minus_32 carries the factor -32 that this takes back.
        if constexpr (F == Format::q2_k) out.dmin = load_f16(halves_at(scales + 144)) * set1(1.0f / 32);
    }
}

// `scales` points behind the planes of all groups of the tile; g is the group within the tile.
template <Format F>
inline void unpack_scales(const uint8_t* scales, const TileScales<F>& shared, size_t g, Group<F>& out) {
    if constexpr (F == Format::mxfp4) {
        // Half of 2^(e - 127), the codes being doubled. e = 0 and 1 are subnormal; 2^-127 stands for both.
        const I32x8 bits = shift_left<23>(widen_bytes(scales) + set1_i32(-1));
        out.scale = as_float(max(bits, set1_i32(0x00400000)));
    } else if constexpr (F == Format::q4_k || F == Format::q5_k) {
        out.scale = shared.d * to_float(widen_bytes(shared.pairs.a + 8 * g));
        out.min = shared.minus_dmin * to_float(widen_bytes(shared.pairs.b + 8 * g));
    } else if constexpr (F == Format::q3_k) {
        out.scale = shared.d;
        out.sub[0] = pair_up(widen_bytes(shared.pairs.a + 8 * g) + set1_i32(-32));
        out.sub[1] = pair_up(widen_bytes(shared.pairs.b + 8 * g) + set1_i32(-32));
    } else if constexpr (F == Format::q2_k || F == Format::q6_k) {
        out.scale = shared.d;
        for (size_t half = 0; half < 2; ++half) {
            const uint8_t* s = scales + 8 * (2 * g + half);
            if constexpr (F == Format::q6_k) {
                out.sub[half] = pair_up(widen_signed_bytes(s));
            } else {
                out.sub[half] = pair_up(shift_mask<0, 15>(widen_bytes(s)));
                out.sub_min[half] = pair_up(shift_mask<4, 15>(widen_bytes(s)));
            }
        }
        if constexpr (F == Format::q2_k) out.min = shared.dmin;
    } else {
        out.scale = load_f16(halves_at(scales));
        if constexpr (F == Format::q4_1 || F == Format::q5_1) out.min = load_f16(halves_at(scales + 16));
    }
}

inline constexpr uint8_t kMxCodes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

template <Format F>
inline void unpack_group(const uint8_t* tile, const TileScales<F>& shared, size_t g, Group<F>& out) {
    constexpr size_t groups = info(F).block_cols / kGroupCols;
    unpack_codes<info(F).code_bits>(tile + g * plane_bytes(F), out.code);
    if constexpr (F == Format::mxfp4) {
        FINBACK_UNROLL(8)
        for (int j = 0; j < 8; ++j) out.code[j] = look_up(kMxCodes, out.code[j]);
    }
    unpack_scales<F>(tile + groups * plane_bytes(F), shared, g, out);
}

}  // namespace finback::FINBACK_NAMESPACE
