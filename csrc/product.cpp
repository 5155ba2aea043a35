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
constexpr size_t kPrefetchBytes = 6144;  // how far ahead a stream of weights is asked for; multiples of 4096 are slower

// The inputs of a register tile.
template <int T>
struct Tokens {
    const Activation* groups[T];
    const float* values[T];
};

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
    // The tiles of row blocks block .. block + N - 1, an even block if N is 2, whose first column is `first`; beyond
    // `end` they are some of the last pair's.
    template <size_t N>
    Places<N> places(Format format, size_t block, size_t end, size_t first) const {
        const uint8_t* tiles = pair(block < end ? block : end - 1);
        Places<N> p;
        for (size_t r = 0; r < N; ++r) p.at[r] = tiles + tile_offset(format, (block + r) % 2, first);
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

// Column k + I behind the first tiles of N row blocks; k is a multiple of 4. f8_e4m3 pads with zeros to 4 columns, the
// others have no more than they have.
template <Format F, int I, size_t N>
inline Floats<N> column(Places<N> at, size_t k) {
    if constexpr (F == Format::f8_e4m3) return fp8_to_float<I>(load_bytes(at + k * kPairRows));
    return load_each(at + (k + I) * 2 * tile_bytes(F), [](const uint8_t* p) {
        if constexpr (F == Format::f32) return load(reinterpret_cast<const float*>(p));
        if constexpr (F == Format::f16) return load_f16(reinterpret_cast<const uint16_t*>(p));
        return load_bf16(reinterpret_cast<const uint16_t*>(p));
    });
}

// The rows' scales behind `count` columns of f8_e4m3.
template <size_t N>
inline Floats<N> fp8_scale(Places<N> at, size_t count) {
    return load_each(at + fp8_scale_offset(count),
                     [](const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); });
}

// Calls body(first, count) for runs of `step` columns; the last one may be shorter.
template <class Body>
inline void for_runs(size_t cols, size_t step, Body body) {
    for (size_t first = 0; first < cols; first += step) body(first, cols - first < step ? cols - first : step);
}

// ---- few tokens: straight from the tiles

// The next bytes of a stream of weights. Reading past the end of a weight is harmless: a prefetch never faults.
template <size_t Bytes, size_t Step = 64>
FINBACK_INLINE void prefetch_ahead(const uint8_t* at) {
    for (size_t i = 0; i < Bytes; i += Step) prefetch(at + kPrefetchBytes + i);
}

// The tiles of N row blocks, side by side, by the groups of tokens that begin at `at`.
template <Format F, size_t N, int T>
FINBACK_INLINE void stream_tile(Places<N> tile, const Tokens<T>& tokens, size_t at, Sums<N, T>& sums) {
    constexpr size_t groups = info(F).block_cols / kGroupCols, bytes = N * tile_bytes(F) / groups;
    // Eight bits pass faster than lines can be asked for one by one; their neighbours come along.
    constexpr size_t step = info(F).code_bits == 8 && T == 1 ? 128 : 64;
    TileScales<F, N> shared;
    read_scales<F, N>(tile, shared);
    for (size_t g = 0; g < groups; ++g) {
        prefetch_ahead<bytes, step>(tile.at[0] + g * bytes);
        Group<F, N> group;
        unpack_group<F, N>(tile, shared, g, group);
        add_group<F, N, T>(group, tokens.groups, at + g, sums);
    }
}

// A pair of row blocks. One or two tokens gain nothing from two row blocks in one register, so they take the tiles in
// the order of memory.
template <Format F, int T>
void stream_integers(const Job& job, size_t block, size_t end, size_t begin, size_t count, const Tokens<T>& tokens) {
    constexpr size_t n = T <= 2 ? 1 : 2, groups = info(F).block_cols / kGroupCols;
    const uint8_t* tile = job.pair(block);
    Sums<n, T> sums[2 / n] = {};
    for (size_t at = 0; at < job.weight.cols / kGroupCols; at += groups, tile += 2 * tile_bytes(F)) {
        if constexpr (n == 1) {
            stream_tile<F, 1, T>({tile}, tokens, at, sums[0]);
            stream_tile<F, 1, T>({tile + tile_bytes(F)}, tokens, at, sums[1]);
        } else {
            stream_tile<F, 2, T>({tile, tile + tile_bytes(F)}, tokens, at, sums[0]);
        }
    }
    for (size_t r = 0; r < 2 / n; ++r) store_tile(job, block + r, end, begin, count, sums[r]);
}

