// The integer half of simd.h: vectors of 32 bytes, 16 words, 8 ints, and the products of unsigned codes with signed
// activations. Integer sums are exact, so every instruction set gives the same bits.
#pragma once

#include <type_traits>

#include "simd.h"

// Unrolls the loop that follows, so that an array indexed by it stays in registers. Emulated lanes have none to stay
// in.
#if !defined(FINBACK_ISA_scalar)
#define FINBACK_PRAGMA(text) _Pragma(#text)
#define FINBACK_UNROLL(count) FINBACK_PRAGMA(GCC unroll count)
#else
#define FINBACK_UNROLL(count)
#endif

namespace finback::FINBACK_NAMESPACE {

#if !defined(FINBACK_ISA_scalar)

struct I8x32 {
    __m256i v;
};
struct I16x16 {
    __m256i v;
};
struct I32x8 {
    __m256i v;
};

inline I8x32 load_bytes(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
inline void store_bytes(void* p, I8x32 a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a.v); }
// The same four bytes in all 8 rows' places.
// As a float: Zen's integer broadcast from memory also takes an arithmetic pipe, the float one only a load.
inline I8x32 broadcast_quad(const void* p) {
    return {_mm256_castps_si256(_mm256_broadcast_ss(static_cast<const float*>(p)))};
}
inline I16x16 as_words(I8x32 a) { return {a.v}; }
inline I16x16 set1_i16(int16_t x) { return {_mm256_set1_epi16(x)}; }
inline I8x32 set1_byte(uint8_t x) { return {_mm256_set1_epi8(static_cast<char>(x))}; }
// (byte >> Shift) & Mask for each byte. Mask must drop the bits that come from the neighbouring byte.
template <int Shift, int Mask>
inline I8x32 shift_mask(I8x32 a) {
    static_assert(Shift >= 0 && (Mask >> (8 - Shift)) == 0);
    return {_mm256_and_si256(_mm256_srli_epi16(a.v, Shift), _mm256_set1_epi8(static_cast<char>(Mask)))};
}
template <int Shift, int Mask>
inline I8x32 shift_left_mask(I8x32 a) {
    static_assert(Shift >= 0 && (Mask & ((1 << Shift) - 1)) == 0);
    return {_mm256_and_si256(_mm256_slli_epi16(a.v, Shift), _mm256_set1_epi8(static_cast<char>(Mask)))};
}
inline I8x32 operator|(I8x32 a, I8x32 b) { return {_mm256_or_si256(a.v, b.v)}; }
// table[code] for codes 0..15.
inline I8x32 look_up(const uint8_t* table16, I8x32 codes) {
    const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table16));
    return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), codes.v)};
}
inline I8x32 abs_bytes(I8x32 a) { return {_mm256_abs_epi8(a.v)}; }
// The signed bytes at even and at odd places, as words.
inline I16x16 even_bytes(I8x32 a) { return {_mm256_srai_epi16(_mm256_slli_epi16(a.v, 8), 8)}; }
inline I16x16 odd_bytes(I8x32 a) { return {_mm256_srai_epi16(a.v, 8)}; }
inline I8x32 flip_sign_bits(I8x32 a) { return {_mm256_xor_si256(a.v, _mm256_set1_epi8(-128))}; }
// a, -a or 0 as sign_of is positive, negative or 0.
inline I8x32 with_sign(I8x32 a, I8x32 sign_of) { return {_mm256_sign_epi8(a.v, sign_of.v)}; }
inline I16x16 operator+(I16x16 a, I16x16 b) { return {_mm256_add_epi16(a.v, b.v)}; }
template <int Shift>
inline I16x16 shift_right(I16x16 a) {
    return {_mm256_srai_epi16(a.v, Shift)};
}
// Sums of neighbouring products, unsigned x signed; the caller's ranges exclude saturation.
inline I16x16 dot_pairs(I8x32 u, I8x32 s) { return {_mm256_maddubs_epi16(u.v, s.v)}; }
inline I32x8 dot_pairs(I16x16 a, I16x16 b) { return {_mm256_madd_epi16(a.v, b.v)}; }
inline I32x8 operator+(I32x8 a, I32x8 b) { return {_mm256_add_epi32(a.v, b.v)}; }
// Says that the value must exist now: without it GCC computes all products of a sum first, spills them, and adds last.
template <class V>
inline V settled(V a) {
    asm("" : "+v"(a.v));
    return a;
}
inline I32x8 zero_i32() { return {_mm256_setzero_si256()}; }
inline F32x8 to_float(I32x8 a) { return {_mm256_cvtepi32_ps(a.v)}; }
// Bytes (8 of them, unsigned) to ints, and ints to the (x, x) word pairs that dot_pairs takes.
inline I32x8 widen_bytes(const uint8_t* p) {
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
inline I32x8 widen_signed_bytes(const uint8_t* p) {
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
template <int Shift, int Mask>
inline I32x8 shift_mask(I32x8 a) {
    return {_mm256_and_si256(_mm256_srli_epi32(a.v, Shift), _mm256_set1_epi32(Mask))};
}
template <int Shift>
inline I32x8 shift_left(I32x8 a) {
    return {_mm256_slli_epi32(a.v, Shift)};
}
template <int Shift>
inline I32x8 shift_right(I32x8 a) {
    return {_mm256_srai_epi32(a.v, Shift)};
}
inline I32x8 operator|(I32x8 a, I32x8 b) { return {_mm256_or_si256(a.v, b.v)}; }
inline I32x8 set1_i32(int x) { return {_mm256_set1_epi32(x)}; }
inline F32x8 as_float(I32x8 a) { return {_mm256_castsi256_ps(a.v)}; }
inline I16x16 pair_up(I32x8 a) {
    return {_mm256_or_si256(_mm256_and_si256(a.v, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(a.v, 16))};
}
inline I32x8 shift_right(I32x8 a, int shift) { return {_mm256_srl_epi32(a.v, _mm_cvtsi32_si128(shift))}; }
inline I32x8 max(I32x8 a, I32x8 b) { return {_mm256_max_epi32(a.v, b.v)}; }
inline I32x8 magnitude_bits(F32x8 a) {
    return {_mm256_and_si256(_mm256_castps_si256(a.v), _mm256_set1_epi32(0x7fffffff))};
}
// Rounded to nearest even.
inline I32x8 to_int(F32x8 a) { return {_mm256_cvtps_epi32(a.v)}; }
inline void store_ints(int32_t* p, I32x8 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
inline void store_words(int16_t* p, I16x16 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
// 32 ints in [-128, 127] as bytes, in order.
inline I8x32 pack_bytes(I32x8 a, I32x8 b, I32x8 c, I32x8 d) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a.v, b.v), _mm256_packs_epi32(c.v, d.v));
    return {_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))};
}
// Bytes Byte (0 or 1) of the words of one half (0 or 1), e4m3 numbers, as floats, all 2^8 times smaller: by way of
// float16, because what is subnormal in e4m3 would be subnormal as the bits of a float too, and slow. NaN codes give
// +-480 / 2^8.
template <int Byte, int Half>
inline F32x8 fp8_to_float(I8x32 a) {
    const __m256i top = Byte == 0 ? _mm256_slli_epi16(a.v, 8) : a.v;
    const __m256i bits = _mm256_and_si256(_mm256_srai_epi16(top, 1), _mm256_set1_epi16(static_cast<short>(0xbf80)));
    return {_mm256_cvtph_ps(_mm256_extracti128_si256(bits, Half))};
}

