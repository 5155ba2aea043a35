// See product.h.
//
// Up to four tokens stream the weights: unpack a group, multiply, go on; memory is the limit. More tokens share the
// unpacking: a panel of two row blocks and some columns is unpacked into the first-level cache, then all tokens go over
// it, four at a time. Sums wait in memory between panels, in float32, so cutting the columns changes no result.
#include "product.h"

#include "micro.h"

namespace finback::FINBACK_NAMESPACE {
namespace {

constexpr size_t kTokenBlock = 64;         // tokens whose sums wait between two panels
constexpr size_t kIntegerPanelCols = 512;  // 16 groups: two row blocks unpack to 10 .. 14 KiB
constexpr size_t kFloatPanelCols = 128;    // two row blocks unpack to 8 KiB; also what f8_e4m3 scales together
constexpr size_t kPrefetchBytes = 2048;    // how far ahead of its use a stream of weights is asked for

// The inputs of a register tile.
template <int T>
struct Tokens {
    const Activation* groups[T];
    const float* values[T];
};

// What one call multiplies, with the parts that do not change from row block to row block.
struct Job {
    const Weight& weight;
    size_t expert;
    const Input& in;
    const Output& out;
    size_t first;  // row block that output row 0 belongs to

    const uint8_t* tiles(size_t block) const { return weight.row_block(expert, block); }
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

// ---- columns of float formats

// Where column `first` begins in a row block; a multiple of 128 for f8_e4m3.
template <Format F>
inline const uint8_t* columns_at(const uint8_t* tiles, size_t first) {
    if constexpr (F == Format::f8_e4m3)
        return tiles + first / kFp8ScaleCols * (kFp8ScaleCols + sizeof(float)) * kBlockRows;
    return tiles + first * info(F).block_bytes * kBlockRows;
}

// Column k + I of 8 rows; k is a multiple of 4. f8_e4m3 pads with zeros to 4 columns, the others have no more than they
// have.
template <Format F, int I>
inline F32x8 column(const uint8_t* at, size_t k) {
    if constexpr (F == Format::f8_e4m3) {
        return fp8_to_float<I>(load_bytes(at + k * kBlockRows));
    } else {
        const uint8_t* p = at + (k + I) * info(F).block_bytes * kBlockRows;
        if constexpr (F == Format::f32) return load(reinterpret_cast<const float*>(p));
        if constexpr (F == Format::f16) return load_f16(reinterpret_cast<const uint16_t*>(p));
        return load_bf16(reinterpret_cast<const uint16_t*>(p));
    }
}

// The 8 rows' scales behind `count` columns of f8_e4m3.
inline F32x8 fp8_scale(const uint8_t* at, size_t count) {
    return load(reinterpret_cast<const float*>(at + ceil_div(count, 4) * 4 * kBlockRows));
}

// Calls body(first, count) for runs of `step` columns; the last one may be shorter.
template <class Body>
inline void for_runs(size_t cols, size_t step, Body body) {
    for (size_t first = 0; first < cols; first += step) body(first, cols - first < step ? cols - first : step);
}

// ---- few tokens: straight from the tiles

// The next bytes of a stream of weights. Reading past the end of a weight is harmless: a prefetch never faults.
template <size_t Bytes>
inline void prefetch_ahead(const uint8_t* p) {
    for (size_t i = 0; i < Bytes; i += 64) prefetch(p + kPrefetchBytes + i);
}

template <Format F, int R, int T>
void stream_integers(const uint8_t* const (&blocks)[R], size_t cols, const Tokens<T>& tokens, Sums<R, T>& sums) {
    constexpr size_t groups = info(F).block_cols / kGroupCols;
    const uint8_t* tile[R];
    for (int r = 0; r < R; ++r) tile[r] = blocks[r];
    size_t at = 0;
    for (size_t col = 0; col < cols; col += info(F).block_cols) {
        TileScales<F> shared[R];
        FINBACK_UNROLL(2)
        for (int r = 0; r < R; ++r) read_scales<F>(tile[r], shared[r]);
        for (size_t g = 0; g < groups; ++g, ++at) {
            Group<F> group[R];
            const Group<F>* w[R];
            FINBACK_UNROLL(2)
            for (int r = 0; r < R; ++r) {
                prefetch_ahead<tile_bytes(F) / groups>(tile[r] + g * (tile_bytes(F) / groups));
                unpack_group<F>(tile[r], shared[r], g, group[r]);
                w[r] = &group[r];
            }
            const Activation* a[T];
            FINBACK_UNROLL(4)
            for (int t = 0; t < T; ++t) a[t] = tokens.groups[t] + at;
            add_group<F, R, T>(w, a, 0, sums);
        }
        for (int r = 0; r < R; ++r) tile[r] += tile_bytes(F);
    }
}

template <Format F, int I, int R, int T>
inline void stream_column(const uint8_t* const (&at)[R], const float* const (&x)[T], size_t k, Sums<R, T>& sum) {
    F32x8 w[R];
    FINBACK_UNROLL(4)
    for (int r = 0; r < R; ++r) w[r] = column<F, I>(at[r], k);
    FINBACK_UNROLL(4)
    for (int t = 0; t < T; ++t) {
        const F32x8 value = set1(x[t][k + I]);
        FINBACK_UNROLL(4)
        for (int r = 0; r < R; ++r) sum.at[r][t] = fma(w[r], value, sum.at[r][t]);
    }
}

template <Format F, int R, int T>
inline void stream_columns(const uint8_t* const (&at)[R], const float* const (&x)[T], size_t count, Sums<R, T>& sums) {
    Sums<R, T> sum = sums;
    size_t k = 0;
    for (; k + 4 <= count; k += 4) {
        FINBACK_UNROLL(4)
        for (int r = 0; r < R; ++r)
            prefetch_ahead<4 * info(F).block_bytes * kBlockRows>(at[r] + k * info(F).block_bytes * kBlockRows);
        stream_column<F, 0, R, T>(at, x, k, sum);
        stream_column<F, 1, R, T>(at, x, k, sum);
        stream_column<F, 2, R, T>(at, x, k, sum);
        stream_column<F, 3, R, T>(at, x, k, sum);
    }
    if (k < count) stream_column<F, 0, R, T>(at, x, k, sum);
    if (k + 1 < count) stream_column<F, 1, R, T>(at, x, k, sum);
    if (k + 2 < count) stream_column<F, 2, R, T>(at, x, k, sum);
    sums = sum;
}

template <Format F, int R, int T>
void stream_floats(const uint8_t* const (&blocks)[R], size_t cols, const Tokens<T>& tokens, Sums<R, T>& sums) {
    for_runs(cols, kFloatPanelCols, [&](size_t first, size_t count) {
        const uint8_t* at[R];
        const float* x[T];
        for (int r = 0; r < R; ++r) at[r] = columns_at<F>(blocks[r], first);
        for (int t = 0; t < T; ++t) x[t] = tokens.values[t] + first;
        if constexpr (F == Format::f8_e4m3) {
            Sums<R, T> part{};
            stream_columns<F, R, T>(at, x, count, part);
            scale_into<R, T>(part, [&](int r) { return fp8_scale(at[r], count); }, sums);
        } else {
            stream_columns<F, R, T>(at, x, count, sums);
        }
    });
}

// R row blocks (those at `end` and beyond repeat the last one) by up to T tokens (missing ones repeat the last one).
template <Format F, int R, int T>
void stream_blocks(const Job& job, size_t block, size_t end) {
    const uint8_t* blocks[R];
    for (size_t r = 0; r < R; ++r) blocks[r] = job.tiles(block + r < end ? block + r : end - 1);
    const Tokens<T> tokens = job.tokens<T, is_integer(F)>(0, job.in.n);
    Sums<R, T> sums{};
    if constexpr (is_integer(F))
        stream_integers<F, R, T>(blocks, job.weight.cols, tokens, sums);
    else
        stream_floats<F, R, T>(blocks, job.weight.cols, tokens, sums);
    for (size_t r = 0; r < R && block + r < end; ++r)
        for (size_t t = 0; t < T && t < job.in.n; ++t) store_sum(job, block + r, t, sums.at[r][t]);
}

template <Format F>
void stream(const Job& job, size_t end) {
    // A float format has one chain of additions per row block and token: several of them hide each other's latency.
    constexpr size_t one = is_integer(F) ? 1 : 4, two = is_integer(F) ? 2 : 4;
    if (job.in.n == 1)
        for (size_t block = job.first; block < end; block += one) stream_blocks<F, one, 1>(job, block, end);
    else if (job.in.n == 2)
        for (size_t block = job.first; block < end; block += two) stream_blocks<F, two, 2>(job, block, end);
    else if (job.in.n == 3)
        for (size_t block = job.first; block < end; block += 2) stream_blocks<F, 2, 3>(job, block, end);
    else
        for (size_t block = job.first; block < end; block += 2) stream_blocks<F, 2, 4>(job, block, end);
}

// ---- many tokens: panels of two row blocks

template <Format F>
struct IntegerPanel {
    static constexpr size_t kCols = kIntegerPanelCols;
    Group<F> groups[kCols / kGroupCols];

