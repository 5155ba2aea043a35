// Activations as the integer formats want them: int8 per group of 32 columns, with the sums that undo code offsets.
#pragma once

#include "formats.h"
#include "simd_int.h"

namespace finback::FINBACK_NAMESPACE {

// One group of one token: value = scale * code, code in [-127, 127]. One cache line.
//
// A product keeps two 16-bit sums per row: one over columns 4j, 4j+1, one over columns 4j+2, 4j+3. Starting them at
// -offset * (sum of the same columns' codes) makes unsigned codes signed for free. The additions wrap modulo 2^16, so
// only the final sum has to fit: 16 columns x 127 x 16 = 32512.
struct alignas(64) Activation {
    int8_t codes[32];
    float scale;
    float scaled_sum;        // scale * sum of codes: what a format's min is multiplied with
    int16_t minus_8[2];      // offsets of the 4-bit codes,
    int16_t minus_16[2];     // the 5-bit ones,
    int16_t minus_12[2];     // mxfp4's doubled values,
    int16_t minus_32[2][2];  // and the formats with a scale per 16 columns: [half][which sum]
};
static_assert(sizeof(Activation) == 64);

// A group whose largest magnitude is below this counts as zero, which keeps 127 / largest finite.
inline constexpr float kSmallestLargest = 1e-30f;

inline void sum_columns(I8x32 codes, Activation& out) {
    int16_t sums[16];
    const I16x16 halves = quad_sums(codes);
    store_words(sums, halves);
    int16_t thirty_twos[16];
    store_words(thirty_twos, set1_i16(0) - shift_left<5>(halves));
    std::memcpy(out.minus_32[0], thirty_twos, 4);
    std::memcpy(out.minus_32[1], thirty_twos + 8, 4);
    const int total[2] = {sums[0] + sums[8], sums[1] + sums[9]};
    for (int which = 0; which < 2; ++which) {
        out.minus_8[which] = static_cast<int16_t>(-8 * total[which]);
        out.minus_16[which] = static_cast<int16_t>(-16 * total[which]);
        out.minus_12[which] = static_cast<int16_t>(-12 * total[which]);
    }
    out.scaled_sum = out.scale * static_cast<float>(total[0] + total[1]);
}

inline void quantize_group(const float* x, Activation& out) {
    const F32x8 a = load(x), b = load(x + 8), c = load(x + 16), d = load(x + 24);
    // Compared as bits, NaN is above infinity: a group that is not finite gets scale NaN, so its outputs are NaN too.
    const int32_t top =
        max_lane(max(max(magnitude_bits(a), magnitude_bits(b)), max(magnitude_bits(c), magnitude_bits(d))));
    const float largest = bits_to_float(static_cast<uint32_t>(top));
    if (top >= 0x7f800000 || largest < kSmallestLargest) {
        out = Activation{};
        out.scale = out.scaled_sum = top >= 0x7f800000 ? bits_to_float(0x7fc00000u) : 0.0f;
        return;
    }
    const F32x8 inverse = set1(127.0f / largest);
    out.scale = largest / 127.0f;
    const I8x32 codes = pack_bytes(to_int(a * inverse), to_int(b * inverse), to_int(c * inverse), to_int(d * inverse));
    store_bytes(out.codes, codes);
    sum_columns(codes, out);
}

inline void quantize_row(const float* x, size_t cols, Activation* out) {
    for (size_t g = 0; g < cols / kGroupCols; ++g) quantize_group(x + g * kGroupCols, out[g]);
}

}  // namespace finback::FINBACK_NAMESPACE
