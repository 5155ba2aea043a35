// See product.h.
//
// Few tokens stream the weights: unpack a group, multiply, go on; memory is the limit. More tokens share the unpacking:
// a panel of a pair of row blocks and some columns is unpacked into the first-level cache, then all tokens go over it,
// a tile at a time. Sums wait in memory between panels, in float32, so cutting the columns changes no result.
#include "product.h"

#include "micro.h"
#include "work.h"

namespace finback::FINBACK_NAMESPACE {
namespace {

constexpr size_t kTokenBlock = 128;        // tokens whose sums wait between two panels
constexpr size_t kPanelPairs = 4;          // pairs of row blocks that take turns over the same columns
constexpr size_t kIntegerPanelCols = 512;  // 16 groups: two row blocks unpack to 10 .. 14 KiB
constexpr size_t kWordPanelCols = 256;     // two row blocks as words take 9 KiB, a block of tokens 64
constexpr size_t kFloatPanelCols = 128;    // two row blocks unpack to 8 KiB; also what f8_e4m3 scales together
constexpr size_t kStreamedTokens = kTileTokens == 8 ? 16 : 4;  // unpacking twice costs less than a panel
constexpr int kNarrowTile = kTileTokens == 8 ? 6 : 4;          // five or six tokens need no tile of eight

// Whether some streams of weights are asked for into the first-level cache: four and eight are read only by processors
// that have room to wait there (streams.h).
constexpr bool in_first_level(size_t streams) { return streams > 2; }
// How far ahead each of some streams of weights is asked for; multiples of 4096 are slower. Several streams share a
// distance, but go ahead by the tiles of a pair more: a tile's scales lie behind its codes and are read first.
constexpr size_t prefetch_bytes(Format format, size_t streams) {
    if (streams == 1) return 6144;
    return (in_first_level(streams) ? 10240 : 6144) / (streams + 1) + 2 * tile_bytes(format);
}

// The inputs of a register tile.
template <int T>
struct Tokens {
    const Activation* groups[T];
    const float* values[T];
};

// The same place in R pairs of row blocks.
template <size_t R>
struct Pairs {
    const uint8_t* at[R];
};

// The tiles of N row blocks of a pair, the first of which is at `tile`.
template <Format F, size_t N>
inline Places<N> tiles_of(const uint8_t* tile) {
    if constexpr (N == 1)
        return {tile};
    else
        return {tile, tile + tile_bytes(F)};
}

// Up to the end of the last register tile.
inline size_t padded_tokens(size_t tokens) { return ceil_div(tokens, kTileTokens) * kTileTokens; }

// What one call multiplies, with the parts that do not change from row block to row block.
struct Job {
    const Weight& weight;
    size_t expert;
    const Input& in;
    const Output& out;
    size_t first;  // row block that output row 0 belongs to

