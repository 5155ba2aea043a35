// See pack.h. Compiled once: packing moves bytes, so it needs no instruction set of its own.
#include "pack.h"

#include <algorithm>
#include <cstring>

#include "planes.h"
#include "published.h"
#include "thread_pool.h"

namespace finback {
namespace {

constexpr size_t kRowBlocksPerItem = 8;

size_t subscale_bytes(Format format) {
    switch (format) {
        case Format::q2_k:
        case Format::q6_k:
            return 128;
        case Format::q3_k:
        case Format::q4_k:
        case Format::q5_k:
            return 96;
        default:
            return 0;
    }
}
size_t scales_offset(Format format) { return plane_bytes(format) * (info(format).block_cols / kGroupCols); }

void put_pairs(const SixBitPairs& pairs, uint8_t* to, size_t row) {
    for (size_t g = 0; g < 8; ++g) {
        to[8 * g + row] = static_cast<uint8_t>((pairs.a[g] & 15) | pairs.b[g] << 4);
        uint8_t& high = to[64 + 8 * (g % 4) + row];
        const int bits = (pairs.a[g] >> 4) | (pairs.b[g] >> 4) << 2;
        high = static_cast<uint8_t>(high | bits << (g < 4 ? 0 : 4));
    }
}

void put_scales(Format format, const uint8_t* block, uint8_t* to, size_t row) {
    const PublishedFields at = fields(format);
    switch (format) {
        case Format::mxfp4:
            to[row] = block[0];
            return;
        case Format::q2_k:
        case Format::q6_k:
            for (size_t s = 0; s < 16; ++s) to[8 * s + row] = block[at.scales + s];
            break;
        case Format::q3_k:
        case Format::q4_k:
        case Format::q5_k:
            put_pairs(published_pairs(format, block + at.scales), to, row);
            break;
        default:
            break;
    }
    to += subscale_bytes(format);
    std::memcpy(to + 2 * row, block + at.d, 2);
    if (at.m != 0) std::memcpy(to + 16 + 2 * row, block + at.m, 2);
}

void pack_integer_tile(Format format, const uint8_t* const* blocks, size_t rows, uint8_t* tile) {
    const size_t groups = info(format).block_cols / kGroupCols;
    uint8_t codes[256];
    std::memset(tile, 0, tile_bytes(format));
    for (size_t row = 0; row < rows; ++row) {
        published_codes(format, blocks[row], codes);
        for (size_t g = 0; g < groups; ++g)
            put_codes(info(format).code_bits, tile + g * plane_bytes(format), row, codes + g * kGroupCols);
        put_scales(format, blocks[row], tile + scales_offset(format), row);
    }
}

void pack_integer_block(const PublishedWeight& w, const uint8_t* first_row, size_t rows, uint8_t* out) {
    const FormatInfo& f = info(w.format);
    const uint8_t* blocks[kBlockRows];
    for (size_t tile = 0; tile < w.cols / f.block_cols; ++tile, out += tile_bytes(w.format)) {
        for (size_t row = 0; row < rows; ++row)
            blocks[row] = first_row + row * row_bytes(w.format, w.cols) + tile * f.block_bytes;
        pack_integer_tile(w.format, blocks, rows, out);
    }
}

template <size_t Bytes>
void pack_float_block(const uint8_t* first_row, size_t rows, size_t cols, uint8_t* out) {
    if (rows < kBlockRows) std::memset(out, 0, cols * Bytes * kBlockRows);
    for (size_t row = 0; row < rows; ++row)
        for (size_t k = 0; k < cols; ++k)
            std::memcpy(out + (k * kBlockRows + row) * Bytes, first_row + (row * cols + k) * Bytes, Bytes);
}

void pack_fp8_block(const uint8_t* first_row, const float* scales, size_t rows, size_t cols, uint8_t* out) {
    std::memset(out, 0, row_block_bytes(Format::f8_e4m3, cols));
    for (size_t tile = 0; tile * kFp8ScaleCols < cols; ++tile) {
        const size_t first = tile * kFp8ScaleCols;
        const size_t width = std::min(kFp8ScaleCols, cols - first);
        const size_t code_bytes = ceil_div(width, 4) * 4 * kBlockRows;
        for (size_t row = 0; row < rows; ++row) {
            for (size_t k = 0; k < width; k += 4)
                std::memcpy(out + k * kBlockRows + 4 * row, first_row + row * cols + first + k,
                            std::min<size_t>(4, width - k));
            std::memcpy(out + code_bytes + 4 * row, scales + row * ceil_div(cols, kFp8ScaleCols) + tile, 4);
        }
        out += code_bytes + kBlockRows * sizeof(float);
    }
}

void pack_row_block(const PublishedWeight& w, size_t expert, size_t block, uint8_t* out) {
    const size_t first = expert * w.rows + block * kBlockRows;
    const size_t rows = std::min(kBlockRows, w.rows - block * kBlockRows);
    const uint8_t* source = w.data + first * row_bytes(w.format, w.cols);
    switch (w.format) {
        case Format::f32:
            pack_float_block<4>(source, rows, w.cols, out);
            return;
        case Format::f16:
        case Format::bf16:
            pack_float_block<2>(source, rows, w.cols, out);
            return;
        case Format::f8_e4m3:
            pack_fp8_block(source, w.scales + first * ceil_div(w.cols, kFp8ScaleCols), rows, w.cols, out);
            return;
        default:
            pack_integer_block(w, source, rows, out);
            return;
    }
}

}  // namespace

void pack(const PublishedWeight& source, uint8_t* tiles) {
    const size_t blocks = row_blocks(source.rows);
    const size_t all = blocks * source.experts;
    const size_t stride = row_block_bytes(source.format, source.cols);
    parallel_for(thread_count(), ceil_div(all, kRowBlocksPerItem), [&](size_t item) {
        const size_t end = std::min(all, (item + 1) * kRowBlocksPerItem);
        for (size_t i = item * kRowBlocksPerItem; i < end; ++i)
            pack_row_block(source, i / blocks, i % blocks, tiles + i * stride);
    });
}

}  // namespace finback