// In both halves of 16 bytes: the sums of bytes 0, 1 and of bytes 2, 3 of the half's four quads, as word pairs.
inline I16x16 quad_sums(I8x32 a) {
    __m256i x = _mm256_maddubs_epi16(_mm256_set1_epi8(1), a.v);
    x = _mm256_add_epi16(x, _mm256_shuffle_epi32(x, 0x4e));
    return {_mm256_add_epi16(x, _mm256_shuffle_epi32(x, 0xb1))};
}
inline int32_t max_lane(I32x8 a) {
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

#else

template <class T, int N>
struct Lanes {
    T v[N];
};
struct I8x32 : Lanes<uint8_t, 32> {};
struct I16x16 : Lanes<int16_t, 16> {};
struct I32x8 : Lanes<int32_t, 8> {};

template <class V, class F>
inline V lanes_of(F f) {
    V r;
    constexpr int n = static_cast<int>(sizeof r.v / sizeof r.v[0]);
    for (int i = 0; i < n; ++i) r.v[i] = static_cast<std::remove_reference_t<decltype(r.v[0])> >(f(i));
    return r;
}
inline I8x32 load_bytes(const void* p) {
    I8x32 r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void store_bytes(void* p, I8x32 a) { std::memcpy(p, a.v, sizeof a.v); }
inline I8x32 broadcast_quad(const void* p) {
    uint8_t quad[4];
    std::memcpy(quad, p, sizeof quad);
    return lanes_of<I8x32>([&](int i) { return quad[i % 4]; });
}
inline I16x16 as_words(I8x32 a) {
    I16x16 words;
    std::memcpy(words.v, a.v, sizeof words.v);
    return words;
}
inline I8x32 set1_byte(uint8_t x) {
    return lanes_of<I8x32>([&](int) { return x; });
}
inline I16x16 set1_i16(int16_t x) {
    return lanes_of<I16x16>([&](int) { return x; });
}
template <int Shift, int Mask>
inline I8x32 shift_mask(I8x32 a) {
    return lanes_of<I8x32>([&](int i) { return (a.v[i] >> Shift) & Mask; });
}
template <int Shift, int Mask>
inline I8x32 shift_left_mask(I8x32 a) {
    return lanes_of<I8x32>([&](int i) { return (a.v[i] << Shift) & Mask; });
}
inline I8x32 operator|(I8x32 a, I8x32 b) {
    return lanes_of<I8x32>([&](int i) { return a.v[i] | b.v[i]; });
}
inline I8x32 look_up(const uint8_t* table16, I8x32 codes) {
    return lanes_of<I8x32>([&](int i) { return table16[codes.v[i] & 15]; });
}
inline I8x32 abs_bytes(I8x32 a) {
    return lanes_of<I8x32>([&](int i) { return a.v[i] & 0x80 ? 256 - a.v[i] : a.v[i]; });
}
inline I8x32 with_sign(I8x32 a, I8x32 sign_of) {
    return lanes_of<I8x32>([&](int i) { return sign_of.v[i] & 0x80 ? 256 - a.v[i] : sign_of.v[i] ? a.v[i] : 0; });
}
inline I16x16 even_bytes(I8x32 a) {
    return lanes_of<I16x16>([&](int i) { return static_cast<int8_t>(a.v[2 * i]); });
}
inline I16x16 odd_bytes(I8x32 a) {
    return lanes_of<I16x16>([&](int i) { return static_cast<int8_t>(a.v[2 * i + 1]); });
}
// Wraps, as the vector instruction does.
inline I16x16 operator+(I16x16 a, I16x16 b) {
    return lanes_of<I16x16>([&](int i) { return static_cast<uint16_t>(a.v[i] + b.v[i]); });
}
template <int Shift>
inline I16x16 shift_right(I16x16 a) {
    return lanes_of<I16x16>([&](int i) { return a.v[i] >> Shift; });
}
template <class V>
inline V settled(V a) {
    return a;
}
inline I16x16 quad_sums(I8x32 a) {
    return lanes_of<I16x16>([&](int i) {
        int sum = 0;
        for (int quad = 0; quad < 4; ++quad)
            for (int k = 0; k < 2; ++k) sum += static_cast<int8_t>(a.v[16 * (i / 8) + 4 * quad + 2 * (i % 2) + k]);
        return sum;
    });
}
inline I16x16 dot_pairs(I8x32 u, I8x32 s) {
    return lanes_of<I16x16>([&](int i) {
        return u.v[2 * i] * static_cast<int8_t>(s.v[2 * i]) + u.v[2 * i + 1] * static_cast<int8_t>(s.v[2 * i + 1]);
    });
}
inline I32x8 dot_pairs(I16x16 a, I16x16 b) {
    return lanes_of<I32x8>([&](int i) { return a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1]; });
}
inline I32x8 operator+(I32x8 a, I32x8 b) {
    return lanes_of<I32x8>([&](int i) { return a.v[i] + b.v[i]; });
}
inline I32x8 zero_i32() { return I32x8{}; }
inline F32x8 to_float(I32x8 a) {
    return lanewise([&](int i) { return static_cast<float>(a.v[i]); });
}
inline I32x8 widen_bytes(const uint8_t* p) {
    return lanes_of<I32x8>([&](int i) { return p[i]; });
}
inline I32x8 widen_signed_bytes(const uint8_t* p) {
    return lanes_of<I32x8>([&](int i) { return static_cast<int8_t>(p[i]); });
}
template <int Shift, int Mask>
inline I32x8 shift_mask(I32x8 a) {
    return lanes_of<I32x8>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> Shift) & Mask; });
}
template <int Shift>
inline I32x8 shift_left(I32x8 a) {
    return lanes_of<I32x8>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << Shift); });
}
template <int Shift>
inline I32x8 shift_right(I32x8 a) {
    return lanes_of<I32x8>([&](int i) { return a.v[i] >> Shift; });
}
inline I32x8 operator|(I32x8 a, I32x8 b) {
    return lanes_of<I32x8>([&](int i) { return a.v[i] | b.v[i]; });
}
inline I32x8 set1_i32(int x) {
    return lanes_of<I32x8>([&](int) { return x; });
}
inline F32x8 as_float(I32x8 a) {
    return lanewise([&](int i) { return bits_to_float(static_cast<uint32_t>(a.v[i])); });
}
inline I16x16 pair_up(I32x8 a) {
    return lanes_of<I16x16>([&](int i) { return a.v[i / 2]; });
}
inline I32x8 shift_right(I32x8 a, int shift) {
    return lanes_of<I32x8>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> shift); });
}
inline I32x8 max(I32x8 a, I32x8 b) {
    return lanes_of<I32x8>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline I32x8 magnitude_bits(F32x8 a) {
    return lanes_of<I32x8>([&](int i) { return static_cast<int32_t>(float_to_bits(a.v[i]) & 0x7fffffffu); });
}
inline I32x8 to_int(F32x8 a) {
    return lanes_of<I32x8>([&](int i) { return static_cast<int32_t>(__builtin_rintf(a.v[i])); });
}
inline void store_ints(int32_t* p, I32x8 a) { std::memcpy(p, a.v, sizeof a.v); }
inline void store_words(int16_t* p, I16x16 a) { std::memcpy(p, a.v, sizeof a.v); }
inline I8x32 pack_bytes(I32x8 a, I32x8 b, I32x8 c, I32x8 d) {
    const I32x8* parts[4] = {&a, &b, &c, &d};
    return lanes_of<I8x32>([&](int i) { return parts[i / 8]->v[i % 8]; });
}
template <int Byte, int Half>
inline F32x8 fp8_to_float(I8x32 a) {
    return lanewise([&](int i) {
        const uint32_t x = a.v[16 * Half + 2 * i + Byte];
        return bits_to_float((x & 0x80u) << 24 | (x & 0x7fu) << 20) * 0x1p112f;
    });
}

inline int32_t max_lane(I32x8 a) {
    int32_t most = a.v[0];
    for (int i = 1; i < kLanes; ++i) most = a.v[i] > most ? a.v[i] : most;
    return most;
}

#endif

// Into the second-level cache, as the first level can wait for only a few lines at a time, or into the first. Always
// inlined, and so must be who calls it for nothing else: GCC drops calls of functions that only prefetch.
template <bool First = false>
[[gnu::always_inline]] inline void prefetch(const void* p) {
    __builtin_prefetch(p, 0, First ? 3 : 2);
}

}  // namespace finback::FINBACK_NAMESPACE