    const uint8_t* pair(size_t block) const { return weight.pair_of(expert, block); }
    // The tiles of R pairs from row block `block` on whose first column is `first`; from `end` on the last pair's
    // again.
    template <size_t R>
    Pairs<R> pairs(Format format, size_t block, size_t end, size_t first) const {
        Pairs<R> p;
        for (size_t r = 0; r < R; ++r)
            p.at[r] = pair(block + 2 * r < end ? block + 2 * r : end - 1) + pair_bytes(format, first);
        return p;
    }
    size_t row_of_input(size_t token) const {
        return in.index != nullptr ? static_cast<size_t>(in.index[token]) : token;
    }
    // Tokens first .. first + T - 1; those beyond the `count` that there are repeat the last one.
    template <int T, bool Integer>
    Tokens<T> tokens(size_t first, size_t count) const {
        Tokens<T> out{};
        for (size_t t = 0; t < T; ++t) {
            const size_t row = row_of_input(first + (t < count ? t : count - 1));
            if constexpr (Integer)
                out.groups[t] = in.groups + row * in.group_stride;
            else
                out.values[t] = in.values + row * in.value_stride;
        }
        return out;
    }
};

// ---- results

void store_some(const float* values, size_t token, size_t row, size_t count, const Output& to) {
    float* out = to.out + token * to.stride + row;
    for (size_t r = 0; r < count; ++r) {
        float value = values[r];
        if (to.bias != nullptr) value += to.bias[row + r];
        if (to.add != nullptr) value += to.add[token * to.add_stride + row + r];
        out[r] = value;
    }
}

void store_sum(const Job& job, size_t block, size_t token, F32x8 sum) {
    const Output& to = job.out;
    const size_t row = (block - job.first) * kBlockRows;
    const size_t left = job.weight.rows - block * kBlockRows;
    if (left < kBlockRows) {
        float values[kBlockRows];
        store(values, sum);
        store_some(values, token, row, left, to);
        return;
    }
    if (to.bias != nullptr) sum = sum + load(to.bias + row);
    if (to.add != nullptr) sum = sum + load(to.add + token * to.add_stride + row);
    store(to.out + token * to.stride + row, sum);
}

template <size_t N>
void store_sums(const Job& job, size_t block, size_t end, size_t token, Floats<N> sums) {
    if constexpr (N == 1) {
        if (block < end) store_sum(job, block, token, sums);
    } else {
        store_sums<1>(job, block, end, token, lower(sums));
        store_sums<1>(job, block + 1, end, token, upper(sums));
    }
}

// Tokens begin .. begin + count - 1 of a tile.
template <size_t N, int T>
void store_tile(const Job& job, size_t block, size_t end, size_t begin, size_t count, const Sums<N, T>& sums) {
    for (size_t t = 0; t < T && t < count; ++t) store_sums<N>(job, block, end, begin + t, sums.at[t]);
}

// ---- columns of float formats

// Column k + I behind the first tiles of a pair; k is a multiple of 4. f8_e4m3, 2^8 times smaller here, pads with zeros
// to 4 columns, the others have no more than they have.
template <Format F, int I>
inline F32x16 column(const uint8_t* at, size_t k) {
    if constexpr (F == Format::f8_e4m3) {
        return fp8_to_float<I / 2, I % 2>(load_pair_bytes(at + k * kPairRows));
    } else {
        return load_each(tiles_of<F, 2>(at + (k + I) * 2 * tile_bytes(F)), [](const uint8_t* p) {
            if constexpr (F == Format::f32) return load(reinterpret_cast<const float*>(p));
            if constexpr (F == Format::f16) return load_f16(reinterpret_cast<const uint16_t*>(p));
            if constexpr (F == Format::bf16) return load_bf16(reinterpret_cast<const uint16_t*>(p));
        });
    }
}

// The rows' scales behind `count` columns of f8_e4m3, 2^8 times larger.
inline F32x16 fp8_scale(const uint8_t* at, size_t count) {
    const float* scales = reinterpret_cast<const float*>(at + fp8_scale_offset(count));
    return join(load(scales), load(scales + kBlockRows)) * set1<2>(256.0f);
}

// Calls body(first, count) for runs of `step` columns; the last one may be shorter.
template <class Body>
inline void for_runs(size_t cols, size_t step, Body body) {
    for (size_t first = 0; first < cols; first += step) body(first, cols - first < step ? cols - first : step);
}

// ---- few tokens: straight from the tiles

// R pairs that are read side by side, each a stream of its own: memory answers several streams faster than one, and
// chains of additions hide each other.
template <Format F, size_t R>
struct Streams {
    Pairs<R> pairs;
    size_t length;  // of each in bytes

    Streams(const Job& job, size_t block, size_t end)
        : pairs(job.pairs<R>(F, block, end, 0)), length(pair_bytes(F, job.weight.cols)) {}

