// Eight float lanes and the few operations on them that the kernels need, once per instruction set.
//
// Every kernel is written on these types alone, so the scalar build runs the same lanes in the same order as the vector
// builds. Results may differ between scalar and vector builds only by the rounding of fused multiply-adds.
// This header is compiled into one namespace per instruction set; keep standard headers with inline code out of the
// kernel files, or the linker may pick a copy that needs instructions the machine lacks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if !defined(FINBACK_ISA_scalar)
#include <immintrin.h>
#endif

#define FINBACK_CONCAT_(a, b) a##b
#define FINBACK_NAMESPACE FINBACK_ISA

namespace finback::FINBACK_NAMESPACE {

inline constexpr int kLanes = 8;

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float bf16_to_float(uint16_t x) { return bits_to_float(static_cast<uint32_t>(x) << 16); }
// Round to nearest even; NaN stays NaN.
inline uint16_t float_to_bf16(float x) {
    uint32_t bits = float_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline float f16_to_float(uint16_t h) {
    // Exponent rebias by one multiplication, which also renormalises subnormals.
    const uint32_t sign = (h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    const float scaled = bits_to_float(magnitude << 13) * bits_to_float(0x77800000u);  // 2^112
    return bits_to_float(sign | float_to_bits(scaled));
}
inline uint16_t float_to_f16(float x) {
#if !defined(FINBACK_ISA_scalar)
    return static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
    const uint32_t bits = float_to_bits(x);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
    if (magnitude < 0x38800000u) {  // subnormal: let the float adder do the rounding
        const float shifted = bits_to_float(magnitude) + bits_to_float(0x3f000000u);
        return static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
#endif
}

#if !defined(FINBACK_ISA_scalar)

struct F32x8 {
    __m256 v;
};
inline F32x8 zero() { return {_mm256_setzero_ps()}; }
inline F32x8 set1(float x) { return {_mm256_set1_ps(x)}; }
inline F32x8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, F32x8 a) { _mm256_storeu_ps(p, a.v); }
inline F32x8 load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline void store_f16(uint16_t* p, F32x8 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline F32x8 load_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
// What lies at the even (Half 0) or odd places of 16 elements: one instruction, where widening them in order takes two.
template <int Half>
inline F32x8 load_bf16_half(const uint16_t* p) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (Half == 0) return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16))};
    return {_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
// Sixteen floats in that order.
inline void take_apart(float* p) {
    const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8);
    const auto gather = [](__m256 x) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8)); };
    _mm256_storeu_ps(p, gather(_mm256_shuffle_ps(a, b, 0x88)));
    _mm256_storeu_ps(p + 8, gather(_mm256_shuffle_ps(a, b, 0xdd)));
}
inline F32x8 operator+(F32x8 a, F32x8 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32x8 operator-(F32x8 a, F32x8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32x8 operator*(F32x8 a, F32x8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32x8 operator/(F32x8 a, F32x8 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32x8 max(F32x8 a, F32x8 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32x8 min(F32x8 a, F32x8 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32x8 fma(F32x8 a, F32x8 b, F32x8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline float fma1(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}
inline F32x8 round_even(F32x8 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^n for integral n in [-126, 127].
inline F32x8 exp2_int(F32x8 n) {
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(e, 23))};
}

#else

struct F32x8 {
    float v[kLanes];
};
template <class F>
inline F32x8 lanewise(F f) {
    F32x8 r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
}
inline F32x8 zero() { return F32x8{}; }
inline F32x8 set1(float x) {
    return lanewise([&](int) { return x; });
}
inline F32x8 load(const float* p) {
    return lanewise([&](int i) { return p[i]; });
}
inline void store(float* p, F32x8 a) { std::memcpy(p, a.v, sizeof a.v); }
inline F32x8 load_f16(const uint16_t* p) {
    return lanewise([&](int i) { return f16_to_float(p[i]); });
}
inline void store_f16(uint16_t* p, F32x8 a) {
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_f16(a.v[i]);
}
inline F32x8 load_bf16(const uint16_t* p) {
    return lanewise([&](int i) { return bf16_to_float(p[i]); });
}
template <int Half>
inline F32x8 load_bf16_half(const uint16_t* p) {
    return lanewise([&](int i) { return bf16_to_float(p[2 * i + Half]); });
}
inline void take_apart(float* p) {
    float x[2 * kLanes];
    std::memcpy(x, p, sizeof x);
    for (int i = 0; i < kLanes; ++i) {
        p[i] = x[2 * i];
        p[kLanes + i] = x[2 * i + 1];
    }
}
inline F32x8 operator+(F32x8 a, F32x8 b) {
    return lanewise([&](int i) { return a.v[i] + b.v[i]; });
}
inline F32x8 operator-(F32x8 a, F32x8 b) {
    return lanewise([&](int i) { return a.v[i] - b.v[i]; });
}
inline F32x8 operator*(F32x8 a, F32x8 b) {
    return lanewise([&](int i) { return a.v[i] * b.v[i]; });
}
inline F32x8 operator/(F32x8 a, F32x8 b) {
    return lanewise([&](int i) { return a.v[i] / b.v[i]; });
}
inline F32x8 max(F32x8 a, F32x8 b) {
    return lanewise([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32x8 min(F32x8 a, F32x8 b) {
    return lanewise([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32x8 fma(F32x8 a, F32x8 b, F32x8 c) {
    return lanewise([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline float fma1(float a, float b, float c) { return a * b + c; }
inline F32x8 round_even(F32x8 a) {
    return lanewise([&](int i) { return __builtin_rintf(a.v[i]); });
}
inline F32x8 exp2_int(F32x8 n) {
    return lanewise([&](int i) {
        const float bounded = n.v[i] >= -126.0f && n.v[i] <= 127.0f ? n.v[i] : 0.0f;  // NaN has no integer
        return bits_to_float(static_cast<uint32_t>(static_cast<int>(bounded) + 127) << 23);
    });
}

#endif

inline void store_bf16(uint16_t* p, F32x8 a) {
    float x[kLanes];
    store(x, a);
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_bf16(x[i]);
}

// The one order in which eight lanes become one number: pairs four apart, two apart, one apart.
inline float sum(F32x8 a) {
    float x[kLanes];
    store(x, a);
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}
// out[i] = sum(a[i]) for four vectors, with the additions of sum().
inline void sum4(const F32x8* a, float* out) {
#if !defined(FINBACK_ISA_scalar)
    const auto fold = [](F32x8 x) { return _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1)); };
    const __m128 y0 = fold(a[0]), y1 = fold(a[1]), y2 = fold(a[2]), y3 = fold(a[3]);
    const __m128 z01 = _mm_add_ps(_mm_movelh_ps(y0, y1), _mm_movehl_ps(y1, y0));
    const __m128 z23 = _mm_add_ps(_mm_movelh_ps(y2, y3), _mm_movehl_ps(y3, y2));
    _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(z01, z23, 0x88), _mm_shuffle_ps(z01, z23, 0xdd)));
#else
    for (int i = 0; i < 4; ++i) out[i] = sum(a[i]);
#endif
}
// The same for two times four vectors, in fewer operations.
inline void sum4_pair(const F32x8* a, const F32x8* b, float* out_a, float* out_b) {
#if !defined(FINBACK_ISA_scalar)
    const auto fold = [](F32x8 x, F32x8 y) {
        return _mm256_add_ps(_mm256_permute2f128_ps(x.v, y.v, 0x20), _mm256_permute2f128_ps(x.v, y.v, 0x31));
    };
    const auto join = [](__m256 y0, __m256 y1) {
        const __m256 low = _mm256_shuffle_ps(y0, y1, 0x44), high = _mm256_shuffle_ps(y0, y1, 0xee);
        return _mm256_add_ps(low, high);
    };
    const __m256 z01 = join(fold(a[0], b[0]), fold(a[1], b[1])), z23 = join(fold(a[2], b[2]), fold(a[3], b[3]));
    const __m256 sums = _mm256_add_ps(_mm256_shuffle_ps(z01, z23, 0x88), _mm256_shuffle_ps(z01, z23, 0xdd));
    _mm_storeu_ps(out_a, _mm256_castps256_ps128(sums));
    _mm_storeu_ps(out_b, _mm256_extractf128_ps(sums, 1));
#else
    sum4(a, out_a);
    sum4(b, out_b);
#endif
}
inline float max_lane(F32x8 a) {
#if !defined(FINBACK_ISA_scalar)
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
#else
    float m = a.v[0];
    for (int i = 1; i < kLanes; ++i) m = a.v[i] > m ? a.v[i] : m;
    return m;
#endif
}

// x in every lane of a vector like `pattern`.
inline F32x8 set1_like(F32x8, float x) { return set1(x); }

// e^x to about 2 ulp for x in [-87.3, 88.3]; clamped outside, so very negative inputs give about 1e-38, not 0. NaN
// stays NaN: min and max return their second operand when either is one. Cody-Waite reduction by ln 2 and the degree-6
// Taylor-minimax polynomial of Cephes' expf. Unless fused, multiply-adds round twice, as every instruction set can.
template <bool fused, class V>
inline V exp_of(V x) {
    const auto c = [&](float number) { return set1_like(x, number); };
    const auto madd = [](V a, V b, V addend) { return fused ? fma(a, b, addend) : a * b + addend; };
    x = max(c(-87.3f), min(c(88.3f), x));
    const V n = round_even(x * c(1.44269504088896341f));
    V r = madd(n, c(-0.693359375f), x);
    r = madd(n, c(2.12194440e-4f), r);
    V p = c(1.9875691500e-4f);
    p = madd(p, r, c(1.3981999507e-3f));
    p = madd(p, r, c(8.3334519073e-3f));
    p = madd(p, r, c(4.1665795894e-2f));
    p = madd(p, r, c(1.6666665459e-1f));
    p = madd(p, r, c(5.0000001201e-1f));
    p = madd(p, r * r, r + c(1.0f));
    return p * exp2_int(n);
}
inline F32x8 exp(F32x8 x) { return exp_of<true>(x); }
// Bit-equal on every instruction set: for choices (routing, sampling) that must not flip between machines.
inline F32x8 exp_same_everywhere(F32x8 x) { return exp_of<false>(x); }
inline F32x8 silu(F32x8 x) { return x / (set1(1.0f) + exp(zero() - x)); }

}  // namespace finback::FINBACK_NAMESPACE
