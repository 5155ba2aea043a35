// The published block layouts (GGUF): where a block keeps its codes and its scales.
#pragma once

#include <cstdint>
#include <cstring>

#include "formats.h"

namespace finback {

// Byte offsets of the fields of one published block; absent ones are unused.
struct PublishedFields {
    size_t d, m, high, low, scales;
};
constexpr PublishedFields fields(Format format) {
    switch (format) {
        case Format::q4_0:
            return {0, 0, 0, 2, 0};
        case Format::q4_1:
            return {0, 2, 0, 4, 0};
        case Format::q5_0:
            return {0, 0, 2, 6, 0};
        case Format::q5_1:
            return {0, 2, 4, 8, 0};
        case Format::q8_0:
            return {0, 0, 0, 2, 0};
        case Format::q2_k:
            return {80, 82, 0, 16, 0};
        case Format::q3_k:
            return {108, 0, 0, 32, 96};
        case Format::q4_k:
            return {0, 2, 0, 16, 4};
        case Format::q5_k:
            return {0, 2, 16, 48, 4};
        case Format::q6_k:
            return {208, 0, 128, 0, 192};
        default:
            return {0, 0, 0, 1, 0};  // mxfp4
    }
}

// One nibble per column in halves of 16: column j in the low nibble of byte j, column j + 16 in the high one.
inline void codes_of_halves(const uint8_t* qs, uint8_t* codes) {
    for (int j = 0; j < 16; ++j) codes[j] = qs[j] & 15;
    for (int j = 0; j < 16; ++j) codes[j + 16] = static_cast<uint8_t>(qs[j] >> 4);
}

// Bit j of a 32-bit word is bit 4 of column j.
inline void add_fifth_bits(const uint8_t* qh, uint8_t* codes) {
    uint32_t bits;
    std::memcpy(&bits, qh, sizeof bits);
    for (int j = 0; j < 32; ++j) codes[j] = static_cast<uint8_t>(codes[j] | ((bits >> j) & 1u) << 4);
}

// K-quants with nibbles: 32 bytes hold the low nibbles of group 2i and the high nibbles of group 2i + 1.
inline void codes_of_nibble_runs(const uint8_t* qs, uint8_t* codes) {
    for (int run = 0; run < 4; ++run, qs += 32, codes += 64) {
        for (int j = 0; j < 32; ++j) codes[j] = qs[j] & 15;
        for (int j = 0; j < 32; ++j) codes[32 + j] = static_cast<uint8_t>(qs[j] >> 4);
    }
}

// K-quants with bit pairs: 32 bytes hold four groups of 32 columns, at shifts 0, 2, 4, 6; `shift` is the target's.
inline void add_pair_runs(const uint8_t* qs, uint8_t* codes, int shift) {
    for (int group = 0; group < 8; ++group)
        for (int j = 0; j < 32; ++j) {
            const int pair = (qs[32 * (group / 4) + j] >> (2 * (group % 4))) & 3;
            codes[32 * group + j] = static_cast<uint8_t>(codes[32 * group + j] | pair << shift);
        }
}

// Bit g of byte j is one bit of column j of group g; `shift` is the target's.
inline void add_bit_runs(const uint8_t* qh, uint8_t* codes, int shift) {
    for (int group = 0; group < 8; ++group)
        for (int j = 0; j < 32; ++j)
            codes[32 * group + j] = static_cast<uint8_t>(codes[32 * group + j] | ((qh[j] >> group) & 1) << shift);
}

// q6_k: in each half, 64 bytes hold the low nibbles of groups 0, 1 (low) and 2, 3 (high).
inline void codes_of_q6_k(const uint8_t* ql, const uint8_t* qh, uint8_t* codes) {
    for (int half = 0; half < 2; ++half)
        for (int j = 0; j < 64; ++j) {
            codes[128 * half + j] = ql[64 * half + j] & 15;
            codes[128 * half + 64 + j] = static_cast<uint8_t>(ql[64 * half + j] >> 4);
        }
    add_pair_runs(qh, codes, 4);
}

// The unsigned codes of one published block (q8_0: the int8 as a byte), block_cols of them.
inline void published_codes(Format format, const uint8_t* block, uint8_t* codes) {
    const PublishedFields at = fields(format);
    switch (format) {
        case Format::q8_0:
            std::memcpy(codes, block + at.low, 32);
            return;
        case Format::q5_0:
        case Format::q5_1:
            codes_of_halves(block + at.low, codes);
            add_fifth_bits(block + at.high, codes);
            return;
        case Format::q2_k:
        case Format::q3_k:
            std::memset(codes, 0, 256);
            add_pair_runs(block + at.low, codes, 0);
            if (format == Format::q3_k) add_bit_runs(block + at.high, codes, 2);
            return;
        case Format::q4_k:
            codes_of_nibble_runs(block + at.low, codes);
            return;
        case Format::q5_k:
            codes_of_nibble_runs(block + at.low, codes);
            add_bit_runs(block + at.high, codes, 4);
            return;
        case Format::q6_k:
            codes_of_q6_k(block + at.low, block + at.high, codes);
            return;
        default:
            codes_of_halves(block + at.low, codes);
            return;
    }
}

// Six-bit pairs (a, b) of 8 groups: (scale, min) for q4_k and q5_k, (first 16 columns, second 16) for q3_k.
struct SixBitPairs {
    uint8_t a[8], b[8];
};
inline SixBitPairs published_pairs(Format format, const uint8_t* s) {
    SixBitPairs out;
    for (int j = 0; j < 16; ++j) {
        uint8_t& q3 = j % 2 == 0 ? out.a[j / 2] : out.b[j / 2];
        q3 = static_cast<uint8_t>((j < 8 ? s[j] & 15 : s[j - 8] >> 4) | ((s[8 + j % 4] >> (2 * (j / 4))) & 3) << 4);
    }
    if (format == Format::q3_k) return out;
    for (int j = 0; j < 4; ++j) {
        out.a[j] = s[j] & 63;
        out.b[j] = s[j + 4] & 63;
        out.a[j + 4] = static_cast<uint8_t>((s[j + 8] & 15) | (s[j] >> 6) << 4);
        out.b[j + 4] = static_cast<uint8_t>((s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
    }
    return out;
}

}  // namespace finback
