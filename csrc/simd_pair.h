// The vectors of simd.h and simd_int.h for N row blocks: N = 1, or N = 2 side by side, in one 512-bit register where
// there are such, else in two of 256 bits. A product names its types Floats<N>, Bytes<N>, ... and is written once.
#pragma once

#include "simd_int.h"

namespace finback::FINBACK_NAMESPACE {

#if defined(__AVX512BW__) && defined(__AVX512DQ__)

inline constexpr size_t kWide = 2;        // vectors of eight floats in one of the 32 registers
inline constexpr size_t kTileTokens = 8;  // tokens whose sums over two row blocks stay in registers

struct F32x16 {
    __m512 v;
};
struct I8x64 {
    __m512i v;
};
struct I16x32 {
    __m512i v;
};
struct I32x16 {
    __m512i v;
};

inline F32x16 join(F32x8 lower, F32x8 upper) {
    return {_mm512_insertf32x8(_mm512_castps256_ps512(lower.v), upper.v, 1)};
}
inline I8x64 join(I8x32 lower, I8x32 upper) {
    return {_mm512_inserti64x4(_mm512_castsi256_si512(lower.v), upper.v, 1)};
}
inline I32x16 join(I32x8 lower, I32x8 upper) {
    return {_mm512_inserti64x4(_mm512_castsi256_si512(lower.v), upper.v, 1)};
}
inline F32x8 lower(F32x16 a) { return {_mm512_castps512_ps256(a.v)}; }
inline I32x8 lower(I32x16 a) { return {_mm512_castsi512_si256(a.v)}; }
inline I32x8 upper(I32x16 a) { return {_mm512_extracti64x4_epi64(a.v, 1)}; }
inline F32x8 upper(F32x16 a) { return {_mm512_extractf32x8_ps(a.v, 1)}; }

inline F32x16 repeat(F32x8 a) { return {_mm512_broadcast_f32x8(a.v)}; }
inline F32x16 load_wide_f32(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32x16 load_wide_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F32x16 load_wide_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
template <int Half>
inline F32x16 bf16_half(__m512i pairs) {
    if constexpr (Half == 0) return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))};
    return {_mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
// load_bf16_half() of 32 elements, and of 16 at each of two places.
template <int Half>
inline F32x16 load_wide_bf16_half(const uint16_t* p) {
    return bf16_half<Half>(_mm512_loadu_si512(p));
}
template <int Half>
inline F32x16 load_bf16_half(const uint16_t* lower, const uint16_t* upper) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lower));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(upper));
    return bf16_half<Half>(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}
inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
// sum4_pair() for both halves: out_a gets the sums of a[0]'s lower and upper half, of a[1]'s, a[2]'s and a[3]'s.
inline void sum4_pair(const F32x16* a, const F32x16* b, float* out_a, float* out_b) {
    const auto fold = [](F32x16 x, F32x16 y) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(x.v, y.v, 0x88), _mm512_shuffle_f32x4(x.v, y.v, 0xdd));
    };
    const auto join = [](__m512 y0, __m512 y1) {
        return _mm512_add_ps(_mm512_shuffle_ps(y0, y1, 0x44), _mm512_shuffle_ps(y0, y1, 0xee));
    };
    const __m512 of_a = join(fold(a[0], a[1]), fold(a[2], a[3])), of_b = join(fold(b[0], b[1]), fold(b[2], b[3]));
    const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(of_a, of_b, 0x88), _mm512_shuffle_ps(of_a, of_b, 0xdd));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512 sorted = _mm512_permutexvar_ps(order, sums);
    _mm256_storeu_ps(out_a, _mm512_castps512_ps256(sorted));
    _mm256_storeu_ps(out_b, _mm512_extractf32x8_ps(sorted, 1));
}
inline void sum4(const F32x16* a, float* out) { sum4_pair(a, a, out, out); }
inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 round_even(F32x16 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32x16 exp2_int(F32x16 n) {
    const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(e, 23))};
}
inline F32x16 set1_like(F32x16, float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 exp(F32x16 x) { return exp_of<true>(x); }
template <int Shift, int Mask>
inline I8x64 shift_mask(I8x64 a) {
    return {_mm512_and_si512(_mm512_srli_epi16(a.v, Shift), _mm512_set1_epi8(static_cast<char>(Mask)))};
}
template <int Shift, int Mask>
inline I8x64 shift_left_mask(I8x64 a) {
    return {_mm512_and_si512(_mm512_slli_epi16(a.v, Shift), _mm512_set1_epi8(static_cast<char>(Mask)))};
}
inline I8x64 operator|(I8x64 a, I8x64 b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I8x64 look_up(const uint8_t* table16, I8x64 codes) {
    const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table16));
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), codes.v)};
}
inline I8x64 flip_sign_bits(I8x64 a) { return {_mm512_xor_si512(a.v, _mm512_set1_epi8(-128))}; }
inline I8x64 abs_bytes(I8x64 a) { return {_mm512_abs_epi8(a.v)}; }
// Where sign_of is 0 the value is a instead of 0: its magnitude, which is multiplied with it, is 0.
inline I8x64 with_sign(I8x64 a, I8x64 sign_of) {
    return {_mm512_mask_sub_epi8(a.v, _mm512_movepi8_mask(sign_of.v), _mm512_setzero_si512(), a.v)};
}
inline I16x32 even_bytes(I8x64 a) { return {_mm512_srai_epi16(_mm512_slli_epi16(a.v, 8), 8)}; }
inline I16x32 odd_bytes(I8x64 a) { return {_mm512_srai_epi16(a.v, 8)}; }
inline I16x32 as_words(I8x64 a) { return {a.v}; }
inline I16x32 operator+(I16x32 a, I16x32 b) { return {_mm512_add_epi16(a.v, b.v)}; }
template <int Shift>
inline I16x32 shift_right(I16x32 a) {
    return {_mm512_srai_epi16(a.v, Shift)};
}
inline I16x32 dot_pairs(I8x64 u, I8x64 s) { return {_mm512_maddubs_epi16(u.v, s.v)}; }
inline I32x16 dot_pairs(I16x32 a, I16x32 b) { return {_mm512_madd_epi16(a.v, b.v)}; }
inline I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int Shift, int Mask>
inline I32x16 shift_mask(I32x16 a) {
    return {_mm512_and_si512(_mm512_srli_epi32(a.v, Shift), _mm512_set1_epi32(Mask))};
}
template <int Shift>
inline I32x16 shift_left(I32x16 a) {
    return {_mm512_slli_epi32(a.v, Shift)};
}
template <int Shift>
inline I32x16 shift_right(I32x16 a) {
    return {_mm512_srai_epi32(a.v, Shift)};
}
inline I16x32 pair_up(I32x16 a) {
    return {_mm512_or_si512(_mm512_and_si512(a.v, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(a.v, 16))};
}
inline F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline F32x16 as_float(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
inline I8x64 load_pair_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int Byte, int Half>
inline F32x16 fp8_to_float(I8x64 a) {
    const __m512i top = Byte == 0 ? _mm512_slli_epi16(a.v, 8) : a.v;
    const __m512i bits = _mm512_and_si512(_mm512_srai_epi16(top, 1), _mm512_set1_epi16(static_cast<short>(0xbf80)));
    return {_mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, Half))};
}
inline F32x16 set1_twice(float x) { return {_mm512_set1_ps(x)}; }
inline I32x16 set1_twice(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I16x32 set1_twice(int16_t x) { return {_mm512_set1_epi16(x)}; }
inline I8x64 broadcast_quad_twice(const void* p) {
    return {_mm512_castps_si512(_mm512_set1_ps(*static_cast<const float*>(p)))};
}

#else

inline constexpr size_t kWide = 1;
inline constexpr size_t kTileTokens = 4;

inline F32x8 repeat(F32x8 a) { return a; }
inline F32x8 load_wide_f32(const float* p) { return load(p); }
inline F32x8 load_wide_f16(const uint16_t* p) { return load_f16(p); }
inline F32x8 load_wide_bf16(const uint16_t* p) { return load_bf16(p); }
template <int Half>
inline F32x8 load_wide_bf16_half(const uint16_t* p) {
    return load_bf16_half<Half>(p);
}

template <class V>
struct Twice {
    V lo, hi;
};
using F32x16 = Twice<F32x8>;
using I8x64 = Twice<I8x32>;
using I16x32 = Twice<I16x16>;
using I32x16 = Twice<I32x8>;

template <class V>
inline Twice<V> join(V lower, V upper) {
    return {lower, upper};
}
template <class V>
inline V lower(const Twice<V>& a) {
    return a.lo;
}
template <class V>
inline V upper(const Twice<V>& a) {
    return a.hi;
}
#define FINBACK_OF_HALVES(name)                                 \
    template <class V, class... W>                              \
    inline auto name(const Twice<V>& a, const Twice<W>&... b) { \
        return join(name(a.lo, b.lo...), name(a.hi, b.hi...));  \
    }
// A value for registers: GCC copies a whole struct piece by piece through memory, and then waits for the pieces.
template <class V>
inline Twice<V> taken(const Twice<V>& a) {
    return {a.lo, a.hi};
}
FINBACK_OF_HALVES(operator+)
FINBACK_OF_HALVES(operator-)
FINBACK_OF_HALVES(operator*)
FINBACK_OF_HALVES(operator|)
FINBACK_OF_HALVES(abs_bytes)
FINBACK_OF_HALVES(as_float)
FINBACK_OF_HALVES(as_words)
FINBACK_OF_HALVES(dot_pairs)
FINBACK_OF_HALVES(flip_sign_bits)
FINBACK_OF_HALVES(even_bytes)
FINBACK_OF_HALVES(fma)
FINBACK_OF_HALVES(max)
FINBACK_OF_HALVES(odd_bytes)
FINBACK_OF_HALVES(pair_up)
FINBACK_OF_HALVES(settled)
FINBACK_OF_HALVES(to_float)
FINBACK_OF_HALVES(with_sign)
#undef FINBACK_OF_HALVES
template <int Shift, int Mask, class V>
inline Twice<V> shift_mask(const Twice<V>& a) {
    return {shift_mask<Shift, Mask>(a.lo), shift_mask<Shift, Mask>(a.hi)};
}
template <int Shift, int Mask, class V>
inline Twice<V> shift_left_mask(const Twice<V>& a) {
    return {shift_left_mask<Shift, Mask>(a.lo), shift_left_mask<Shift, Mask>(a.hi)};
}
template <int Shift, class V>
inline Twice<V> shift_left(const Twice<V>& a) {
    return {shift_left<Shift>(a.lo), shift_left<Shift>(a.hi)};
}
template <int Shift, class V>
inline Twice<V> shift_right(const Twice<V>& a) {
    return {shift_right<Shift>(a.lo), shift_right<Shift>(a.hi)};
}
inline I8x64 load_pair_bytes(const uint8_t* p) { return {load_bytes(p), load_bytes(p + 32)}; }
template <int Byte, int Half>
inline F32x16 fp8_to_float(const I8x64& a) {
    const I8x32 half = Half == 0 ? a.lo : a.hi;
    return {fp8_to_float<Byte, 0>(half), fp8_to_float<Byte, 1>(half)};
}
inline I8x64 look_up(const uint8_t* table16, I8x64 codes) {
    return {look_up(table16, codes.lo), look_up(table16, codes.hi)};
}
inline F32x16 set1_twice(float x) { return {set1(x), set1(x)}; }
inline I32x16 set1_twice(int32_t x) { return {set1_i32(x), set1_i32(x)}; }
inline I16x32 set1_twice(int16_t x) { return {set1_i16(x), set1_i16(x)}; }
inline I8x64 broadcast_quad_twice(const void* p) { return {broadcast_quad(p), broadcast_quad(p)}; }

#endif

template <class V>
inline V taken(const V& a) {
    return a;
}

template <size_t N>
using Floats = std::conditional_t<N == 1, F32x8, F32x16>;
template <size_t N>
using Bytes = std::conditional_t<N == 1, I8x32, I8x64>;
template <size_t N>
using Words = std::conditional_t<N == 1, I16x16, I16x32>;
template <size_t N>
using Ints = std::conditional_t<N == 1, I32x8, I32x16>;

template <size_t N>
inline Floats<N> set1(float x) {
    if constexpr (N == 1)
        return set1(x);
    else
        return set1_twice(x);
}
template <size_t N>
inline Ints<N> set1_i32(int32_t x) {
    if constexpr (N == 1)
        return set1_i32(x);
    else
        return set1_twice(x);
}
template <size_t N>
inline Words<N> set1_i16(int16_t x) {
    if constexpr (N == 1)
        return set1_i16(x);
    else
        return set1_twice(x);
}
template <size_t N>
inline Bytes<N> broadcast_quad(const void* p) {
    if constexpr (N == 1)
        return broadcast_quad(p);
    else
        return broadcast_quad_twice(p);
}
template <size_t N>
inline Floats<N> zero() {
    return set1<N>(0.0f);
}

// The same place in N row blocks.
template <size_t N>
struct Places {
    const uint8_t* at[N];

    Places operator+(size_t bytes) const {
        Places moved;
        for (size_t r = 0; r < N; ++r) moved.at[r] = at[r] + bytes;
        return moved;
    }
};
// What `load` makes of each of the N places, side by side.
template <size_t N, class Load>
inline auto load_each(Places<N> p, Load load) {
    if constexpr (N == 1)
        return load(p.at[0]);
    else
        return join(load(p.at[0]), load(p.at[1]));
}
template <size_t N>
inline Bytes<N> load_bytes(Places<N> p) {
    return load_each(p, [](const uint8_t* at) { return load_bytes(at); });
}
template <size_t N>
inline Floats<N> load_f16(Places<N> p) {
    return load_each(p, [](const uint8_t* at) { return load_f16(reinterpret_cast<const uint16_t*>(at)); });
}
template <size_t N>
inline Ints<N> widen_bytes(Places<N> p) {
    return load_each(p, [](const uint8_t* at) { return widen_bytes(at); });
}
template <size_t N>
inline Ints<N> widen_signed_bytes(Places<N> p) {
    return load_each(p, [](const uint8_t* at) { return widen_signed_bytes(at); });
}

// A running sum of unsigned codes x signed activations, per row: 32-bit with VNNI, else two 16-bit sums, of bytes 0, 1
// and of bytes 2, 3 of the quads, which wrap modulo 2^16: only their last value has to fit. Start is what it may begin
// with instead of 0, for one token; Factors is one whole number per row.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
inline constexpr bool kWideSums = true;
struct Start {
    int32_t sum;
};
inline Start start_from(int first, int second) { return {first + second}; }
template <size_t N>
using Partial = Ints<N>;
template <size_t N>
using Factors = Ints<N>;
template <size_t N>
inline Partial<N> start_at(const Start& start) {
    return set1_i32<N>(start.sum);
}
template <size_t N>
inline Partial<N> start_at_zero() {
    return set1_i32<N>(0);
}
inline I32x8 factors_of(I32x8 factors) { return factors; }
inline I32x16 factors_of(I32x16 factors) { return factors; }
inline I32x8 total(I32x8 sum) { return sum; }
inline I32x16 total(I32x16 sum) { return sum; }
inline I32x8 total(I32x8 sum, I32x8 factors) { return {_mm256_mullo_epi32(sum.v, factors.v)}; }
#if defined(__AVX512VNNI__)
inline I32x16 total(I32x16 sum, I32x16 factors) { return {_mm512_mullo_epi32(sum.v, factors.v)}; }
// The quad is broadcast by the product itself: as an instruction of its own, which GCC makes of intrinsics, 512-bit
// broadcasts fill the load pipes of Zen 4.
inline I32x8 add_dot(I32x8 sum, I8x32 u, const int8_t* quad) {
    asm("vpdpbusd %2%{1to8%}, %1, %0" : "+v"(sum.v) : "v"(u.v), "m"(*reinterpret_cast<const int8_t (*)[4]>(quad)));
    return sum;
}
inline I32x16 add_dot(I32x16 sum, I8x64 u, const int8_t* quad) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(u.v), "m"(*reinterpret_cast<const int8_t (*)[4]>(quad)));
    return sum;
}
#else
inline I32x16 total(I32x16 sum, I32x16 factors) { return {total(sum.lo, factors.lo), total(sum.hi, factors.hi)}; }
inline I32x8 add_dot(I32x8 sum, I8x32 u, const int8_t* quad) {
    return {_mm256_dpbusd_avx_epi32(sum.v, u.v, broadcast_quad(quad).v)};
}
inline I32x16 add_dot(const I32x16& sum, const I8x64& u, const int8_t* quad) {
    return {add_dot(sum.lo, u.lo, quad), add_dot(sum.hi, u.hi, quad)};
}
#endif
#else
inline constexpr bool kWideSums = false;
struct Start {
    int16_t first, second;
};
inline Start start_from(int first, int second) { return {static_cast<int16_t>(first), static_cast<int16_t>(second)}; }
template <size_t N>
using Partial = Words<N>;
template <size_t N>
using Factors = Words<N>;
template <size_t N>
inline Partial<N> start_at(const Start& start) {
    return as_words(broadcast_quad<N>(&start));
}
template <size_t N>
inline Partial<N> start_at_zero() {
    return set1_i16<N>(0);
}
inline I16x16 add_dot(I16x16 sum, I8x32 u, const int8_t* quad) {
    return settled(sum + dot_pairs(u, broadcast_quad(quad)));
}
inline I16x32 add_dot(const I16x32& sum, const I8x64& u, const int8_t* quad) {
#if defined(__AVX512BW__)
    return settled(sum + dot_pairs(u, broadcast_quad<2>(quad)));
#else
    return {add_dot(sum.lo, u.lo, quad), add_dot(sum.hi, u.hi, quad)};
#endif
}
// Signed words times a pair of signed words.
inline I32x8 add_dot(I32x8 sum, I16x16 w, const int16_t* pair) {
    return settled(sum + dot_pairs(w, as_words(broadcast_quad(pair))));
}
inline I32x16 add_dot(const I32x16& sum, const I16x32& w, const int16_t* pair) {
#if defined(__AVX512BW__)
    return settled(sum + dot_pairs(w, as_words(broadcast_quad<2>(pair))));
#else
    return {add_dot(sum.lo, w.lo, pair), add_dot(sum.hi, w.hi, pair)};
#endif
}
inline auto factors_of(I32x8 factors) { return pair_up(factors); }
inline auto factors_of(I32x16 factors) { return pair_up(factors); }
inline I32x8 total(I16x16 sum) { return dot_pairs(sum, set1_i16(1)); }
inline I32x16 total(I16x32 sum) { return dot_pairs(sum, set1_i16<2>(1)); }
inline I32x8 total(I16x16 sum, I16x16 factors) { return dot_pairs(sum, factors); }
inline I32x16 total(I16x32 sum, I16x32 factors) { return dot_pairs(sum, factors); }
#endif

}  // namespace finback::FINBACK_NAMESPACE