    // Asks for what stream r reads some time after `offset`: behind its end, R pairs further. Reading past the end of a
    // weight is harmless: a prefetch never faults.
    template <size_t Bytes, size_t Step = 64>
    FINBACK_INLINE void prefetch_ahead(size_t r, size_t offset) const {
        const size_t ahead = offset + prefetch_bytes(F, R);
        const uint8_t* at = pairs.at[r] + ahead + (ahead < length ? 0 : (R - 1) * length);
        for (size_t i = 0; i < Bytes; i += Step) prefetch<in_first_level(R)>(at + i);
    }
};

// R pairs of row blocks, which take turns after each group of columns. One or two tokens gain from two row blocks in
// one register only where they read several streams; of a single pair those take turns after each tile, in the order of
// memory.
template <Format F, size_t R, int T>
void stream_integers(const Job& job, size_t block, size_t end, size_t begin, size_t count, const Tokens<T>& tokens) {
    constexpr size_t n = T <= 2 && (R == 1 || kWide == 1) ? 1 : 2, groups = info(F).block_cols / kGroupCols;
    constexpr size_t bytes = n * tile_bytes(F) / groups, groups_of_turn = R == 1 ? groups : 1;
    // Of one stream eight bits pass faster than lines can be asked for one by one; their neighbours come along.
    constexpr size_t step = R == 1 && info(F).code_bits == 8 && T == 1 ? 128 : 64;
    const Streams<F, R> streams(job, block, end);
    Sums<n, T> sums[R][2 / n] = {};
    for (size_t at = 0, offset = 0; at < job.weight.cols / kGroupCols; at += groups, offset += 2 * tile_bytes(F)) {
        const auto tile = [&](size_t r, size_t i) {
            return tiles_of<F, n>(streams.pairs.at[r] + offset + i * tile_bytes(F));
        };
        TileScales<F, n> shared[R][2 / n];
        for (size_t r = 0; r < R; ++r)
            for (size_t i = 0; i < 2 / n; ++i) read_scales<F, n>(tile(r, i), shared[r][i]);
        for (size_t turn = 0; turn < groups; turn += groups_of_turn) {
            FINBACK_UNROLL(8)
            for (size_t r = 0; r < R; ++r) {
                FINBACK_UNROLL(2)
                for (size_t i = 0; i < 2 / n; ++i) {
                    for (size_t g = turn; g < turn + groups_of_turn; ++g) {
                        streams.template prefetch_ahead<bytes, step>(r, offset + i * tile_bytes(F) + g * bytes);
                        Group<F, n> group;
                        unpack_group<F, n>(tile(r, i), shared[r][i], g, group);
                        add_group<F, n, T>(group, tokens.groups, at + g, sums[r][i]);
                    }
                }
            }
        }
    }
    for (size_t r = 0; r < R; ++r)
        for (size_t i = 0; i < 2 / n; ++i) store_tile(job, block + 2 * r + i, end, begin, count, sums[r][i]);
}

// A float format has one chain of additions for each token and each row block.
template <Format F, int I, size_t R, int T>
inline void stream_column(const Pairs<R>& pairs, const float* const (&x)[T], size_t k, Sums<2, T> (&sums)[R]) {
    F32x16 w[R];
    FINBACK_UNROLL(4)
    for (size_t r = 0; r < R; ++r) w[r] = column<F, I>(pairs.at[r], k);
    FINBACK_UNROLL(8)
    for (int t = 0; t < T; ++t) {
        const F32x16 value = set1<2>(x[t][k + I]);
        FINBACK_UNROLL(4)
        for (size_t r = 0; r < R; ++r) sums[r].at[t] = fma(w[r], value, sums[r].at[t]);
    }
}

// Columns first .. first + count - 1; x begins with the first of them.
template <Format F, size_t R, int T>
inline void stream_columns(const Streams<F, R>& streams, const float* const (&x)[T], size_t first, size_t count,
                           Sums<2, T> (&sums)[R]) {
    constexpr size_t bytes = info(F).block_bytes * kPairRows;
    const size_t offset = pair_bytes(F, first);
    Pairs<R> pairs;
    for (size_t r = 0; r < R; ++r) pairs.at[r] = streams.pairs.at[r] + offset;
    size_t k = 0;
    for (; k + 4 <= count; k += 4) {
        FINBACK_UNROLL(4)
        for (size_t r = 0; r < R; ++r) streams.template prefetch_ahead<4 * bytes>(r, offset + k * bytes);
        stream_column<F, 0>(pairs, x, k, sums);
        stream_column<F, 1>(pairs, x, k, sums);
        stream_column<F, 2>(pairs, x, k, sums);
        stream_column<F, 3>(pairs, x, k, sums);
    }
    if (k < count) stream_column<F, 0>(pairs, x, k, sums);
    if (k + 1 < count) stream_column<F, 1>(pairs, x, k, sums);
    if (k + 2 < count) stream_column<F, 2>(pairs, x, k, sums);
    if constexpr (F == Format::f8_e4m3)  // a missing line, the scales', costs as much as all columns
        for (size_t r = 0; r < R; ++r) streams.template prefetch_ahead<64>(r, offset + k * bytes);
}

template <Format F, size_t R, int T>
void stream_floats(const Job& job, size_t block, size_t end, size_t begin, size_t count, const Tokens<T>& tokens) {
    const Streams<F, R> streams(job, block, end);
    Sums<2, T> sums[R] = {};
    for_runs(job.weight.cols, kFloatPanelCols, [&](size_t first, size_t cols) {
        const float* x[T];
        for (int t = 0; t < T; ++t) x[t] = tokens.values[t] + first;
        if constexpr (F == Format::f8_e4m3) {
            Sums<2, T> part[R] = {};
            stream_columns<F>(streams, x, first, cols, part);
            for (size_t r = 0; r < R; ++r)
                scale_into(part[r], fp8_scale(streams.pairs.at[r] + pair_bytes(F, first), cols), sums[r]);
        } else {
            stream_columns<F>(streams, x, first, cols, sums);
        }
    });
    for (size_t r = 0; r < R; ++r) store_tile(job, block + 2 * r, end, begin, count, sums[r]);
}

// Pairs that T tokens read side by side where memory likes several streams: as many as registers hold sums of, and the
// first-level cache what was asked for.
template <Format F, int T>
constexpr size_t most_pairs() {
    if constexpr (kWide == 1) return T > 2 ? 1 : is_integer(F) ? 4 : 2;
    if constexpr (!is_integer(F)) return 4;
    if constexpr (T > 4) return info(F).code_bits == 8 ? 2 : 1;
    return T <= 2 && info(F).block_cols == kGroupCols ? kMostStreams : 4;
}
// And where it does not: one, but memory brings f8_e4m3 faster than one chain of additions takes it.
template <Format F, int T>
constexpr size_t least_pairs() {
    return F == Format::f8_e4m3 && T <= 2 ? 2 : 1;
}

// Row blocks [block, end): R pairs at once, then what is left by fewer.
template <Format F, size_t R, int T>
void stream_pairs(const Job& job, size_t block, size_t end, size_t begin, size_t count, const Tokens<T>& tokens) {
    for (; R == 1 ? block < end : block + 2 * R <= end; block += 2 * R) {
        if constexpr (is_integer(F))
            stream_integers<F, R>(job, block, end, begin, count, tokens);
        else
            stream_floats<F, R>(job, block, end, begin, count, tokens);
    }
    if constexpr (R > 1) stream_pairs<F, R / 2>(job, block, end, begin, count, tokens);
}

template <Format F, int T>
void stream_tokens(const Job& job, size_t first, size_t end, size_t begin, size_t count) {
    const Tokens<T> tokens = job.tokens<T, is_integer(F)>(begin, count);
    if (weight_streams() > 1)
        stream_pairs<F, most_pairs<F, T>()>(job, first, end, begin, count, tokens);
    else
        stream_pairs<F, least_pairs<F, T>()>(job, first, end, begin, count, tokens);
}

// Row blocks [first, end) by tokens begin .. begin + count - 1, of which a register tile has room for all.
template <Format F>
void stream(const Job& job, size_t first, size_t end, size_t begin, size_t count) {
    switch (count) {
        case 1:
            return stream_tokens<F, 1>(job, first, end, begin, count);
        case 2:
            return stream_tokens<F, 2>(job, first, end, begin, count);
        case 3:
            return stream_tokens<F, 3>(job, first, end, begin, count);
        case 4:
            return stream_tokens<F, 4>(job, first, end, begin, count);
        case 5:
        case 6:
            return stream_tokens<F, kNarrowTile>(job, first, end, begin, count);
        default:
            return stream_tokens<F, kTileTokens>(job, first, end, begin, count);
    }
}

// ---- many tokens: panels of one or two pairs of row blocks

template <Format F>
struct IntegerPanel {
    static constexpr size_t kCols = kIntegerPanelCols, kPairs = 1;
    Group<F, 2> groups[kCols / kGroupCols];