// A float format has one chain of additions for each token and each of R vectors of N row blocks.
template <Format F, int I, int R, size_t N, int T>
inline void stream_column(const Places<N> (&at)[R], const float* const (&x)[T], size_t k, Sums<N, T> (&sums)[R]) {
    Floats<N> w[R];
    FINBACK_UNROLL(4)
    for (int r = 0; r < R; ++r) w[r] = column<F, I>(at[r], k);
    FINBACK_UNROLL(8)
    for (int t = 0; t < T; ++t) {
        const Floats<N> value = set1<N>(x[t][k + I]);
        FINBACK_UNROLL(4)
        for (int r = 0; r < R; ++r) sums[r].at[t] = fma(w[r], value, sums[r].at[t]);
    }
}

template <Format F, int R, size_t N, int T>
inline void stream_columns(const Places<N> (&at)[R], const float* const (&x)[T], size_t count, size_t ahead,
                           Sums<N, T> (&sums)[R]) {
    constexpr size_t bytes = info(F).block_bytes * kPairRows;
    constexpr int vectors_of_pair = 2 / N;
    size_t k = 0;
    for (; k + 4 <= count; k += 4) {
        FINBACK_UNROLL(4)
        for (int r = 0; r < R; r += vectors_of_pair) prefetch_ahead<4 * bytes>(at[r].at[0] + k * bytes + ahead);
        stream_column<F, 0>(at, x, k, sums);
        stream_column<F, 1>(at, x, k, sums);
        stream_column<F, 2>(at, x, k, sums);
        stream_column<F, 3>(at, x, k, sums);
    }
    if (k < count) stream_column<F, 0>(at, x, k, sums);
    if (k + 1 < count) stream_column<F, 1>(at, x, k, sums);
    if (k + 2 < count) stream_column<F, 2>(at, x, k, sums);
    if constexpr (F == Format::f8_e4m3)  // a missing line, the scales', costs as much as all columns
        for (int r = 0; r < R; r += vectors_of_pair) prefetch_ahead<64>(at[r].at[0] + k * bytes + ahead);
}

// Row blocks block .. block + R * N - 1; those from `end` on are read again from the last pair.
template <Format F, int R, size_t N, int T>
void stream_floats(const Job& job, size_t block, size_t end, const Tokens<T>& tokens, Sums<N, T> (&sums)[R]) {
    const size_t whole = pair_bytes(F, job.weight.cols);
    for_runs(job.weight.cols, kFloatPanelCols, [&](size_t first, size_t count) {
        Places<N> at[R];
        const float* x[T];
        for (size_t r = 0; r < R; ++r) at[r] = job.places<N>(F, block + r * N, end, first);
        for (int t = 0; t < T; ++t) x[t] = tokens.values[t] + first;
        // What follows a pair in memory is its neighbour, which is being read too.
        const size_t neighbours = R * N / 2 - 1;
        const size_t ahead = pair_bytes(F, first) + kPrefetchBytes < whole ? 0 : neighbours * whole;
        if constexpr (F == Format::f8_e4m3) {
            Sums<N, T> part[R] = {};
            stream_columns<F>(at, x, count, ahead, part);
            for (int r = 0; r < R; ++r) scale_into(part[r], fp8_scale(at[r], count), sums[r]);
        } else {
            stream_columns<F>(at, x, count, ahead, sums);
        }
    });
}

