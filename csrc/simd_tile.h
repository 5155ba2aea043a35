// AMX's eight tile registers of 16 rows x 64 bytes, and what bfloat16 products need to be as exact as float32's: one
// factor is bfloat16 as published or cached, the other is cut into three bfloat16 numbers whose sum it is.
//
// A tile product adds to C [16, 16] float32 the product of A [16, 32] and B [32, 16], both bfloat16. Row i of B in
// memory holds two rows of the matrix for each column: those that elements 2i and 2i + 1 of A's rows meet. Subnormal
// numbers count as zero.
#pragma once

#include "simd_pair.h"

namespace finback::FINBACK_NAMESPACE {

inline constexpr int kTileRows = 16;
inline constexpr int kTileDepth = 32;  // bfloat16 elements of a row
inline constexpr int kCuts = 3;

#if defined(__AMX_BF16__)

inline constexpr bool kTileRegisters = true;

// The calling thread's tile registers, all of the full size.
class TileRegisters {
public:
    TileRegisters() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        asm volatile("ldtilecfg %0" : : "m"(config));
    }
    ~TileRegisters() { asm volatile("tilerelease"); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};

template <int Tile>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
// Rows `stride` bytes apart.
template <int Tile>
inline void tile_load(const void* p, size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
inline void tile_store(void* p, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(Tile) : "memory");
}
template <int C, int A, int B>
inline void tile_dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// The upper or lower halves of two vectors of words, lane by lane: a's in the lower half of each lane.
inline __m512i upper_halves(__m512i a, __m512i b) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_ternarylogic_epi32(b, high, _mm512_srli_epi32(a, 16), 0xea);  // (b & high) | (a >> 16)
}
inline __m512i lower_halves(__m512i a, __m512i b) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_ternarylogic_epi32(a, high, _mm512_slli_epi32(b, 16), 0xba);  // (a & ~high) | (b << 16)
}
// A float without the eight bits that its upper half is as bfloat16.
inline __m512 without_upper_half(__m512 a) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), high)));
}
// Cuts two vectors of floats into three of pairs of bfloat16 (a's, b's), eight bits of each number after the other.
inline void cut(__m512 a, __m512 b, __m512i (&cuts)[kCuts]) {
    FINBACK_UNROLL(3)
    for (int i = 0; i < kCuts; ++i) {
        cuts[i] = upper_halves(_mm512_castps_si512(a), _mm512_castps_si512(b));
        a = without_upper_half(a);
        b = without_upper_half(b);
    }
}

// rows[i] lane j becomes rows[j] lane i.
inline void transpose(__m512i (&rows)[16]) {
    __m512i quads[16];
    FINBACK_UNROLL(4)
    for (int i = 0; i < 16; i += 4) {
        const __m512i a = _mm512_unpacklo_epi32(rows[i], rows[i + 1]), b = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
        const __m512i c = _mm512_unpacklo_epi32(rows[i + 2], rows[i + 3]);
        const __m512i d = _mm512_unpackhi_epi32(rows[i + 2], rows[i + 3]);
        quads[i] = _mm512_unpacklo_epi64(a, c);
        quads[i + 1] = _mm512_unpackhi_epi64(a, c);
        quads[i + 2] = _mm512_unpacklo_epi64(b, d);
        quads[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    FINBACK_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
        const __m512i a = _mm512_shuffle_i32x4(quads[i], quads[i + 4], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(quads[i + 8], quads[i + 12], 0x88);
        const __m512i c = _mm512_shuffle_i32x4(quads[i], quads[i + 4], 0xdd);
        const __m512i d = _mm512_shuffle_i32x4(quads[i + 8], quads[i + 12], 0xdd);
        rows[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
        rows[i + 4] = _mm512_shuffle_i32x4(c, d, 0x88);
        rows[i + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}

#else

inline constexpr bool kTileRegisters = false;

#endif

}  // namespace finback::FINBACK_NAMESPACE
