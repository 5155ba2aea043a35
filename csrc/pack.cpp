// See pack.h. Compiled once: packing moves bytes, so it needs no instruction set of its own.
#include "pack.h"

#include <algorithm>
#include <cstring>

#include "planes.h"
#include "published.h"
#include "thread_pool.h"

namespace finback {
namespace {

constexpr size_t kPairsPerItem = 4;

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
    for (size_t row = 0; row < rows; ++row) {
        published_codes(format, blocks[row], codes);
        for (size_t g = 0; g < groups; ++g)
            put_codes(info(format).code_bits, tile + g * plane_bytes(format), row, codes + g * kGroupCols);
        put_scales(format, blocks[row], tile + scales_offset(format), row);
    }
}

// The first `rows` rows of a row block, to their tiles among those of a pair; `half` says which row block it is.
struct BlockRows {
    const PublishedWeight& weight;
    size_t first;  // counted over all experts
    size_t rows;
    size_t half;
    uint8_t* pair;

    const uint8_t* row(size_t i) const { return weight.data + (first + i) * row_bytes(weight.format, weight.cols); }
    uint8_t* tile(size_t column) const { return pair + tile_offset(weight.format, half, column); }
};

void pack_integers(const BlockRows& block) {
    const Format format = block.weight.format;
    const FormatInfo& f = info(format);
    const uint8_t* blocks[kBlockRows];
    for (size_t k = 0; k < block.weight.cols; k += f.block_cols) {
        for (size_t i = 0; i < block.rows; ++i) blocks[i] = block.row(i) + k / f.block_cols * f.block_bytes;
        pack_integer_tile(format, blocks, block.rows, block.tile(k));
    }
}

template <size_t Bytes>
void pack_floats(const BlockRows& block) {
    for (size_t i = 0; i < block.rows; ++i) {
        uint8_t* out = block.tile(0) + i * Bytes;
        const uint8_t* row = block.row(i);
        for (size_t k = 0; k < block.weight.cols; ++k) std::memcpy(out + k * kPairRows * Bytes, row + k * Bytes, Bytes);
    }
}

void pack_fp8(const BlockRows& block) {
    const size_t cols = block.weight.cols, scale_cols = ceil_div(cols, kFp8ScaleCols);
    for (size_t first = 0; first < cols; first += kFp8ScaleCols) {
        const size_t width = std::min(kFp8ScaleCols, cols - first);
        uint8_t* tile = block.tile(first);
        for (size_t i = 0; i < block.rows; ++i) {
            const size_t row = block.half * kBlockRows + i;
            for (size_t k = 0; k < width; ++k) tile[fp8_offset(row, k)] = block.row(i)[first + k];
            const float* scale = block.weight.scales + (block.first + i) * scale_cols + first / kFp8ScaleCols;
            std::memcpy(tile + fp8_scale_offset(width) + 4 * row, scale, 4);
        }
    }
}

void pack_block(const BlockRows& block) {
    switch (block.weight.format) {
        case Format::f32:
            return pack_floats<4>(block);
        case Format::f16:
        case Format::bf16:
            return pack_floats<2>(block);
        case Format::f8_e4m3:
            return pack_fp8(block);
        default:
            return pack_integers(block);
    }
}

void pack_pair(const PublishedWeight& w, size_t expert, size_t pair, uint8_t* out) {
    std::memset(out, 0, pair_bytes(w.format, w.cols));
    for (size_t half = 0; half < 2; ++half) {
        const size_t first = pair * kPairRows + half * kBlockRows;
        if (first < w.rows) pack_block({w, expert * w.rows + first, std::min(kBlockRows, w.rows - first), half, out});
    }
}

}  // namespace

void pack(const PublishedWeight& source, uint8_t* tiles) {
    const size_t pairs = row_pairs(source.rows), all = pairs * source.experts;
    const size_t stride = pair_bytes(source.format, source.cols);
    parallel_for(thread_count(), ceil_div(all, kPairsPerItem), [&](size_t item) {
        const size_t end = std::min(all, (item + 1) * kPairsPerItem);
        for (size_t i = item * kPairsPerItem; i < end; ++i) pack_pair(source, i / pairs, i % pairs, tiles + i * stride);
    });
}

}  // namespace finback