    void load(const Pairs<1>& pair, size_t count) {
        constexpr size_t per_tile = info(F).block_cols / kGroupCols;
        Places<2> tile = tiles_of<F, 2>(pair.at[0]);
        for (size_t g = 0; g < count / kGroupCols; g += per_tile, tile = tile + 2 * tile_bytes(F)) {
            TileScales<F, 2> shared;
            read_scales<F, 2>(tile, shared);
            for (size_t i = 0; i < per_tile; ++i) unpack_group<F, 2>(tile, shared, i, groups[g + i]);
        }
    }

    template <int T>
    void multiply(const Tokens<T>& tokens, size_t, size_t first, size_t count, Sums<2, T> (&sums)[1]) const {
        const Activation* a[T];
        for (int t = 0; t < T; ++t) a[t] = tokens.groups[t] + first / kGroupCols;
        for (size_t g = 0; g < count / kGroupCols; ++g) add_group<F, 2, T>(groups[g], a, g, sums[0]);
    }
};

// Signed bytes as words, the tokens' too: in bytes, each product would move the sign over and widen its own sum.
template <Format F>
struct WordPanel {
    static constexpr size_t kCols = kWordPanelCols, kPairs = 1;
    Words<2> words[kCols / kGroupCols][16];  // columns 0 and 2 of a group's quads, then columns 1 and 3
    Floats<2> scale[kCols / kGroupCols];
    alignas(64) int16_t widened[kTokenBlock][kCols];  // tokens in the same order of columns

