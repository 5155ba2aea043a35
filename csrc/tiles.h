// Tiles to registers: the codes of one group of 32 columns x N row blocks as bytes, and the numbers that scale them.
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
            return kWideSums ? Kind::offset : Kind::byte;  // codes + 128
        default:
            return Kind::offset;
    }
}

// One group of 32 columns of N row blocks, unpacked: quads 0..7 of their rows, and what scales them.
template <Kind K, size_t N>
struct GroupOf {
    Bytes<N> code[8];
    Floats<N> scale;
};
template <size_t N>
struct GroupOf<Kind::affine, N> {
    Bytes<N> code[8];
    Floats<N> scale, min;
};
template <size_t N>
struct GroupOf<Kind::halves, N> {
    Bytes<N> code[8];
    Floats<N> scale;
    Factors<N> sub[2];
};
template <size_t N>
struct GroupOf<Kind::halves_affine, N> {
    Bytes<N> code[8];
    Floats<N> scale, min;
    Factors<N> sub[2], sub_min[2];
};
template <Format F, size_t N>
using Group = GroupOf<kind(F), N>;

inline constexpr uint8_t kMxCodes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// Bits [Bits*T, Bits*T + Bits) of every byte, moved to [To, To + Bits).
template <int Bits, int T, int To, class V>
inline V plane_bits(V x) {
    constexpr int from = Bits * T;
    constexpr int mask = ((1 << Bits) - 1) << To;
    if constexpr (from >= To)
        return shift_mask<from - To, mask>(x);
    else
        return shift_left_mask<To - from, mask>(x);
}

// code[v + Bits*t] gets (To == 0) or gains (To > 0) its bits of vector v.
template <int Bits, int To, int T = 0, class V>
inline void spread_vector(V x, V* code) {
    const V bits = plane_bits<Bits, T, To>(x);
    if constexpr (To == 0)
        code[Bits * T] = taken(bits);
    else
        code[Bits * T] = taken(code[Bits * T] | bits);
    if constexpr (Bits * (T + 1) < 8) spread_vector<Bits, To, T + 1>(x, code);
}
template <int Bits, int To, size_t N>
FINBACK_INLINE Places<N> spread_plane(Places<N> plane, Bytes<N>* code) {
    FINBACK_UNROLL(4)
    for (int v = 0; v < Bits; ++v) spread_vector<Bits, To>(load_bytes(plane + 32 * v), code + v);
    return plane + 32 * Bits;
}

template <Format F, size_t N>
FINBACK_INLINE void unpack_codes(Places<N> planes, Bytes<N>* code) {
    constexpr int bits = info(F).code_bits;
    if constexpr (bits == 8) {
        FINBACK_UNROLL(8)
        for (int j = 0; j < 8; ++j) code[j] = load_bytes(planes + 32 * j);
    } else if constexpr (bits >= 4) {
        planes = spread_plane<4, 0>(planes, code);
        if constexpr (bits > 4) spread_plane<bits - 4, 4>(planes, code);
    } else {
        planes = spread_plane<2, 0>(planes, code);
        if constexpr (bits == 3) spread_plane<1, 2>(planes, code);
    }
    if constexpr (F == Format::q8_0 && kind(F) == Kind::offset)
        for (int j = 0; j < 8; ++j) code[j] = flip_sign_bits(code[j]);
    if constexpr (F == Format::mxfp4)
        for (int j = 0; j < 8; ++j) code[j] = look_up(kMxCodes, code[j]);
}

// What the groups of a tile share, read once: nothing for tiles of one group. a and b are the pairs, 8 rows per group.
template <size_t N>
struct SixBitPairs {
    alignas(32) uint8_t a[N][64], b[N][64];

    Places<N> firsts(size_t g) const { return places(a, g); }
    Places<N> seconds(size_t g) const { return places(b, g); }

private:
    static Places<N> places(const uint8_t (&bytes)[N][64], size_t g) {
        Places<N> p;
        for (size_t r = 0; r < N; ++r) p.at[r] = bytes[r] + 8 * g;
        return p;
    }
};
template <Format F, size_t N>
struct TileScales {};
template <size_t N>
struct TileScales<Format::q4_k, N> {
    Floats<N> d, minus_dmin;
    SixBitPairs<N> pairs;
};
template <size_t N>
struct TileScales<Format::q5_k, N> : TileScales<Format::q4_k, N> {};
template <size_t N>
struct TileScales<Format::q3_k, N> {
    Floats<N> d;
    SixBitPairs<N> pairs;
};
template <size_t N>
struct TileScales<Format::q2_k, N> {
    Floats<N> d, dmin;
};
template <size_t N>
struct TileScales<Format::q6_k, N> {
    Floats<N> d;
};