    void load(const uint8_t* tiles, size_t first, size_t count) {
        constexpr size_t per_tile = info(F).block_cols / kGroupCols;
        const uint8_t* tile = tiles + first / info(F).block_cols * tile_bytes(F);
        for (size_t g = 0; g < count / kGroupCols; g += per_tile, tile += tile_bytes(F)) {
            TileScales<F> shared;
            read_scales<F>(tile, shared);
            for (size_t i = 0; i < per_tile; ++i) unpack_group<F>(tile, shared, i, groups[g + i]);
        }
    }

    template <int T>
    static void multiply(const IntegerPanel (&panel)[2], const Tokens<T>& tokens, size_t first, size_t count,
                         Sums<2, T>& sums) {
        const Group<F>* w[2] = {panel[0].groups, panel[1].groups};
        const Activation* a[T];
        for (int t = 0; t < T; ++t) a[t] = tokens.groups[t] + first / kGroupCols;
        for (size_t g = 0; g < count / kGroupCols; ++g) add_group<F, 2, T>(w, a, g, sums);
    }
};

template <Format F>
struct FloatPanel {
    static constexpr size_t kCols = kFloatPanelCols;
    F32x8 columns[kCols];
    F32x8 scale;

    void load(const uint8_t* tiles, size_t first, size_t count) {
        const uint8_t* at = columns_at<F>(tiles, first);
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
    static void multiply(const FloatPanel (&panel)[2], const Tokens<T>& tokens, size_t first, size_t count,
                         Sums<2, T>& sums) {
        const F32x8* w[2] = {panel[0].columns, panel[1].columns};
        const float* x[T];
        for (int t = 0; t < T; ++t) x[t] = tokens.values[t] + first;
        if constexpr (F == Format::f8_e4m3) {
            Sums<2, T> part{};
            add_columns<2, T>(w, x, count, part);
            scale_into<2, T>(part, [&](int r) { return panel[r].scale; }, sums);
        } else {
            add_columns<2, T>(w, x, count, sums);
        }
    }
};

template <Format F>
using Panel = std::conditional_t<is_integer(F), IntegerPanel<F>, FloatPanel<F>>;

// Two pieces of weights to ask for while the tokens pass over the present panel.
struct Upcoming {
    const uint8_t* at[2] = {nullptr, nullptr};
    size_t bytes = 0;