    // Tokens begin .. begin + tokens - 1; the last one again where the last tile has no more.
    void widen_tokens(const Job& job, size_t begin, size_t tokens, size_t first, size_t count) {
        for (size_t t = 0; t < padded_tokens(tokens); ++t) {
            const size_t row = job.row_of_input(begin + (t < tokens ? t : tokens - 1));
            const Activation* a = job.in.groups + row * job.in.group_stride;
            for (size_t g = 0; g < count / kGroupCols; ++g) {
                const I8x32 codes = load_bytes(a[first / kGroupCols + g].codes);
                store_words(widened[t] + g * kGroupCols, even_bytes(codes));
                store_words(widened[t] + g * kGroupCols + 16, odd_bytes(codes));
            }
        }
    }

    void load(const Pairs<1>& pair, size_t count) {
        Places<2> tile = tiles_of<F, 2>(pair.at[0]);
        for (size_t g = 0; g < count / kGroupCols; ++g, tile = tile + 2 * tile_bytes(F)) {
            for (size_t j = 0; j < 8; ++j) {
                const Bytes<2> quads = load_bytes(tile + 32 * j);
                words[g][j] = even_bytes(quads);
                words[g][8 + j] = odd_bytes(quads);
            }
            scale[g] = load_f16(tile + plane_bytes(F));
        }
    }

    template <int T>
    void multiply(const Tokens<T>& tokens, size_t begin, size_t first, size_t count, Sums<2, T> (&sums)[1]) const {
        for (size_t g = 0; g < count / kGroupCols; ++g) {
            Ints<2> dot[T];
            FINBACK_UNROLL(8)
            for (int t = 0; t < T; ++t) dot[t] = set1_i32<2>(0);
            FINBACK_UNROLL(16)
            for (size_t j = 0; j < 16; ++j) {
                FINBACK_UNROLL(8)
                for (int t = 0; t < T; ++t)
                    dot[t] = add_dot(dot[t], words[g][j], widened[begin + t] + g * kGroupCols + 2 * j);
            }
            FINBACK_UNROLL(8)
            for (int t = 0; t < T; ++t) {
                const float x = tokens.groups[t][first / kGroupCols + g].scale;
                sums[0].at[t] = taken(fma(to_float(dot[t]), scale[g] * set1<2>(x), sums[0].at[t]));
            }
        }
    }
};

// With 32 registers, two pairs share each token's value: one load for two products keeps the multipliers busy.
template <Format F>
struct FloatPanel {
    static constexpr size_t kCols = kFloatPanelCols, kPairs = kWide;
    F32x16 columns[kCols][kPairs];
    F32x16 scale[kPairs];