template <Format F, int T>
void stream_tokens(const Job& job, size_t first, size_t end, size_t begin, size_t count) {
    const Tokens<T> tokens = job.tokens<T, is_integer(F)>(begin, count);
    if constexpr (is_integer(F)) {
        for (size_t block = first; block < end; block += 2) stream_integers<F>(job, block, end, begin, count, tokens);
    } else {
        // Memory brings a pair of f8_e4m3 faster than one chain of additions takes it.
        constexpr bool chains = F == Format::f8_e4m3 && T <= 2;
        constexpr size_t n = chains ? 1 : 2, vectors = chains ? blocks_together(F) : 1;
        for (size_t block = first; block < end; block += n * vectors) {
            Sums<n, T> sums[vectors] = {};
            stream_floats<F>(job, block, end, tokens, sums);
            for (size_t r = 0; r < vectors; ++r) store_tile(job, block + n * r, end, begin, count, sums[r]);
        }
    }
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
        default:
            return stream_tokens<F, kTileTokens>(job, first, end, begin, count);
    }
}

// ---- many tokens: panels of a pair of row blocks

template <Format F>
struct IntegerPanel {
    static constexpr size_t kCols = kIntegerPanelCols;
    Group<F, 2> groups[kCols / kGroupCols];

    void load(Places<2> tile, size_t count) {
        constexpr size_t per_tile = info(F).block_cols / kGroupCols;
        for (size_t g = 0; g < count / kGroupCols; g += per_tile, tile = tile + 2 * tile_bytes(F)) {
            TileScales<F, 2> shared;
            read_scales<F, 2>(tile, shared);
            for (size_t i = 0; i < per_tile; ++i) unpack_group<F, 2>(tile, shared, i, groups[g + i]);
        }
    }

    template <int T>
    void multiply(const Tokens<T>& tokens, size_t, size_t first, size_t count, Sums<2, T>& sums) const {
        const Activation* a[T];
        for (int t = 0; t < T; ++t) a[t] = tokens.groups[t] + first / kGroupCols;
        for (size_t g = 0; g < count / kGroupCols; ++g) add_group<F, 2, T>(groups[g], a, g, sums);
    }
};

// Signed bytes as words, the tokens' too: in bytes, each product would move the sign over and widen its own sum.
template <Format F>
struct WordPanel {
    static constexpr size_t kCols = kWordPanelCols;
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

    void load(Places<2> tile, size_t count) {
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
    void multiply(const Tokens<T>& tokens, size_t begin, size_t first, size_t count, Sums<2, T>& sums) const {
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
                sums.at[t] = taken(fma(to_float(dot[t]), scale[g] * set1<2>(x), sums.at[t]));
            }
        }
    }
};

template <Format F>
struct FloatPanel {
    static constexpr size_t kCols = kFloatPanelCols;
    F32x16 columns[kCols];
    F32x16 scale;

    void load(Places<2> at, size_t count) {
        size_t k = 0;
        for (; k + 4 <= count; k += 4) {
            columns[k] = column<F, 0>(at, k);
            columns[k + 1] = column<F, 1>(at, k);
            columns[k + 2] = column<F, 2>(at, k);
            columns[k + 3] = column<F, 3>(at, k);
        }
        if (k < count) columns[k] = column<F, 0>(at, k);
        if (k + 1 < count) columns[k + 1] = column<F, 1>(at, k);
        if (k + 2 < count) columns[k + 2] = column<F, 2>(at, k);
        if constexpr (F == Format::f8_e4m3) scale = fp8_scale(at, count);
    }

    template <int T>
    void multiply(const Tokens<T>& tokens, size_t, size_t first, size_t count, Sums<2, T>& sums) const {
        const float* x[T];
        for (int t = 0; t < T; ++t) x[t] = tokens.values[t] + first;
        if constexpr (F == Format::f8_e4m3) {
            Sums<2, T> part{};
            add_columns<2, T>(columns, x, count, part);
            scale_into(part, scale, sums);
        } else {
            add_columns<2, T>(columns, x, count, sums);
        }
    }
};

template <Format F>
using Panel = std::conditional_t<kind(F) == Kind::byte, WordPanel<F>,
                                 std::conditional_t<is_integer(F), IntegerPanel<F>, FloatPanel<F>>>;

