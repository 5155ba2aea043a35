// Absorbed attention on tile registers: the scores of a chunk of positions and the weighted sum of their values, for 16
// query rows at a time.
//
// Latents are bfloat16 in the cache, queries and weights are cut into three bfloat16 numbers each, so the products are
// as exact as those of float32. A row's additions go by its own positions alone, in ascending order (rule R1):
// positions that only other rows of its block see have weight 0 for it, so a latent that is not a number spoils those
// rows, too.
#pragma once

#include "simd_tile.h"

namespace finback::FINBACK_NAMESPACE {

#if defined(__AMX_BF16__)

// Rows of float32 come in whole groups of 16, strides are in elements. Widths of keys are multiples of 32, of values
// multiples of 64.
class LatentTiles {
public:
    static constexpr int kPositions = 256;  // of a chunk

    static bool fit(int64_t key_dim, int64_t value_dim) {
        return key_dim % kTileDepth == 0 && value_dim % kSliceCols == 0;
    }
    static int64_t groups(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }
    // Memory that it takes, in whole cache lines.
    static int64_t floats(int64_t rows, int64_t key_dim) {
        const int64_t words = kSliceWords + kPositions * key_dim + groups(rows) * (kWeightWords + query_words(key_dim));
        return kTileFloats * kSumTiles + words / 2;
    }

    // `memory` begins a cache line.
    LatentTiles(float* memory, int64_t rows, int64_t key_dim, int64_t value_dim)
        : key_dim_(key_dim), value_dim_(value_dim), sums_(memory) {
        slice_ = reinterpret_cast<uint16_t*>(memory + kTileFloats * kSumTiles);
        copied_ = slice_ + kSliceWords;
        weights_ = copied_ + kPositions * key_dim;
        queries_ = weights_ + groups(rows) * kWeightWords;
    }

    // Rows [0, rows) of q become B tiles: for each group of rows and 32 elements, one for each cut. Of 16 elements
    // those at even places come first.
    void take_queries(const float* q, int64_t stride, int rows) {
        uint16_t* to = queries_;
        for (int first = 0; first < rows; first += kTileRows)
            for (int64_t d = 0; d < key_dim_; d += kTileDepth, to += kCuts * kTileWords)
                take_query_columns(q + first * stride + d, stride, rows - first, to);
    }

    // Positions first .. first + 15 of the chunk, of which `count` are left; behind these `keys` repeats.
    template <class T>
    void take_keys(const T* const* keys, int first, int count) {
        count_ = first + (count < kTileRows ? count : kTileRows);
        bool apart = false;
        for (int i = 0; i < kTileRows; ++i) {
            keys_[first + i] = &keys[i]->bits;
            if (i > 0) apart |= keys_[first + i] != keys_[first + i - 1] + key_dim_;
        }
        tiles_[first / kTileRows] = apart ? together(first) : keys_[first];
    }

    // scores[r * kPositions + p] = row r of the group times position p.
    void score(int group, float* scores) {
        for (int first = 0; first < count_; first += kSumTiles * kTileRows) {
            const uint16_t* keys[kSumTiles];
            for (int t = 0; t < kSumTiles; ++t) {
                const int tile = first / kTileRows + t;
                keys[t] = tiles_[tile * kTileRows < count_ ? tile : first / kTileRows];
            }
            score_tiles(queries_ + group * query_words(key_dim_), keys);
            for (int t = 0; t < kSumTiles; ++t) {
                __m512i block[kTileRows];
                for (int i = 0; i < kTileRows; ++i)
                    block[i] = _mm512_loadu_si512(sums_ + t * kTileFloats + i * kTileRows);
                transpose(block);
                for (int r = 0; r < kTileRows; ++r)
                    _mm512_storeu_si512(scores + r * kPositions + first + t * kTileRows, block[r]);
            }
        }
    }

    // acc[r] = the sum over p of weights[r * kPositions + p] * value of position p, for all groups. Of 32 elements
    // those at even places come first.
    void add_values(int groups, const float* weights, float* acc, int64_t stride) {
        for (int g = 0; g < groups; ++g) cut_weights(weights + g * kTileRows * kPositions, weights_ + g * kWeightWords);
        for (int64_t d = 0; d < value_dim_; d += kSliceCols) {
            pair_values(0, d, slice_, 0, kTileDepth / 2);
            for (int g = 0; g < groups; ++g) {
                zero_sums();
                for (int p = 0; p < count_; p += kTileDepth) {
                    // The values of the next step are paired meanwhile: what has just been stored cannot be loaded at
                    // once.
                    const int next = p + kTileDepth;
                    const auto pair_next = [&](int begin) {
                        if (g == 0 && next < count_) pair_values(next, d, paired(next, groups), begin, begin + 4);
                    };
                    const uint16_t* values = paired(p, groups);
                    load_cuts(weights_ + g * kWeightWords + p * kCuts * kTileRows);
                    add_weighted<0>(values);
                    pair_next(0);
                    add_weighted<1>(values);
                    pair_next(4);
                    add_weighted<2>(values);
                    pair_next(8);
                    add_weighted<3>(values);
                    pair_next(12);
                }
                store_sums(acc + g * kTileRows * stride + d, kTileRows, static_cast<size_t>(stride) * sizeof(float));
            }
        }
    }

private:
    static constexpr int64_t kTileFloats = kTileRows * kTileRows, kTileWords = kTileRows * kTileDepth;
    static constexpr int kSumTiles = 4;  // tiles of sums at a time
    static constexpr int64_t kSliceCols = 4 * kTileRows, kSliceWords = kPositions * kSliceCols;
    static constexpr int64_t kWeightWords = kCuts * kTileRows * kPositions;
    static int64_t query_words(int64_t key_dim) { return kCuts * kTileRows * key_dim; }