    void load(const Pairs<kPairs>& pairs, size_t count) {
        for (size_t r = 0; r < kPairs; ++r) {
            const uint8_t* at = pairs.at[r];
            size_t k = 0;
            for (; k + 4 <= count; k += 4) {
                columns[k][r] = column<F, 0>(at, k);
                columns[k + 1][r] = column<F, 1>(at, k);
                columns[k + 2][r] = column<F, 2>(at, k);
                columns[k + 3][r] = column<F, 3>(at, k);
            }
            if (k < count) columns[k][r] = column<F, 0>(at, k);
            if (k + 1 < count) columns[k + 1][r] = column<F, 1>(at, k);
            if (k + 2 < count) columns[k + 2][r] = column<F, 2>(at, k);
            if constexpr (F == Format::f8_e4m3) scale[r] = fp8_scale(at, count);
        }
    }

    template <int T>
    void multiply(const Tokens<T>& tokens, size_t, size_t first, size_t count, Sums<2, T> (&sums)[kPairs]) const {
        const float* x[T];
        for (int t = 0; t < T; ++t) x[t] = tokens.values[t] + first;
        if constexpr (F == Format::f8_e4m3) {
            Sums<2, T> part[kPairs] = {};
            add_columns(columns, x, count, part);
            for (size_t r = 0; r < kPairs; ++r) scale_into(part[r], scale[r], sums[r]);
        } else {
            add_columns(columns, x, count, sums);
        }
    }
};

template <Format F>
using Panel = std::conditional_t<kind(F) == Kind::byte, WordPanel<F>,
                                 std::conditional_t<is_integer(F), IntegerPanel<F>, FloatPanel<F>>>;

// Weights to ask for while the tokens pass over the present panel.
template <size_t R>
struct Upcoming {
    Pairs<R> pairs{};
    size_t bytes = 0;  // of each