    // The share of step `step` of `steps`.
    void prefetch_share(size_t step, size_t steps) const {
        const size_t lines = ceil_div(bytes, 64);
        for (const uint8_t* p : at)
            for (size_t i = lines * step / steps; i < lines * (step + 1) / steps; ++i) prefetch(p + 64 * i);
    }
};

// What the next panel reads: the same row blocks' next columns, or the next row blocks' first ones.
template <Format F>
Upcoming upcoming(const Job& job, size_t block, size_t end, size_t next) {
    Upcoming coming;
    if (next >= job.weight.cols) {
        next = 0;
        block += 2;
    }
    if (block >= end) return coming;
    const size_t left = job.weight.cols - next;
    const size_t cols = left < Panel<F>::kCols ? left : Panel<F>::kCols;
    for (size_t r = 0; r < 2; ++r) {
        const uint8_t* tiles = job.tiles(block + r < end ? block + r : block);
        coming.at[r] = tiles + next / info(F).block_cols * tile_bytes(F);
    }
    coming.bytes = cols / info(F).block_cols * tile_bytes(F);
    return coming;
}

// Sums of two row blocks for a block of tokens.
struct Waiting {
    F32x8 sums[kTokenBlock][2];
};

template <Format F, int T>
void multiply_tile(const Panel<F> (&panel)[2], const Tokens<T>& tokens, size_t first, size_t count,
                   F32x8 (*waiting)[2]) {
    Sums<2, T> sums;
    for (int r = 0; r < 2; ++r)
        for (int t = 0; t < T; ++t) sums.at[r][t] = first == 0 ? zero() : waiting[t][r];
    Panel<F>::template multiply<T>(panel, tokens, first, count, sums);
    for (int r = 0; r < 2; ++r)
        for (int t = 0; t < T; ++t) waiting[t][r] = sums.at[r][t];
}

// Tokens [begin, begin + count) over columns [first, first + cols): four at a time, the last four padded.
template <Format F>
void multiply_panel(const Panel<F> (&panel)[2], const Job& job, size_t begin, size_t count, size_t first, size_t cols,
                    const Upcoming& coming, Waiting& waiting) {
    for (size_t t = 0; t < count; t += 4) {
        coming.prefetch_share(t / 4, ceil_div(count, 4));
        const size_t left = count - t;
        if (left <= 2)
            multiply_tile<F, 2>(panel, job.tokens<2, is_integer(F)>(begin + t, left), first, cols, waiting.sums + t);
        else
            multiply_tile<F, 4>(panel, job.tokens<4, is_integer(F)>(begin + t, left), first, cols, waiting.sums + t);
    }
}

template <Format F>
void multiply_blocks(const Job& job, size_t block, size_t end, size_t begin, size_t tokens) {
    const size_t blocks = end - block < 2 ? 1 : 2;
    Panel<F> panel[2];
    Waiting waiting;
    for_runs(job.weight.cols, Panel<F>::kCols, [&](size_t first, size_t cols) {
        for (size_t r = 0; r < 2; ++r) panel[r].load(job.tiles(block + (r < blocks ? r : 0)), first, cols);
        multiply_panel<F>(panel, job, begin, tokens, first, cols, upcoming<F>(job, block, end, first + cols), waiting);
    });
    for (size_t t = 0; t < tokens; ++t)
        for (size_t r = 0; r < blocks; ++r) store_sum(job, block + r, begin + t, waiting.sums[t][r]);
}

template <Format F>
void multiply(const Job& job, size_t end) {
    if (job.in.n <= 4) {
        stream<F>(job, end);
        return;
    }
    for (size_t begin = 0; begin < job.in.n; begin += kTokenBlock) {
        const size_t tokens = job.in.n - begin < kTokenBlock ? job.in.n - begin : kTokenBlock;
        for (size_t block = job.first; block < end; block += 2) multiply_blocks<F>(job, block, end, begin, tokens);
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

void expect(const Weight& weight, size_t expert, size_t block) {
    const uint8_t* head = weight.row_block(expert, block);
    for (size_t i = 0; i < kPrefetchBytes; i += 64) prefetch(head + i);
}

}  // namespace finback::FINBACK_NAMESPACE