// Weights to ask for while the tokens pass over the present panel.
struct Upcoming {
    const uint8_t* at = nullptr;
    size_t bytes = 0;

    // The share of step `step` of `steps`.
    FINBACK_INLINE void prefetch_share(size_t step, size_t steps) const {
        const size_t lines = ceil_div(bytes, 64);
        for (size_t i = lines * step / steps; i < lines * (step + 1) / steps; ++i) prefetch(at + 64 * i);
    }
};

// What the panel of a pair and the columns from `first` on reads.
template <Format F>
Upcoming upcoming(const Job& job, size_t block, size_t first) {
    if (first >= job.weight.cols) return {};
    const size_t left = job.weight.cols - first;
    return {job.pair(block) + pair_bytes(F, first), pair_bytes(F, left < Panel<F>::kCols ? left : Panel<F>::kCols)};
}

template <Format F, int T>
FINBACK_INLINE void multiply_tile(const Panel<F>& panel, const Tokens<T>& tokens, size_t begin, size_t first,
                                  size_t count, F32x16* waiting) {
    Sums<2, T> sums;
    FINBACK_UNROLL(8)
    for (int t = 0; t < T; ++t) sums.at[t] = taken(waiting[t]);
    panel.template multiply<T>(tokens, begin, first, count, sums);
    FINBACK_UNROLL(8)
    for (int t = 0; t < T; ++t) waiting[t] = taken(sums.at[t]);
}

// Tokens [begin, begin + count) over columns [first, first + cols): a tile at a time, the last one padded.
template <Format F>
void multiply_panel(const Panel<F>& panel, const Job& job, size_t begin, size_t count, size_t first, size_t cols,
                    const Upcoming& coming, F32x16* waiting) {
    const auto tile = [&]<int T>(std::integral_constant<int, T>, size_t t) {
        multiply_tile<F, T>(panel, job.tokens<T, is_integer(F)>(begin + t, count - t), t, first, cols, waiting + t);
    };
    for (size_t t = 0; t < count; t += kTileTokens) {
        coming.prefetch_share(t / kTileTokens, ceil_div(count, kTileTokens));
        if (count - t <= 2)
            tile(std::integral_constant<int, 2>{}, t);
        else if (count - t <= 4)
            tile(std::integral_constant<int, 4>{}, t);
        else
            tile(std::integral_constant<int, kTileTokens>{}, t);
    }
}

// Row blocks [block, end), at most kPanelPairs pairs, by some tokens. Pairs take turns over the same columns, so that
// the tokens' activations there stay in the second-level cache.
template <Format F>
void multiply_blocks(const Job& job, size_t block, size_t end, size_t begin, size_t tokens) {
    Panel<F> panel;
    F32x16 waiting[kPanelPairs][kTokenBlock];
    const size_t pairs = ceil_div(end - block, 2);
    for (size_t pair = 0; pair < pairs; ++pair)
        for (size_t t = 0; t < padded_tokens(tokens); ++t) waiting[pair][t] = zero<2>();
    for_runs(job.weight.cols, Panel<F>::kCols, [&](size_t first, size_t cols) {
        if constexpr (kind(F) == Kind::byte) panel.widen_tokens(job, begin, tokens, first, cols);
        for (size_t pair = 0; pair < pairs; ++pair) {
            panel.load(job.places<2>(F, block + 2 * pair, end, first), cols);
            const Upcoming next = pair + 1 < pairs ? upcoming<F>(job, block + 2 * (pair + 1), first)
                                                   : upcoming<F>(job, block, first + cols);
            multiply_panel<F>(panel, job, begin, tokens, first, cols, next, waiting[pair]);
        }
    });
    // A token's row at a time: the rows lie pages apart.
    for (size_t t = 0; t < tokens; ++t)
        for (size_t pair = 0; pair < pairs; ++pair)
            store_sums<2>(job, block + 2 * pair, end, begin + t, waiting[pair][t]);
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