    // The share of step `step` of `steps`.
    FINBACK_INLINE void prefetch_share(size_t step, size_t steps) const {
        const size_t lines = ceil_div(bytes, 64);
        for (size_t i = lines * step / steps; i < lines * (step + 1) / steps; ++i)
            for (const uint8_t* at : pairs.at) prefetch(at + 64 * i);
    }
};

// What the panel of some row blocks and the columns from `first` on reads.
template <Format F>
Upcoming<Panel<F>::kPairs> upcoming(const Job& job, size_t block, size_t end, size_t first) {
    if (first >= job.weight.cols) return {};
    const size_t left = job.weight.cols - first;
    return {job.pairs<Panel<F>::kPairs>(F, block, end, first),
            pair_bytes(F, left < Panel<F>::kCols ? left : Panel<F>::kCols)};
}

// A token's sums over a panel's rows.
template <Format F>
struct Waiting {
    F32x16 of_pair[Panel<F>::kPairs];
};

template <Format F, int T>
FINBACK_INLINE void multiply_tile(const Panel<F>& panel, const Tokens<T>& tokens, size_t begin, size_t first,
                                  size_t count, Waiting<F>* waiting) {
    constexpr size_t pairs = Panel<F>::kPairs;
    Sums<2, T> sums[pairs];
    FINBACK_UNROLL(8)
    for (int t = 0; t < T; ++t)
        for (size_t r = 0; r < pairs; ++r) sums[r].at[t] = taken(waiting[t].of_pair[r]);
    panel.template multiply<T>(tokens, begin, first, count, sums);
    FINBACK_UNROLL(8)
    for (int t = 0; t < T; ++t)
        for (size_t r = 0; r < pairs; ++r) waiting[t].of_pair[r] = taken(sums[r].at[t]);
}

// Tokens [begin, begin + count) over columns [first, first + cols): a tile at a time, the last one padded.
template <Format F>
void multiply_panel(const Panel<F>& panel, const Job& job, size_t begin, size_t count, size_t first, size_t cols,
                    const Upcoming<Panel<F>::kPairs>& coming, Waiting<F>* waiting) {
    const auto tile = [&]<int T>(std::integral_constant<int, T>, size_t t) {
        multiply_tile<F, T>(panel, job.tokens<T, is_integer(F)>(begin + t, count - t), t, first, cols, waiting + t);
    };
    for (size_t t = 0; t < count; t += kTileTokens) {
        coming.prefetch_share(t / kTileTokens, ceil_div(count, kTileTokens));
        if (count - t <= 2)
            tile(std::integral_constant<int, 2>{}, t);
        else if (count - t <= 4)
            tile(std::integral_constant<int, 4>{}, t);
        else if (count - t <= 6)
            tile(std::integral_constant<int, kNarrowTile>{}, t);
        else
            tile(std::integral_constant<int, kTileTokens>{}, t);
    }
}

// Row blocks [block, end), at most kPanelPairs pairs, by some tokens. Panels take turns over the same columns, so that
// the tokens' activations there stay in the second-level cache.
template <Format F>
void multiply_blocks(const Job& job, size_t block, size_t end, size_t begin, size_t tokens) {
    constexpr size_t pairs = Panel<F>::kPairs, blocks = 2 * pairs;
    Panel<F> panel;
    Waiting<F> waiting[kPanelPairs / pairs][kTokenBlock];
    const size_t panels = ceil_div(end - block, blocks);
    for (size_t p = 0; p < panels; ++p)
        for (size_t t = 0; t < padded_tokens(tokens); ++t) waiting[p][t] = {};
    for_runs(job.weight.cols, Panel<F>::kCols, [&](size_t first, size_t cols) {
        if constexpr (kind(F) == Kind::byte) panel.widen_tokens(job, begin, tokens, first, cols);
        for (size_t p = 0; p < panels; ++p) {
            panel.load(job.pairs<pairs>(F, block + blocks * p, end, first), cols);
            const auto next = p + 1 < panels ? upcoming<F>(job, block + blocks * (p + 1), end, first)
                                             : upcoming<F>(job, block, end, first + cols);
            multiply_panel<F>(panel, job, begin, tokens, first, cols, next, waiting[p]);
        }
    });
    // A token's row at a time: the rows lie pages apart.
    for (size_t t = 0; t < tokens; ++t)
        for (size_t p = 0; p < panels; ++p)
            for (size_t r = 0; r < pairs; ++r)
                store_sums<2>(job, block + blocks * p + 2 * r, end, begin + t, waiting[p][t].of_pair[r]);
}

template <Format F>
void multiply(const Job& job, size_t end) {
    if (job.in.n <= kTileTokens) {
        stream<F>(job, job.first, end, 0, job.in.n);
        return;
    }
    if (is_integer(F) && job.in.n <= kStreamedTokens) {
        for (size_t block = job.first; block < end; block += 2)
            for_runs(job.in.n, kTileTokens, [&](size_t begin, size_t count) {
                stream<F>(job, block, end - block < 2 ? end : block + 2, begin, count);
            });
        return;
    }
    constexpr size_t step = 2 * kPanelPairs;
    for (size_t begin = 0; begin < job.in.n; begin += kTokenBlock) {
        const size_t tokens = job.in.n - begin < kTokenBlock ? job.in.n - begin : kTokenBlock;
        for (size_t block = job.first; block < end; block += step)
            multiply_blocks<F>(job, block, end - block < step ? end : block + step, begin, tokens);
    }
}

using Multiply = void (*)(const Job&, size_t);
constexpr Multiply kMultiply[kFormats] = {
    multiply<Format::f32>,  multiply<Format::f16>,  multiply<Format::bf16>,  multiply<Format::f8_e4m3>,
    multiply<Format::q4_0>, multiply<Format::q4_1>, multiply<Format::q5_0>,  multiply<Format::q5_1>,
    multiply<Format::q8_0>, multiply<Format::q2_k>, multiply<Format::q3_k>,  multiply<Format::q4_k>,
    multiply<Format::q5_k>, multiply<Format::q6_k>, multiply<Format::mxfp4>,
};

}  // namespace

void product(const Weight& weight, size_t expert, size_t first, size_t end, const Input& in, const Output& out) {
    if (in.n > 0) kMultiply[static_cast<int>(weight.format)]({weight, expert, in, out, first}, end);
}

}  // namespace finback::FINBACK_NAMESPACE
