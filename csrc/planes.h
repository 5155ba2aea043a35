// Codes of one row in and out of a group's bit planes, four codes (one quad) per 32-bit word.
#pragma once

#include <cstdint>
#include <cstring>

#include "formats.h"

namespace finback {

inline uint32_t load_word(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}
inline void store_word(uint8_t* p, uint32_t word) { std::memcpy(p, &word, sizeof word); }

// Ors bits [shift, shift + Bits) of 32 codes into row `row` of the plane at `plane`; returns the next plane.
template <int Bits>
uint8_t* put_plane(uint8_t* plane, size_t row, const uint8_t* codes, int shift) {
    constexpr uint32_t mask = 0x01010101u * ((1u << Bits) - 1u);
    for (int v = 0; v < Bits; ++v) {
        uint32_t word = 0;
        for (int t = 0; t < 8 / Bits; ++t)
            word |= ((load_word(codes + 4 * (v + Bits * t)) >> shift) & mask) << (Bits * t);
        store_word(plane + 32 * v + 4 * row, word);
    }
    return plane + 32 * Bits;
}

template <int Bits>
const uint8_t* get_plane(const uint8_t* plane, size_t row, uint8_t* codes, int shift) {
    constexpr uint32_t mask = 0x01010101u * ((1u << Bits) - 1u);
    for (int v = 0; v < Bits; ++v) {
        const uint32_t word = load_word(plane + 32 * v + 4 * row);
        for (int t = 0; t < 8 / Bits; ++t) {
            uint8_t* quad = codes + 4 * (v + Bits * t);
            store_word(quad, load_word(quad) | ((word >> (Bits * t)) & mask) << shift);
        }
    }
    return plane + 32 * Bits;
}

inline void put_codes(int bits, uint8_t* planes, size_t row, const uint8_t* codes) {
    switch (bits) {
        case 2:
            put_plane<2>(planes, row, codes, 0);
            return;
        case 3:
            put_plane<1>(put_plane<2>(planes, row, codes, 0), row, codes, 2);
            return;
        case 4:
            put_plane<4>(planes, row, codes, 0);
            return;
        case 5:
            put_plane<1>(put_plane<4>(planes, row, codes, 0), row, codes, 4);
            return;
        case 6:
            put_plane<2>(put_plane<4>(planes, row, codes, 0), row, codes, 4);
            return;
        default:
            put_plane<8>(planes, row, codes, 0);
            return;
    }
}

// The 32 codes of one row of a group; the destination is overwritten.
inline void get_codes(int bits, const uint8_t* planes, size_t row, uint8_t* codes) {
    std::memset(codes, 0, kGroupCols);
    switch (bits) {
        case 2:
            get_plane<2>(planes, row, codes, 0);
            return;
        case 3:
            get_plane<1>(get_plane<2>(planes, row, codes, 0), row, codes, 2);
            return;
        case 4:
            get_plane<4>(planes, row, codes, 0);
            return;
        case 5:
            get_plane<1>(get_plane<4>(planes, row, codes, 0), row, codes, 4);
            return;
        case 6:
            get_plane<2>(get_plane<4>(planes, row, codes, 0), row, codes, 4);
            return;
        default:
            get_plane<8>(planes, row, codes, 0);
            return;
    }
}

}  // namespace finback