// Groups 0 .. 3 have their upper two bits in the low nibbles behind the low bytes, groups 4 .. 7 in the high nibbles.
inline void read_pairs(const uint8_t* p, uint8_t* a, uint8_t* b) {
    const I8x32 first = load_bytes(p), second = load_bytes(p + 32), high = load_bytes(p + 64);
    store_bytes(a, shift_mask<0, 15>(first) | shift_left_mask<4, 0x30>(high));
    store_bytes(b, shift_mask<4, 15>(first) | shift_left_mask<2, 0x30>(high));
    store_bytes(a + 32, shift_mask<0, 15>(second) | shift_mask<0, 0x30>(high));
    store_bytes(b + 32, shift_mask<4, 15>(second) | shift_mask<2, 0x30>(high));
}
template <size_t N>
inline void read_pairs(Places<N> p, SixBitPairs<N>& out) {
    for (size_t r = 0; r < N; ++r) read_pairs(p.at[r], out.a[r], out.b[r]);
}

template <Format F, size_t N>
FINBACK_INLINE void read_scales(Places<N> tile, TileScales<F, N>& out) {
    const Places<N> scales = tile + info(F).block_cols / kGroupCols * plane_bytes(F);
    if constexpr (F == Format::q4_k || F == Format::q5_k) {
        read_pairs(scales, out.pairs);
        out.d = load_f16(scales + 96);
        out.minus_dmin = zero<N>() - load_f16(scales + 112);
    } else if constexpr (F == Format::q3_k) {
        read_pairs(scales, out.pairs);
        out.d = load_f16(scales + 96);
    } else if constexpr (F == Format::q2_k || F == Format::q6_k) {
        out.d = load_f16(scales + 128);
        // Activation::minus_32 carries the factor -32 that this takes back.
        if constexpr (F == Format::q2_k) out.dmin = load_f16(scales + 144) * set1<N>(1.0f / 32);
    }
}

// `scales` is behind the planes of all groups of the tile; g is the group within the tile.
template <Format F, size_t N>
FINBACK_INLINE void unpack_scales(Places<N> scales, const TileScales<F, N>& shared, size_t g, Group<F, N>& out) {
    if constexpr (F == Format::mxfp4) {
        // Half of 2^(e - 127), the codes being doubled. e = 0 and 1 are subnormal; 2^-127 stands for both.
        const Ints<N> bits = shift_left<23>(widen_bytes(scales) + set1_i32<N>(-1));
        out.scale = as_float(max(bits, set1_i32<N>(0x00400000)));
    } else if constexpr (F == Format::q4_k || F == Format::q5_k) {
        out.scale = shared.d * to_float(widen_bytes(shared.pairs.firsts(g)));
        out.min = shared.minus_dmin * to_float(widen_bytes(shared.pairs.seconds(g)));
    } else if constexpr (F == Format::q3_k) {
        out.scale = shared.d;
        out.sub[0] = factors_of(widen_bytes(shared.pairs.firsts(g)) + set1_i32<N>(-32));
        out.sub[1] = factors_of(widen_bytes(shared.pairs.seconds(g)) + set1_i32<N>(-32));
    } else if constexpr (F == Format::q2_k || F == Format::q6_k) {
        out.scale = shared.d;
        for (size_t half = 0; half < 2; ++half) {
            const Places<N> s = scales + 8 * (2 * g + half);
            if constexpr (F == Format::q6_k) {
                out.sub[half] = factors_of(widen_signed_bytes(s));
            } else {
                out.sub[half] = factors_of(shift_mask<0, 15>(widen_bytes(s)));
                out.sub_min[half] = factors_of(shift_mask<4, 15>(widen_bytes(s)));
            }
        }
        if constexpr (F == Format::q2_k) out.min = shared.dmin;
    } else {
        out.scale = load_f16(scales);
        if constexpr (F == Format::q4_1 || F == Format::q5_1) out.min = load_f16(scales + 16);
    }
}

template <Format F, size_t N>
FINBACK_INLINE void unpack_group(Places<N> tile, const TileScales<F, N>& shared, size_t g, Group<F, N>& out) {
    constexpr size_t groups = info(F).block_cols / kGroupCols;
    unpack_codes<F, N>(tile + g * plane_bytes(F), out.code);
    unpack_scales<F, N>(tile + groups * plane_bytes(F), shared, g, out);
}

}  // namespace finback::FINBACK_NAMESPACE
