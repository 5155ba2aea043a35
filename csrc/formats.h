// The weight formats and the one tile layout that every instruction set reads.
//
// A weight [rows, cols] is cut into row blocks of 8 rows, two of which are a pair (the last one padded with zero rows).
// A row block is a sequence of tiles, one per published block of columns, so an integer format takes exactly as many
// bytes as it was published with. The tiles of a pair's two row blocks alternate, so a product that takes both side by
// side reads memory front to back, in one stream. Inside a tile, for every group of 32 columns:
//
//   "quad" j (0..7) is columns 4j..4j+3; one 32-byte vector holds a quad of all 8 rows: byte 4r+i = row r, column 4j+i.
//   A plane of b bits (1, 2, 4 or 8) is b vectors; bits bt .. bt+b-1 of vector v are quad v + bt.
//   A code is cut into planes, low bits first: 5 bits = 4+1, 6 = 4+2, 3 = 2+1.
//
// After the planes of all groups of the tile come the scales, 8 rows side by side:
//
//   q4_0 q5_0 q8_0  d[8] f16             q4_1 q5_1  d[8], m[8] f16             mxfp4  e8m0[8]
//   q4_k q5_k       six-bit pairs (scale, min) of 8 groups, d[8], dmin[8] f16
//   q3_k            six-bit pairs (first half's scale, second half's) of 8 groups, d[8] f16
//   q2_k            (scale | min << 4)[16][8], d[8], dmin[8] f16               q6_k   int8 scale[16][8], d[8] f16
//
// Six-bit pairs (a, b) of group g and row r: byte 8g+r = low nibbles (a | b << 4); byte 64 + 8(g mod 4) + r holds the
// upper two bits, (a | b << 2), in its low nibble for g < 4 and in its high nibble for g >= 4.
//
// Float formats: f32, f16, bf16 have one tile per column (8 values). f8_e4m3 has 64 bytes for a quad of a pair (columns
// padded to 4): columns 0 and 2 of each of the 16 rows, then columns 1 and 3, so that the rows' numbers of one column
// are every second byte. Behind the quads of up to 128 columns come the 16 rows' float32 scales for those columns.
#pragma once

#include <cstddef>
#include <cstdint>

// For inline functions that files of several instruction sets share: a copy that is not inlined could be the one with
// instructions that this machine lacks.
#define FINBACK_INLINE [[gnu::always_inline]] inline

namespace finback {

inline constexpr size_t kBlockRows = 8;  // rows of a row block
inline constexpr size_t kPairRows = 2 * kBlockRows;
inline constexpr size_t kGroupCols = 32;  // columns that share an activation scale
inline constexpr size_t kFp8ScaleCols = 128;

enum class Format : int { f32, f16, bf16, f8_e4m3, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, mxfp4 };
inline constexpr int kFormats = 15;

struct FormatInfo {
    const char* name;
    size_t block_cols;   // columns of a published block (and of a tile)
    size_t block_bytes;  // bytes of a published block of one row; a tile has 8 times as many
    int code_bits;       // 0: a float format
};

inline constexpr FormatInfo kFormatInfo[kFormats] = {
    {"f32", 1, 4, 0},      {"f16", 1, 2, 0},      {"bf16", 1, 2, 0},     {"f8_e4m3", 1, 1, 0},  {"q4_0", 32, 18, 4},
    {"q4_1", 32, 20, 4},   {"q5_0", 32, 22, 5},   {"q5_1", 32, 24, 5},   {"q8_0", 32, 34, 8},   {"q2_k", 256, 84, 2},
    {"q3_k", 256, 110, 3}, {"q4_k", 256, 144, 4}, {"q5_k", 256, 176, 5}, {"q6_k", 256, 210, 6}, {"mxfp4", 32, 17, 4},
};

FINBACK_INLINE constexpr const FormatInfo& info(Format format) { return kFormatInfo[static_cast<int>(format)]; }
FINBACK_INLINE constexpr bool is_integer(Format format) { return info(format).code_bits != 0; }
FINBACK_INLINE constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
// Bytes of one 32-column group's bit planes, 8 rows.
FINBACK_INLINE constexpr size_t plane_bytes(Format format) { return static_cast<size_t>(info(format).code_bits) * 32; }
FINBACK_INLINE constexpr size_t tile_bytes(Format format) { return info(format).block_bytes * kBlockRows; }

// Bytes of one published row. The caller has checked that cols is a multiple of block_cols.
FINBACK_INLINE constexpr size_t row_bytes(Format format, size_t cols) {
    return cols / info(format).block_cols * info(format).block_bytes;
}
// Bytes of one row block of 8 rows.
FINBACK_INLINE constexpr size_t row_block_bytes(Format format, size_t cols) {
    if (format != Format::f8_e4m3) return row_bytes(format, cols) * kBlockRows;
    return ceil_div(cols, 4) * 4 * kBlockRows + ceil_div(cols, kFp8ScaleCols) * kBlockRows * sizeof(float);
}
FINBACK_INLINE constexpr size_t pair_bytes(Format format, size_t cols) { return 2 * row_block_bytes(format, cols); }
// From a pair's first quad of f8_e4m3 to the scales behind `cols` columns.
FINBACK_INLINE constexpr size_t fp8_scale_offset(size_t cols) { return ceil_div(cols, 4) * 4 * kPairRows; }
// From there to the number in a row (0 .. 15 of the pair) and a column that is scaled together with the first.
FINBACK_INLINE constexpr size_t fp8_offset(size_t row, size_t col) {
    return col / 4 * 4 * kPairRows + col % 2 * 2 * kPairRows + 2 * row + col % 4 / 2;
}
// Where in its pair a row block (0 or 1) has the tile whose first column is `first`; the two share those of f8_e4m3.
FINBACK_INLINE constexpr size_t tile_offset(Format format, size_t row_block, size_t first) {
    const size_t tile = format == Format::f8_e4m3 ? 0 : tile_bytes(format);
    return pair_bytes(format, first) + row_block * tile;
}
FINBACK_INLINE constexpr size_t row_blocks(size_t rows) { return ceil_div(rows, kBlockRows); }
FINBACK_INLINE constexpr size_t row_pairs(size_t rows) { return ceil_div(rows, kPairRows); }
FINBACK_INLINE constexpr size_t packed_bytes(Format format, size_t rows, size_t cols, size_t experts) {
    return pair_bytes(format, cols) * row_pairs(rows) * experts;
}

// A packed weight [experts, rows, cols]: what the kernels see of a Matrix. Does not own its bytes.
struct Weight {
    Format format = Format::f32;
    size_t rows = 0;
    size_t cols = 0;
    size_t experts = 1;
    const uint8_t* data = nullptr;

    FINBACK_INLINE size_t block_stride() const { return row_block_bytes(format, cols); }
    // The pair that a row block belongs to.
    FINBACK_INLINE const uint8_t* pair_of(size_t expert, size_t block) const {
        return data + (expert * row_pairs(rows) + block / 2) * pair_bytes(format, cols);
    }
};

}  // namespace finback
