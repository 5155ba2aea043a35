// Activations as the integer formats want them: int8 per group of 32 columns, with the sums that undo code offsets.
#pragma once

#include "formats.h"
#include "simd_pair.h"

namespace finback::FINBACK_NAMESPACE {

// One group of one token: value = scale * code, code in [-127, 127]. One cache line.
//
// Starting a product's running sum at -offset * (sum of the same columns' codes) makes unsigned codes signed for free.
// Without VNNI these are two sums of 16 bits that wrap; only the final sum has to fit: 16 columns x 127 x 16 = 32512.
struct alignas(64) Activation {
    int8_t codes[32];
    float scale;
    float scaled_sum;   // scale * sum of codes: what a format's min is multiplied with
    Start minus_8;      // offsets of the 4-bit codes,
    Start minus_16;     // the 5-bit ones,
    Start minus_12;     // mxfp4's doubled values,
    Start minus_32[2];  // and the formats with a scale per 16 columns, for each half
};
static_assert(sizeof(Activation) == 64);

// A group whose largest magnitude is below this counts as zero, which keeps 127 / largest finite.
inline constexpr float kSmallestLargest = 1e-30f;

inline void sum_columns(I8x32 codes, Activation& out) {
    int16_t sums[16];
    store_words(sums, quad_sums(codes));
    const int first[2] = {sums[0], sums[8]}, second[2] = {sums[1], sums[9]};
    for (int half = 0; half < 2; ++half) out.minus_32[half] = start_from(-32 * first[half], -32 * second[half]);
    const int a = first[0] + first[1], b = second[0] + second[1];
    out.minus_8 = start_from(-8 * a, -8 * b);
    out.minus_16 = start_from(-16 * a, -16 * b);
    out.minus_12 = start_from(-12 * a, -12 * b);
    out.scaled_sum = out.scale * static_cast<float>(a + b);
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