    void take_query_columns(const float* q, int64_t stride, int rows, uint16_t* to) {
        __m512i columns[kCuts][kTileRows] = {};
        for (int r = 0; r < rows && r < kTileRows; ++r) {
            const float* row = q + r * stride;
            const F32x16 even = join(load(row), load(row + 16)), odd = join(load(row + 8), load(row + 24));
            __m512i cuts[kCuts];
            cut(even.v, odd.v, cuts);  // pairs of neighbours, as the keys lie
            for (int i = 0; i < kCuts; ++i) columns[i][r] = cuts[i];
        }
        for (int i = 0; i < kCuts; ++i) {
            transpose(columns[i]);
            for (int r = 0; r < kTileRows; ++r)
                _mm512_storeu_si512(to + i * kTileWords + r * kTileDepth, columns[i][r]);
        }
    }

    // A copy of sixteen keys that do not lie side by side.
    const uint16_t* together(int first) {
        uint16_t* copy = copied_ + first * key_dim_;
        for (int i = 0; i < kTileRows; ++i)
            std::memcpy(copy + i * key_dim_, keys_[first + i], sizeof(uint16_t) * static_cast<size_t>(key_dim_));
        return copy;
    }

    // A tiles of the weights: for each 32 positions one for each cut.
    void cut_weights(const float* weights, uint16_t* to) const {
        for (int p = 0; p < count_; p += kTileDepth, to += kCuts * kTileWords)
            for (int r = 0; r < kTileRows; ++r) {
                const float* row = weights + r * kPositions + p;
                __m512i cuts[kCuts];
                cut(_mm512_loadu_ps(row), _mm512_loadu_ps(row + kTileDepth / 2), cuts);
                for (int i = 0; i < kCuts; ++i) _mm512_storeu_si512(to + i * kTileWords + r * kTileDepth, cuts[i]);
            }
    }

    // Where the values of positions p .. p + 31 wait: for a single group no longer than until the next but one.
    uint16_t* paired(int p, int groups) const { return slice_ + (groups == 1 ? p % (2 * kTileDepth) : p) * kSliceCols; }

    // Columns [d, d + kSliceCols) of positions first .. first + 31 as four B tiles, zeros for positions that there are
    // not: row i holds positions i and i + 16. Rows begin .. end - 1.
    inline void pair_values(int first, int64_t d, uint16_t* to_tiles, int begin, int end) const {
        for (int i = begin; i < end; ++i) {
            const int p = first + i, q = p + kTileDepth / 2;
            const __mmask16 keep_p = p < count_ ? 0xffff : 0, keep_q = q < count_ ? 0xffff : 0;
            uint16_t* to = to_tiles + i * kTileDepth;
            for (int64_t j = 0; j < kSliceCols; j += kTileDepth, to += 2 * kTileWords) {
                const __m512i a = _mm512_maskz_loadu_epi32(keep_p, keys_[p] + d + j);
                const __m512i b = _mm512_maskz_loadu_epi32(keep_q, keys_[q] + d + j);
                _mm512_storeu_si512(to, lower_halves(a, b));
                _mm512_storeu_si512(to + kTileWords, upper_halves(a, b));
            }
        }
    }

    void score_tiles(const uint16_t* query, const uint16_t* const (&keys)[kSumTiles]) {
        const size_t row_bytes = static_cast<size_t>(key_dim_) * sizeof(uint16_t);
        zero_sums();
        for (int64_t d = 0; d < key_dim_; d += kTileDepth, query += kCuts * kTileWords) {
            load_cuts(query);
            add_scores<0>(keys[0] + d, row_bytes);
            add_scores<1>(keys[1] + d, row_bytes);
            add_scores<2>(keys[2] + d, row_bytes);
            add_scores<3>(keys[3] + d, row_bytes);
        }
        store_sums(sums_, kTileFloats, 64);
    }

    // Tiles 0 .. 3 are sums, 4 what passes by, 5 .. 7 the cuts of what stays.
    static void zero_sums() {
        tile_zero<0>();
        tile_zero<1>();
        tile_zero<2>();
        tile_zero<3>();
    }
    // From one tile to the next it is `next` elements, from row to row `row_bytes`.
    static void store_sums(float* to, int64_t next, size_t row_bytes) {
        tile_store<0>(to, row_bytes);
        tile_store<1>(to + next, row_bytes);
        tile_store<2>(to + 2 * next, row_bytes);
        tile_store<3>(to + 3 * next, row_bytes);
    }
    static void load_cuts(const uint16_t* cuts) {
        tile_load<5>(cuts, 64);
        tile_load<6>(cuts + kTileWords, 64);
        tile_load<7>(cuts + 2 * kTileWords, 64);
    }
    template <int C>
    static void add_scores(const uint16_t* keys, size_t row_bytes) {
        tile_load<4>(keys, row_bytes);
        tile_dot<C, 4, 5>();
        tile_dot<C, 4, 6>();
        tile_dot<C, 4, 7>();
    }
    template <int C>
    static void add_weighted(const uint16_t* values) {
        tile_load<4>(values + C * kTileWords, 64);
        tile_dot<C, 5, 4>();
        tile_dot<C, 6, 4>();
        tile_dot<C, 7, 4>();
    }

    TileRegisters registers_;
    int64_t key_dim_, value_dim_;
    int count_ = 0;                                  // positions of the chunk in work
    const uint16_t* keys_[kPositions];               // theirs
    const uint16_t* tiles_[kPositions / kTileRows];  // 16 positions each, side by side
    float* sums_;
    uint16_t *slice_, *copied_, *weights_, *queries_;
};

#endif

}  // namespace finback::FINBACK_NAMESPACE
