// See pack.h: float32 values of packed rows, by the published formulas in the published order of roundings.
#include <algorithm>
#include <cstring>

#include "pack.h"
#include "planes.h"
#include "thread_pool.h"

namespace finback {
namespace {

float bits_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
float half_float(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, sizeof h);
    const uint32_t sign = (h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    const float scaled = bits_float(magnitude << 13) * bits_float(0x77800000u);  // 2^112 rebiases the exponent
    uint32_t bits;
    std::memcpy(&bits, &scaled, sizeof bits);
    return bits_float(sign | bits);
}
// e4m3: 1 sign, 4 exponent (bias 7), 3 mantissa bits; 2^120 rebiases the exponent. 0x7f and 0xff are NaN.
float fp8_float(uint8_t x) {
    const uint32_t magnitude = x & 0x7fu;
    const uint32_t sign = (x & 0x80u) << 24;
    if (magnitude == 0x7f) return bits_float(sign | 0x7fc00000u);
    return bits_float(sign | (magnitude << 20)) * bits_float(0x7b800000u);
}
// Half of 2^(e - 127), because the code table is doubled to integers.
float mx_scale(uint8_t e) { return bits_float(e < 2 ? 0x00200000u << e : (e - 1u) << 23); }

constexpr int kMxValues[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Scale and offset of 16 columns: value = scale * (code - offset) - min.
struct Affine {
    float scale;
    float min;
};

Affine six_bit_affine(const uint8_t* pairs, size_t row, size_t sixteenth, bool is_q3) {
    const size_t g = sixteenth / 2;
    const uint8_t low = pairs[8 * g + row];
    const int high = pairs[64 + 8 * (g % 4) + row] >> (g < 4 ? 0 : 4);
    const int a = (low & 15) | (high & 3) << 4;
    const int b = (low >> 4) | ((high >> 2) & 3) << 4;
    const float d = half_float(pairs + 96 + 2 * row);
    if (is_q3) return {d * static_cast<float>((sixteenth % 2 == 0 ? a : b) - 32), 0.0f};
    return {d * static_cast<float>(a), half_float(pairs + 112 + 2 * row) * static_cast<float>(b)};
}

Affine affine(Format format, const uint8_t* scales, size_t row, size_t sixteenth) {
    const uint8_t sub = format == Format::q2_k || format == Format::q6_k ? scales[8 * sixteenth + row] : uint8_t{0};
    switch (format) {
        case Format::mxfp4:
            return {mx_scale(scales[row]), 0.0f};
        case Format::q4_1:
        case Format::q5_1:
            return {half_float(scales + 2 * row), -half_float(scales + 16 + 2 * row)};
        case Format::q2_k:
            return {half_float(scales + 128 + 2 * row) * static_cast<float>(sub & 15),
                    half_float(scales + 144 + 2 * row) * static_cast<float>(sub >> 4)};
        case Format::q6_k:
            return {half_float(scales + 128 + 2 * row) * static_cast<float>(static_cast<int8_t>(sub)), 0.0f};
        case Format::q3_k:
            return six_bit_affine(scales, row, sixteenth, true);
        case Format::q4_k:
        case Format::q5_k:
            return six_bit_affine(scales, row, sixteenth, false);
        default:
            return {half_float(scales + 2 * row), 0.0f};
    }
}

int signed_code(Format format, uint8_t code) {
    switch (format) {
        case Format::q4_0:
            return code - 8;
        case Format::q5_0:
            return code - 16;
        case Format::q8_0:
            return static_cast<int8_t>(code);
        case Format::q3_k:
            return code - 4;
        case Format::q6_k:
            return code - 32;
        case Format::mxfp4:
            return kMxValues[code];
        default:
            return code;
    }
}

bool has_min(Format format) {
    return format == Format::q4_1 || format == Format::q5_1 || format == Format::q2_k || format == Format::q4_k ||
           format == Format::q5_k;
}

void unpack_integer_tile(Format format, const uint8_t* tile, size_t row, float* out) {
    const size_t groups = info(format).block_cols / kGroupCols;
    uint8_t codes[kGroupCols];
    for (size_t g = 0; g < groups; ++g) {
        get_codes(info(format).code_bits, tile + g * plane_bytes(format), row, codes);
        for (size_t half = 0; half < 2; ++half) {
            const Affine f = affine(format, tile + groups * plane_bytes(format), row, 2 * g + half);
            for (size_t k = 16 * half; k < 16 * half + 16; ++k) {
                const float product = f.scale * static_cast<float>(signed_code(format, codes[k]));
                *out++ = has_min(format) ? product - f.min : product;
            }
        }
    }
}

void unpack_fp8_tiles(const uint8_t* tile, size_t row, size_t width, float* out) {
    float scale;
    std::memcpy(&scale, tile + fp8_scale_offset(width) + 4 * row, sizeof scale);
    for (size_t k = 0; k < width; ++k) out[k] = fp8_float(tile[fp8_offset(row, k)]) * scale;
}

void unpack_row(const Weight& w, size_t expert, size_t row, float* out) {
    const size_t block = row / kBlockRows, r = row % kBlockRows;
    const uint8_t* pair = w.pair_of(expert, block);
    const auto tile = [&](size_t column) { return pair + tile_offset(w.format, block % 2, column); };
    switch (w.format) {
        case Format::f32:
            for (size_t k = 0; k < w.cols; ++k) std::memcpy(out + k, tile(0) + 4 * (k * kPairRows + r), 4);
            return;
        case Format::f16:
            for (size_t k = 0; k < w.cols; ++k) out[k] = half_float(tile(0) + 2 * (k * kPairRows + r));
            return;
        case Format::bf16:
            for (size_t k = 0; k < w.cols; ++k) {
                uint16_t h;
                std::memcpy(&h, tile(0) + 2 * (k * kPairRows + r), 2);
                out[k] = bits_float(static_cast<uint32_t>(h) << 16);
            }
            return;
        case Format::f8_e4m3:
            for (size_t k = 0; k < w.cols; k += kFp8ScaleCols)
                unpack_fp8_tiles(tile(k), row % kPairRows, std::min(kFp8ScaleCols, w.cols - k), out + k);
            return;
        default:
            for (size_t k = 0; k < w.cols; k += info(w.format).block_cols)
                unpack_integer_tile(w.format, tile(k), r, out + k);
    }
}

// Enough values per thread to be worth waking it.
int threads_for(size_t values) { return values < 65536 ? 1 : thread_count(); }

}  // namespace

void unpack_rows(const Weight& weight, size_t expert, size_t first, size_t count, float* out) {
    parallel_for(threads_for(count * weight.cols), count,
                 [&](size_t i) { unpack_row(weight, expert, first + i, out + i * weight.cols); });
}

void take_rows(const Weight& weight, const int64_t* ids, size_t count, float* out) {
    parallel_for(threads_for(count * weight.cols), count,
                 [&](size_t i) { unpack_row(weight, 0, static_cast<size_t>(ids[i]), out + i * weight.cols); });
}

}  // namespace finback
