// Attention over cached and over expanded keys, one algorithm for all three faces.
//
// A row is one query head of one token. Its softmax is computed online over tiles of kTile positions counted from
// position 0; tiles are gathered into partial results of kChunk positions, and these are folded together in ascending
// order. Where a row's cuts lie and in which order its additions run depends on its own position alone (rule R1): how
// rows are grouped into blocks, which thread takes which chunk, and where the cache keeps a position are free choices.
//
// Rows that share keys are computed together: a tile of keys is widened to float32 once and then meets all rows of the
// block in register tiles of 3 rows x 4 keys (scores) and 3 rows x 4 vectors (weighted sum of values), on 512-bit
// registers of 6 rows x 8 keys, of which two lie side by side, and 6 rows x 8 vectors. Every row's additions are the
// same. Few rows cost less than the memory that they read: all heads meet a tile before the next one, so that the cache
// is read as it lies, and its next tile is asked for meanwhile. Latents in bfloat16 are not widened where registers are
// wide: taken apart into even and odd places they cost one instruction each. Where there are tile registers, latents in
// bfloat16 meet rows there, a chunk as one step (latent_tiles.h).
#include "attention.h"

#include "latent_tiles.h"
#include "scratch.h"
#include "simd_pair.h"
#include "thread_pool.h"

namespace finback::FINBACK_NAMESPACE {
namespace {

constexpr int kTile = 64;        // positions per step of the online softmax
constexpr int kChunk = 256;      // positions per partial result
constexpr int kInPlaceRows = 6;  // up to so many rows, keys are converted in registers as they are used
constexpr int kPacedRows = 16;   // up to so many widened rows, asking for a whole step's keys at once is felt
constexpr int64_t kCacheLine = 64;
constexpr int64_t kInlineWork = 200'000;  // multiply-adds below which a second thread costs more than it saves
constexpr int64_t kPartialFloats = int64_t{4} << 20;  // bound on partial results that wait to be folded
constexpr float kLeast = -3.0e38f;                    // below every score

// ---- elements ------------------------------------------------------------------------------------------------------

struct F16 {
    uint16_t bits;
};
struct BF16 {
    uint16_t bits;
};
// BF16 that is read apart: of a run of elements those at even places, then those at odd ones. Queries are reordered
// likewise, and the sums of values are put together when a row is done.
struct ApartBF16 {
    uint16_t bits;
};
static_assert(sizeof(F16) == 2 && sizeof(BF16) == 2 && sizeof(ApartBF16) == 2);

inline F32x8 load8(const float* p) { return load(p); }
inline F32x8 load8(const F16* p) { return load_f16(&p->bits); }
inline F32x8 load8(const BF16* p) { return load_bf16(&p->bits); }
inline F32x8 load8(const ApartBF16* p) { return load_bf16(&p->bits); }

// What a register holds.
using Wide = Floats<kWide>;
constexpr int kWideLanes = kWide * kLanes;
inline Wide load_wide(const float* p) { return load_wide_f32(p); }
inline Wide load_wide(const F16* p) { return load_wide_f16(&p->bits); }
inline Wide load_wide(const BF16* p) { return load_wide_bf16(&p->bits); }
inline Wide load_wide(const ApartBF16* p) { return load_wide_bf16(&p->bits); }

// Rows that share one widened tile: enough to make the widening cheap, few enough for the second-level cache, which is
// larger where registers are.
constexpr int kWidenedRows = 96 * kWide;

constexpr float kLargestF16 = 65504.0f;
constexpr float kLargestBF16 = 3.38953139e38f;

// Clamps to the finite range; NaN stays NaN, because min and max return their second operand.
inline F32x8 saturate(F32x8 x, float largest) { return max(set1(-largest), min(set1(largest), x)); }
inline void store8(float* p, F32x8 x) { store(p, x); }
inline void store8(F16* p, F32x8 x) { store_f16(&p->bits, saturate(x, kLargestF16)); }
inline void store8(BF16* p, F32x8 x) { store_bf16(&p->bits, saturate(x, kLargestBF16)); }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline float larger(float a, float b) { return a > b ? a : b; }
template <int64_t step = kLanes>
inline int64_t padded(int64_t n) {
    return (n + step - 1) / step * step;
}

template <class T>
inline void store_as(T* p, F32x8 x) {
    store8(p, x);
}
template <class T>
inline void store_as(T* p, F32x16 x) {
    if constexpr (kWide == 2 && std::is_same_v<T, float>) {
        store(p, x);
    } else {
        store8(p, lower(x));
        store8(p + kLanes, upper(x));
    }
}

// Converts n elements; `to` may be written up to the end of its last whole vector only if `pad` (with zeros).
template <bool pad, class From, class To>
void convert(const From* from, int64_t n, To* to) {
    int64_t i = 0;
    // Unrolled, because so short a loop takes twice the time where it happens to cross a line of code.
#pragma GCC unroll 4
    for (; i + kWideLanes <= n; i += kWideLanes) store_as(to + i, load_wide(from + i));
    for (; i + kLanes <= n; i += kLanes) store8(to + i, load8(from + i));
    if (i == n) return;
    From in[kLanes] = {};
    std::memcpy(in, from + i, sizeof(From) * static_cast<size_t>(n - i));
    To out[kLanes];
    store8(out, load8(in));
    std::memcpy(to + i, out, sizeof(To) * static_cast<size_t>(pad ? kLanes : n - i));
}

// The same, apart; n is a multiple of 16.
template <class T>
void convert_apart(const T* from, int64_t n, float* to) {
    if constexpr (std::is_same_v<T, ApartBF16>)
        for (int64_t i = 0; i < n; i += 2 * kLanes) {
            store8(to + i, load_bf16_half<0>(&from[i].bits));
            store8(to + i + kLanes, load_bf16_half<1>(&from[i].bits));
        }
}

inline float exp1(float x) {
    float lanes[kLanes];
    store(lanes, exp(set1(x)));
    return lanes[0];
}

// ---- sources: where queries, keys and values come from --------------------------------------------------------------

// Where the keys and values of one tile lie. Expanded keys continue elsewhere; their source knows where.
template <class T>
struct Rows {
    const T* k[kTile];
    const T* v[kTile];
};

// A tile as float32, padded with zeros to whole vectors.
struct Widened {
    Rows<float> rows;
    float* k_memory;
    float* v_memory;
};

// Calls visit(i, n, slot) for each run of positions first + i .. first + i + n - 1 of a token's sequence that lie side
// by side in the cache, from `slot` on.
template <class Visit>
void for_each_run(const Paging& paging, int64_t token, int64_t first, int count, Visit visit) {
    const int32_t* table = paging.block_tables + paging.seq_ids[token] * paging.max_blocks;
    int64_t block = first / paging.block_size;
    int64_t offset = first % paging.block_size;
    for (int i = 0; i < count; ++block, offset = 0) {
        const int n = static_cast<int>(smaller(count - i, paging.block_size - offset));
        visit(i, n, table[block] * paging.block_size + offset);
        i += n;
    }
}

template <class T>
struct GroupedSource {
    using Element = T;
    static constexpr bool kFewInPlace = true;  // few rows read the cache as it is
    static constexpr bool apart() { return false; }
    const AttentionCall& call;

    int64_t tokens() const { return call.tokens; }
    int64_t heads() const { return call.kv_heads; }
    int64_t group() const { return call.heads / call.kv_heads; }
    int64_t key_dim() const { return call.key_dim; }
    int64_t value_dim() const { return call.value_dim; }
    float scale() const { return call.scale; }
    int64_t visible(int64_t token) const { return int64_t{call.paging.positions[token]} + 1; }
    bool share_keys(int64_t a, int64_t b) const { return call.paging.seq_ids[a] == call.paging.seq_ids[b]; }
    int64_t row(int64_t token, int64_t head, int64_t member) const {
        return token * call.heads + head * group() + member;
    }

    void query(int64_t token, int64_t head, int64_t member, float* to) const {
        convert<true>(call.q + row(token, head, member) * call.key_dim, call.key_dim, to);
    }
    float* output(int64_t token, int64_t head, int64_t member) const {
        return call.out + row(token, head, member) * call.value_dim;
    }
    void locate(int64_t token, int64_t head, int64_t first, int count, Rows<T>& rows) const {
        const int64_t k_step = call.kv_heads * call.key_dim, v_step = call.kv_heads * call.value_dim;
        for_each_run(call.paging, token, first, count, [&](int i, int n, int64_t slot) {
            const T* k = static_cast<const T*>(call.k) + slot * k_step + head * call.key_dim;
            const T* v = static_cast<const T*>(call.v) + slot * v_step + head * call.value_dim;
            for (int j = 0; j < n; ++j) {
                rows.k[i + j] = k + j * k_step;
                rows.v[i + j] = v + j * v_step;
            }
        });
    }
    void widen(const Rows<T>& rows, int64_t, int count, Widened& to) const {
        const int64_t k_pad = padded(call.key_dim), v_pad = padded(call.value_dim);
        for (int i = 0; i < count; ++i) {
            convert<true>(rows.k[i], call.key_dim, to.k_memory + i * k_pad);
            convert<true>(rows.v[i], call.value_dim, to.v_memory + i * v_pad);
            to.rows.k[i] = to.k_memory + i * k_pad;
            to.rows.v[i] = to.v_memory + i * v_pad;
        }
    }
};

// Absorbed MLA: one key per position for all heads, whose first `latent` elements are also the value.
template <class T>
struct LatentSource {
    using Element = T;
    static constexpr bool kFewInPlace = false;
    const MlaCall& call;

    int64_t tokens() const { return call.tokens; }
    int64_t heads() const { return 1; }
    int64_t group() const { return call.heads; }
    int64_t key_dim() const { return call.latent + call.rope; }
    int64_t value_dim() const { return call.latent; }
    float scale() const { return call.scale; }
    // The widths alone decide, so that all rows of a model are summed alike: whole panels on every instruction set.
    bool apart() const {
        return std::is_same_v<T, ApartBF16> && key_dim() % (2 * kLanes) == 0 && value_dim() % (8 * kLanes) == 0;
    }
    int64_t visible(int64_t token) const { return int64_t{call.paging.positions[token]} + 1; }
    bool share_keys(int64_t a, int64_t b) const { return call.paging.seq_ids[a] == call.paging.seq_ids[b]; }

    void query(int64_t token, int64_t, int64_t member, float* to) const {
        const int64_t row = token * call.heads + member;
        for (int64_t i = key_dim(); i < padded(key_dim()); ++i) to[i] = 0.0f;
        convert<false>(call.q_latent + row * call.latent, call.latent, to);
        convert<false>(call.q_rope + row * call.rope_stride, call.rope, to + call.latent);
    }
    float* output(int64_t token, int64_t, int64_t member) const {
        return call.out + (token * call.heads + member) * call.latent;
    }
    void locate(int64_t token, int64_t, int64_t first, int count, Rows<T>& rows) const {
        for_each_run(call.paging, token, first, count, [&](int i, int n, int64_t slot) {
            for (int j = 0; j < n; ++j)
                rows.k[i + j] = rows.v[i + j] = static_cast<const T*>(call.cache) + (slot + j) * key_dim();
        });
    }
    void widen(const Rows<T>& rows, int64_t, int count, Widened& to) const {
        const int64_t pad = padded(key_dim());
        for (int i = 0; i < count; ++i) {
            float* row = to.k_memory + i * pad;
            if (apart())
                convert_apart(rows.k[i], key_dim(), row);
            else
                convert<true>(rows.k[i], key_dim(), row);
            to.rows.k[i] = to.rows.v[i] = row;
        }
    }
};

// Expanded MLA: keys of one head are [k_nope of the head | k_rope shared by all heads].
struct ExpandedSource {
    using Element = float;
    static constexpr bool kFewInPlace = false;
    static constexpr bool apart() { return false; }
    const MlaPrefillCall& call;

    int64_t tokens() const { return call.tokens; }
    int64_t heads() const { return call.heads; }
    int64_t group() const { return 1; }
    int64_t key_dim() const { return call.nope + call.rope; }
    int64_t value_dim() const { return call.value_dim; }
    float scale() const { return call.scale; }
    int64_t visible(int64_t token) const { return call.first_position + token + 1; }
    bool share_keys(int64_t, int64_t) const { return true; }

    void query(int64_t token, int64_t head, int64_t, float* to) const {
        convert<true>(call.q + (token * call.row_heads + head) * key_dim(), key_dim(), to);
    }
    float* output(int64_t token, int64_t head, int64_t) const {
        return call.out + (token * call.row_heads + head) * call.value_dim;
    }
    void locate(int64_t, int64_t head, int64_t first, int count, Rows<float>& rows) const {
        for (int i = 0; i < count; ++i) {
            const int64_t at = (first + i) * call.heads + head;
            rows.k[i] = call.k_nope + at * call.nope;
            rows.v[i] = call.v + at * call.value_dim;
        }
    }
    // Copied although float32 already: rows of one head lie far apart, often at distances that share one cache set.
    void widen(const Rows<float>& rows, int64_t first, int count, Widened& to) const {
        const int64_t k_pad = padded(key_dim()), v_pad = padded(call.value_dim);
        for (int i = 0; i < count; ++i) {
            float* k = to.k_memory + i * k_pad;
            for (int64_t d = key_dim(); d < k_pad; ++d) k[d] = 0.0f;
            convert<false>(rows.k[i], call.nope, k);
            convert<false>(call.k_rope + (first + i) * call.rope_stride, call.rope, k + call.nope);
            convert<true>(rows.v[i], call.value_dim, to.v_memory + i * v_pad);
            to.rows.k[i] = k;
            to.rows.v[i] = to.v_memory + i * v_pad;
        }
    }
};

// ---- register tiles
// --------------------------------------------------------------------------------------------------

template <int n>
struct Number {
    static constexpr int value = n;
};

constexpr int kKeys = 4 * static_cast<int>(kWide);  // of the register tile of several rows

// Cuts rows [0, n) into groups of up to 3 for the register tiles, up to 6 where the registers are wide. The grouping
// changes no value.
template <class Body>
void for_row_groups(int n, Body body) {
    int row = 0;
    if constexpr (kWide == 2) {
        for (; n - row >= 9 || n - row == 6; row += 6) body(row, Number<6>{});
        for (; n - row >= 7 || n - row == 4; row += 4) body(row, Number<4>{});
    }
    for (; n - row >= 5 || n - row == 3; row += 3) body(row, Number<3>{});
    for (; n - row >= 2; row += 2) body(row, Number<2>{});
    if (row < n) body(row, Number<1>{});
}

// Asks for n elements that will be needed soon. Always inlined, as prefetch() is.
template <class T>
[[gnu::always_inline]] inline void fetch(const T* p, int64_t n) {
    const auto* bytes = reinterpret_cast<const char*>(p);
    for (int64_t i = 0; i < n * static_cast<int64_t>(sizeof(T)); i += kCacheLine) prefetch(bytes + i);
}

// The first or second eight of 16 elements of a key, or of two keys side by side.
template <int Half, class T>
inline Wide load_keys(const T* const* keys, int64_t d) {
    if constexpr (kWide == 1)
        return load8(keys[0] + d + Half * kLanes);
    else
        return join(load8(keys[0] + d + Half * kLanes), load8(keys[1] + d + Half * kLanes));
}
template <int Half>
inline Wide load_keys(const ApartBF16* const* keys, int64_t d) {
    if constexpr (kWide == 1)
        return load_bf16_half<Half>(&keys[0][d].bits);
    else
        return load_bf16_half<Half>(&keys[0][d].bits, &keys[1][d].bits);
}

// acc[r][c] += q[r] * keys[c] for eight elements of each.
template <int Half, int R, int C, class T>
[[gnu::always_inline]] inline void add_products(const float* q, int64_t q_stride, const T* const* keys, int64_t d,
                                                Wide (&acc)[R][C]) {
    Wide rows[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) rows[r] = repeat(load(q + r * q_stride + d + Half * kLanes));
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
        const Wide key = load_keys<Half>(keys + c * static_cast<int>(kWide), d);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) acc[r][c] = fma(rows[r], key, acc[r][c]);
    }
}

// scores[r][j] = q[r] . keys[j] for R rows and C registers of keys; each product is summed in eight lanes over
// ascending d.
template <int R, int C, class T>
inline void score_tile(const float* q, int64_t q_stride, const T* const* keys, int64_t dim, float* scores) {
    constexpr int width = kWide;
    Wide acc[R][C];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r][c] = zero<kWide>();
    int64_t d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
        add_products<0>(q, q_stride, keys, d, acc);
        add_products<1>(q, q_stride, keys, d, acc);
    }
    if (d < dim) add_products<0>(q, q_stride, keys, d, acc);
#pragma GCC unroll 2
    for (int c = 0; c < C; c += 4) {
        float* to = scores + c * width;
#pragma GCC unroll 3
        for (int r = 0; r + 2 <= R; r += 2) sum4_pair(&acc[r][c], &acc[r + 1][c], to + r * kTile, to + (r + 1) * kTile);
        if constexpr (R % 2 == 1) sum4(&acc[R - 1][c], to + (R - 1) * kTile);
    }
}

template <class Lanes, class T>
inline Lanes load_as(const T* p) {
    if constexpr (std::is_same_v<Lanes, F32x8>)
        return load8(p);
    else
        return load_wide(p);
}
// The first or second half of two registers' elements.
template <class Lanes, int Half, class T>
inline Lanes load_half(const T* p) {
    if constexpr (std::is_same_v<T, ApartBF16> && std::is_same_v<Lanes, Wide>)
        return load_wide_bf16_half<Half>(&p->bits);
    else
        return load_as<Lanes>(p + Half * static_cast<int64_t>(sizeof(Lanes) / sizeof(float)));
}

// acc[r][..] = acc[r][..] * alpha[r] + sum over j of weights[r][j] * values[j][..], j ascending, for R rows and C
// registers of N vectors.
template <int R, int C, size_t N, class T>
inline void value_tile(const float* weights, const T* const* values, int count, int64_t offset, const float* alpha,
                       float* acc, int64_t acc_stride) {
    using Lanes = Floats<N>;
    constexpr int64_t width = N * kLanes;
    Lanes sums[R][C];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sums[r][c] = load_as<Lanes>(acc + r * acc_stride + c * width) * set1<N>(alpha[r]);
    for (int j = 0; j < count; ++j) {
        Lanes w[R];
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) w[r] = set1<N>(weights[r * kTile + j]);
        const T* row = values[j] + offset;
        const auto add = [&](int c, const Lanes& value) __attribute__((always_inline)) {
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) sums[r][c] = fma(w[r], value, sums[r][c]);
        };
        if constexpr (C == 1) {
            add(0, load_as<Lanes>(row));
        } else {
#pragma GCC unroll 8
            for (int c = 0; c < C; c += 2) {
                add(c, load_half<Lanes, 0>(row + c * width));
                add(c + 1, load_half<Lanes, 1>(row + c * width));
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) store(acc + r * acc_stride + c * width, sums[r][c]);
}

inline F32x8 largest(F32x8 a) { return a; }
inline F32x8 largest(const F32x16& a) { return max(lower(a), upper(a)); }
inline F32x8 add(F32x8 total, F32x8 a) { return total + a; }
inline F32x8 add(F32x8 total, const F32x16& a) { return (total + lower(a)) + upper(a); }

// Pads scores to whole registers and returns the largest.
float largest_score(float* scores, int count) {
    const int64_t end = padded<kWideLanes>(count);
    for (int64_t j = count; j < end; ++j) scores[j] = kLeast;
    Wide top = load_wide(scores);
    for (int64_t j = kWideLanes; j < end; j += kWideLanes) top = max(top, load_wide(scores + j));
    return max_lane(largest(top));
}

// Scores become weights, e^(score - row_max); returns their sum. What pads them becomes 1e-38, which changes no sum of
// a row: the largest score's weight in it is 1.
float weigh(float* scores, int count, float row_max) {
    const int64_t end = padded<kWideLanes>(count);
    F32x8 total = zero();
    for (int64_t j = 0; j < end; j += kWideLanes) {
        const Wide weights = exp(load_wide(scores + j) - set1<kWide>(row_max));
        store(scores + j, weights);
        total = add(total, weights);
    }
    return sum(total);
}

// Softmax state of one row: the largest score, the sum of weights relative to it, and the weighted sum of values.
struct Partial {
    float* acc;
    float* max;
    float* sum;

    void clear(int64_t width) const {
        for (int64_t i = 0; i < width; ++i) acc[i] = 0.0f;
        *max = kLeast;
        *sum = 0.0f;
    }
};

// Adds a later chunk's result to the sum of the earlier ones.
void fold(const Partial& total, const Partial& later, int64_t width) {
    const float new_max = larger(*later.max, *total.max);
    const float a = exp1(*total.max - new_max), b = exp1(*later.max - new_max);
    *total.max = new_max;
    *total.sum = fma1(*later.sum, b, *total.sum * a);
    for (int64_t i = 0; i < width; i += kLanes)
        store(total.acc + i, fma(load(later.acc + i), set1(b), load(total.acc + i) * set1(a)));
}

template <class Source>
void write_row(const Source& source, const Partial& total, float* out) {
    const float inverse = 1.0f / *total.sum;
    const int64_t value_dim = source.value_dim();
    if (!source.apart()) {
        for (int64_t i = 0; i < value_dim; ++i) out[i] = total.acc[i] * inverse;
        return;
    }
    for (int64_t first = 0; first < value_dim; first += 2 * kWideLanes) {
        for (int64_t i = 0; i < kWideLanes; ++i) {
            out[first + 2 * i] = total.acc[first + i] * inverse;
            out[first + 2 * i + 1] = total.acc[first + kWideLanes + i] * inverse;
        }
    }
}

// ---- blocks of rows
// --------------------------------------------------------------------------------------------------

// Tokens [first, last) that share keys, and heads [head, head + heads) of these. Rows go by head, token and member of
// the head's group.
struct Block {
    int64_t first, last, head, heads;
    bool operator==(const Block&) const = default;
};
// Which query head of which token a row is.
struct Row {
    int64_t token, head, member;
};
inline Row row_of(const Block& block, int64_t group, int64_t row) {
    const int64_t head_rows = (block.last - block.first) * group;
    return {block.first + row % head_rows / group, block.head + row / head_rows, row % group};
}

// Positions chunk * kChunk .. chunk * kChunk + kChunk - 1 as a block sees them.
struct Spot {
    Block block;
    int64_t chunk;
};

template <class Source>
float* output_of(const Source& source, const Row& row) {
    return source.output(row.token, row.head, row.member);
}

// One thread's memory and state while it computes rows of a block, chunk after chunk.
template <class Source_>
class RowWorker {
public:
    using Source = Source_;
    using Element = typename Source::Element;
    static constexpr int64_t kLeastRows = 2;  // that are worth a part of their own
    static constexpr int64_t kMostRows = kWidenedRows;

    // `step` scores of a row wait together.
    static int64_t floats(const Source& source, int64_t rows, int64_t step = kTile) {
        const int64_t k_pad = padded(source.key_dim()), v_pad = padded(source.value_dim());
        return rows * (k_pad + step + 2 * v_pad + 9) + kTile * (k_pad + v_pad) + 3 * kLanes + 16;
    }

    RowWorker(const Source& source, float* memory, int64_t max_rows, int64_t step = kTile)
        : source_(source), k_pad_(padded(source.key_dim())), v_pad_(padded(source.value_dim())) {
        const auto take = [&memory](int64_t floats) {
            float* taken = memory;
            memory += floats;
            return taken;
        };
        wide_.k_memory = take(kTile * k_pad_);
        wide_.v_memory = take(kTile * v_pad_);
        q_ = take(max_rows * k_pad_);
        scores_ = take(max_rows * step);
        acc_ = take(max_rows * v_pad_);
        total_ = take(max_rows * v_pad_);
        visible_ = reinterpret_cast<int64_t*>(take(2 * max_rows));
        max_ = take(max_rows + kLanes);
        new_max_ = take(max_rows + kLanes);
        alpha_ = take(max_rows + kLanes);
        sum_ = take(max_rows);
        seen_ = reinterpret_cast<int*>(take(max_rows));
        total_max_ = take(max_rows);
        total_sum_ = take(max_rows);
    }

    // Takes up rows [first_row, last_row) of a block.
    void begin(const Block& block, int64_t first_row, int64_t last_row) {
        if (has(block, first_row, last_row)) return;
        block_ = block;
        first_row_ = first_row;
        head_rows_ = (block.last - block.first) * source_.group();
        rows_ = static_cast<int>(last_row - first_row);
        for (int r = 0; r < rows_; ++r) load_query(r);
        longest_ = 0;
        for (int r = 0; r < rows_; ++r) {
            visible_[r] = source_.visible(at(r).token);
            longest_ = visible_[r] > longest_ ? visible_[r] : longest_;
        }
        const bool few = Source::kFewInPlace && smaller(head_rows_, rows_) <= kInPlaceRows &&
                         k_pad_ == source_.key_dim() && v_pad_ == source_.value_dim();
        in_place_ = few || (kWide == 2 && source_.apart());
    }

    int rows() const { return rows_; }
    int64_t longest() const { return longest_; }
    bool sees(int row, int64_t chunk) const { return visible_[row] > chunk * kChunk; }
    Partial partial(int row) const { return {acc_ + row * v_pad_, max_ + row, sum_ + row}; }
    Partial total(int row) const { return {total_ + row * v_pad_, total_max_ + row, total_sum_ + row}; }
    float* output(int row) const { return output_of(source_, at(row)); }

    // Leaves in partial(row) the result over the chunk's positions, for every row that sees any of them. What comes
    // `after` is fetched from memory on the way.
    void compute(int64_t chunk, const Spot& after) {
        for (int r = 0; r < rows_; ++r) partial(r).clear(v_pad_);
        const int64_t end = smaller(longest_, (chunk + 1) * kChunk);
        if (in_place_ && cold_) {
            next_count_ = locate(block_, block_.head, chunk * kChunk, end, next_);
            for (fetched_ = 0; fetched_ < next_count_;) fetch_ahead(1);
        }
        cold_ = false;
        for (int64_t first = chunk * kChunk; first < end; first += kTile) {
            if (first + kTile < end)
                next_count_ = locate(block_, block_.head, first + kTile, end, next_);
            else
                next_count_ = locate(after.block, after.block.head, after.chunk * kChunk,
                                     source_.visible(after.block.first), next_);
            fetched_ = 0;
            for (int begin = 0; begin < rows_;) {
                const int last = end_of_head(begin);
                add_positions(first, end, begin, last);
                begin = last;
            }
        }
    }

protected:
    bool has(const Block& block, int64_t first_row, int64_t last_row) const {
        return block == block_ && first_row == first_row_ && last_row == first_row_ + rows_;
    }
    Row at(int row) const { return row_of(block_, source_.group(), first_row_ + row); }
    // Behind the last row of the head that row `begin` is of.
    int end_of_head(int begin) const {
        return static_cast<int>(smaller(((first_row_ + begin) / head_rows_ + 1) * head_rows_ - first_row_, rows_));
    }
    // Queries are scaled once instead of every score.
    void load_query(int row) {
        float* q = q_ + row * k_pad_;
        const Row place = at(row);
        source_.query(place.token, place.head, place.member, q);
        for (int64_t d = 0; d < k_pad_; d += kLanes) store(q + d, load(q + d) * set1(source_.scale()));
        if (source_.apart())
            for (int64_t d = 0; d < k_pad_; d += 2 * kLanes) take_apart(q + d);
    }
    int seen(int row, int64_t first, int count) const {
        const int64_t n = visible_[row] - first;
        return static_cast<int>(n < 0 ? 0 : n < count ? n : count);
    }

    // Finds the rows of the tile that starts at `first`; behind the last of them the pointers repeat, because register
    // tiles take keys in whole groups.
    int locate(const Block& block, int64_t head, int64_t first, int64_t end, Rows<Element>& rows) const {
        const int count = static_cast<int>(end - first < 0 ? 0 : end - first < kTile ? end - first : kTile);
        if (count == 0) return 0;
        source_.locate(block.first, head, first, count, rows);
        for (int i = count; i < kTile; ++i) {
            rows.k[i] = rows.k[count - 1];
            rows.v[i] = rows.v[count - 1];
        }
        return count;
    }

    // The tile from `first` on, for rows [begin, last) of one head.
    void add_positions(int64_t first, int64_t end, int begin, int last) {
        const int count = locate(block_, at(begin).head, first, end, tile_);
        if (in_place_) {
            add_tile(tile_, first, count, begin, last);
            return;
        }
        source_.widen(tile_, first, count, wide_);
        for (int c = count; c < kTile; ++c) wide_.rows.k[c] = wide_.rows.k[count - 1];
        add_tile<float>(wide_.rows, first, count, begin, last);
    }

    // Each row meets exactly the keys that it sees, although rows are computed in groups.
    template <class T>
    void add_tile(const Rows<T>& tile, int64_t first, int count, int begin, int last) {
        for (int r = begin; r < last; ++r) seen_[r] = seen(r, first, count);
        score_rows(tile, count, begin, last);
        soften_rows(begin, last);
        sum_rows(tile, begin, last);
    }

    // One step of the online softmax: scores become weights, and alpha_ what earlier sums of the row must be multiplied
    // by. Exponentials of several rows' alphas are computed together, because each by itself would be waited for.
    void soften_rows(int begin, int last) {
        for (int r = begin; r < last; ++r)
            new_max_[r] = seen_[r] > 0 ? larger(largest_score(scores_ + r * kTile, seen_[r]), max_[r]) : max_[r];
        for (int r = begin; r < last; r += kLanes) store(alpha_ + r, exp(load(max_ + r) - load(new_max_ + r)));
        for (int r = begin; r < last; ++r) {
            if (seen_[r] == 0) continue;
            max_[r] = new_max_[r];
            sum_[r] = fma1(sum_[r], alpha_[r], weigh(scores_ + r * kTile, seen_[r], max_[r]));
        }
    }

    // Scores of keys that a row does not see are computed where its group needs them, and ignored.
    template <class T>
    void score_rows(const Rows<T>& tile, int count, int begin, int last) {
        const auto score = [&](int r, int j, auto rows, auto registers) {
            score_tile<decltype(rows)::value, decltype(registers)::value>(q_ + r * k_pad_, k_pad_, tile.k + j, k_pad_,
                                                                          scores_ + r * kTile + j);
        };
        const int n = last - begin;
        const bool paced = n > kInPlaceRows && n <= kPacedRows;
        for (int j = 0; j < count; j += kLanes) {
            if (!paced) fetch_ahead(1 + (kLanes - 1) / static_cast<int>(block_.heads));
            if (n == 1) {
                score(begin, j, Number<1>{}, Number<8 / kWide>{});
                continue;
            }
            for_row_groups(n, [&](int row, auto rows) {
                constexpr int R = decltype(rows)::value;
                if (paced) fetch_between((kLanes * R + n - 1) / n);
                const int r = begin + row, most = most_seen(r, R);
                for (int k = j; k < smaller(j + kLanes, most); k += kKeys) score(r, k, rows, Number<4>{});
            });
        }
    }

    int most_seen(int row, int n) const {
        int most = seen_[row];
        for (int r = row + 1; r < row + n; ++r) most = seen_[r] > most ? seen_[r] : most;
        return most;
    }
    int least_seen(int row, int n) const {
        int least = seen_[row];
        for (int r = row + 1; r < row + n; ++r) least = seen_[r] < least ? seen_[r] : least;
        return least;
    }

    // Asks for some rows of the next tile, of all heads of the block, while this one keeps the arithmetic busy.
    [[gnu::always_inline]] void fetch_ahead(int rows) {
        const int last = static_cast<int>(smaller(next_count_, fetched_ + rows));
        for (; fetched_ < last; ++fetched_) {
            const Element *k = next_.k[fetched_], *v = next_.v[fetched_];
            fetch(k, block_.heads * source_.key_dim());
            if (v != k) fetch(v, block_.heads * source_.value_dim());
        }
    }

    // The same between groups of rows: what they need themselves would wait behind a long queue of requests. Not
    // inlined, or each size of group would hold a copy.
    [[gnu::noinline]] void fetch_between(int rows) { fetch_ahead(rows); }

    // Adds values of keys [first, count) to one panel of `R` rows; sums from before them shrink only with the first
    // keys.
    template <int R, int C, size_t N, class T>
    void sum_panel(const Rows<T>& tile, int row, int first, int count, int64_t offset) {
        static constexpr float kKeep[6] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
        value_tile<R, C, N>(scores_ + row * kTile + first, tile.v + first, count - first, offset,
                            first == 0 ? alpha_ + row : kKeep, acc_ + row * v_pad_ + offset, v_pad_);
    }

    // One panel of all rows: groups go together as far as all of their rows see, and from there each row alone, which
    // is the same chain of additions.
    template <int C, size_t N, class T>
    void sum_panels(const Rows<T>& tile, int64_t offset, int begin, int last) {
        for_row_groups(last - begin, [&](int in_head, auto group) {
            constexpr int R = decltype(group)::value;
            const int row = begin + in_head, together = least_seen(row, R);
            if (together > 0) sum_panel<R, C, N>(tile, row, 0, together, offset);
            for (int r = row; r < row + R; ++r)
                if (seen_[r] > together) sum_panel<1, C, N>(tile, r, together, seen_[r], offset);
        });
    }

    // A single row takes wider panels: eight sums in flight hide the latency of a multiply-add.
    template <class T>
    void sum_rows(const Rows<T>& tile, int begin, int last) {
        int64_t offset = 0;
        if (last - begin == 1)
            for (; offset + 8 * kWideLanes <= v_pad_; offset += 8 * kWideLanes)
                sum_panel<1, 8, kWide>(tile, begin, 0, seen_[begin], offset);
        for (; offset + 4 * kWideLanes <= v_pad_; offset += 4 * kWideLanes)
            sum_panels<4, kWide>(tile, offset, begin, last);
        for (; offset < v_pad_; offset += kLanes) sum_panels<1, 1>(tile, offset, begin, last);
    }

    const Source& source_;
    int64_t k_pad_, v_pad_;
    Block block_{};
    int64_t first_row_ = 0, head_rows_ = 1, longest_ = 0;
    int rows_ = 0, next_count_ = 0, fetched_ = 0;  // of the next tile, fetched_ rows have been asked for
    bool in_place_ = false, cold_ = true;          // cold: nothing has been asked for
    Rows<Element> tile_, next_;                    // the tile in work and the one behind it
    Widened wide_;
    int64_t* visible_;
    int* seen_;  // keys of the tile in work that a row sees
    float *q_, *scores_, *acc_, *total_, *max_, *new_max_, *alpha_, *sum_, *total_max_, *total_sum_;
};

#if defined(__AMX_BF16__)

// The same on tile registers: a chunk is one step, and rows come in groups of 16. Those that fill up the last group
// come to numbers that nobody reads.
class TileWorker : public RowWorker<LatentSource<ApartBF16>> {
public:
    static constexpr int64_t kLeastRows = kTileRows;
    static constexpr int64_t kMostRows = 96;  // with their queries and weights, cut, they fill half of the cache
    static_assert(LatentTiles::kPositions == kChunk);

    static int64_t floats(const Source& source, int64_t rows) {
        rows = padded<kTileRows>(rows);
        return LatentTiles::floats(rows, source.key_dim()) + RowWorker::floats(source, rows, kChunk);
    }

    TileWorker(const Source& source, float* memory, int64_t rows)
        : RowWorker(source, memory + LatentTiles::floats(rows, source.key_dim()), padded<kTileRows>(rows), kChunk),
          tiles_(memory, rows, source.key_dim(), source.value_dim()) {}

    void begin(const Block& block, int64_t first_row, int64_t last_row) {
        if (has(block, first_row, last_row)) return;
        RowWorker::begin(block, first_row, last_row);
        tiles_.take_queries(q_, k_pad_, rows_);
    }

    void compute(int64_t chunk, const Spot&) {
        const int64_t first = chunk * kChunk;
        const auto count = static_cast<int>(smaller(longest_ - first, kChunk));
        for (int p = 0; p < count; p += kTile) {
            const int n = locate(block_, block_.head, first + p, first + count, tile_);
            for (int i = 0; i < n; i += kTileRows) tiles_.take_keys(tile_.k + i, p + i, n - i);
        }
        const auto groups = static_cast<int>(LatentTiles::groups(rows_));
        for (int g = 0; g < groups; ++g) tiles_.score(g, scores_ + g * kTileRows * kChunk);
        for (int r = 0; r < rows_; ++r) soften(r, seen(r, first, count));
        tiles_.add_values(groups, scores_, acc_, v_pad_);
    }

private:
    void soften(int row, int seen) {
        float* scores = scores_ + row * kChunk;
        max_[row] = seen > 0 ? largest_score(scores, seen) : kLeast;
        sum_[row] = seen > 0 ? weigh(scores, seen, max_[row]) : 0.0f;
        for (int p = seen; p < kChunk; ++p) scores[p] = 0.0f;
    }

    LatentTiles tiles_;
};

#endif

// ---- schedule
// --------------------------------------------------------------------------------------------------------

// How a call is cut into blocks. Nothing here changes a value.
struct Plan {
    int64_t* starts;  // first token of each token tile, and the end
    int64_t tiles = 0;
    int64_t heads = 0;  // that keys have
    int64_t group = 0;
    int64_t block_rows = 0;
    int64_t longest = 0;
    int64_t work = 0;      // multiply-adds
    bool reading = false;  // rather than computing: then a block spans all heads

    int64_t together() const { return reading ? heads : 1; }
    int64_t head_blocks() const { return reading ? 1 : heads; }
    int64_t blocks() const { return tiles * head_blocks(); }
    // Later tokens first: they see more, and a long block that starts last would be waited for.
    Block block(int64_t index) const {
        const int64_t tile = tiles - 1 - index / head_blocks();
        return {starts[tile], starts[tile + 1], index % head_blocks(), together()};
    }
    int64_t rows(const Block& block) const { return (block.last - block.first) * group * together(); }
};

template <class Worker>
Plan make_plan(const typename Worker::Source& source, int64_t* starts) {
    Plan plan{starts};
    plan.heads = source.heads();
    plan.group = source.group();
    const int64_t most = plan.group >= Worker::kMostRows ? 1 : Worker::kMostRows / plan.group;
    for (int64_t token = 0; token < source.tokens(); ++token) {
        const int64_t start = plan.tiles == 0 ? 0 : starts[plan.tiles - 1];
        if (plan.tiles == 0 || token - start == most || !source.share_keys(start, token)) starts[plan.tiles++] = token;
        plan.longest = source.visible(token) > plan.longest ? source.visible(token) : plan.longest;
        plan.work += source.visible(token) * plan.heads * plan.group * (source.key_dim() + source.value_dim());
    }
    starts[plan.tiles] = source.tokens();
    plan.block_rows = 0;
    for (int64_t tile = 0; tile < plan.tiles; ++tile) {
        const int64_t rows = (starts[tile + 1] - starts[tile]) * plan.group;
        plan.block_rows = rows > plan.block_rows ? rows : plan.block_rows;
    }
    // Few rows cost less arithmetic than memory, and keys of all heads lie together: they are read as they lie.
    plan.reading = Worker::Source::kFewInPlace && plan.block_rows <= kInPlaceRows;
    plan.block_rows *= plan.together();
    return plan;
}

int64_t chunks_of(int64_t positions) { return (positions + kChunk - 1) / kChunk; }

// Enough blocks for all threads: each thread takes whole blocks and folds chunk after chunk. Small blocks, which cost
// mostly their reading, are taken in ranges that lie together in the cache; large ones from one counter, because the
// last of them would be waited for.
template <class Worker>
void run_whole(const typename Worker::Source& source, const Plan& plan, int threads, float* memory,
               int64_t thread_floats) {
    const int64_t width = padded(source.value_dim()), blocks = plan.blocks();
    const bool ranges = plan.work < blocks * kInlineWork;
    run_on(threads, [&](Team& team) {
        Worker worker(source, memory + team.index * thread_floats, plan.block_rows);
        const auto claim = [&] {
            return static_cast<int64_t>(ranges ? team.next_in_range(static_cast<size_t>(blocks)) : team.next());
        };
        for (int64_t i = claim(); i < blocks; i = claim()) {
            const Block block = plan.block(i);
            worker.begin(block, 0, plan.rows(block));
            for (int r = 0; r < worker.rows(); ++r) worker.total(r).clear(width);
            const int64_t chunks = chunks_of(worker.longest());
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                const bool onward = ranges && chunk + 1 == chunks && i + 1 < blocks;
                worker.compute(chunk, onward ? Spot{plan.block(i + 1), 0} : Spot{block, chunk + 1});
                for (int r = 0; r < worker.rows(); ++r)
                    if (worker.sees(r, chunk)) fold(worker.total(r), worker.partial(r), width);
            }
            for (int r = 0; r < worker.rows(); ++r) write_row(source, worker.total(r), worker.output(r));
        }
    });
}

// Few blocks: their chunks are computed by all threads, a window of chunks at a time, and then folded in order.
template <class Worker>
class SplitRun {
    using Source = typename Worker::Source;

public:
    SplitRun(const Source& source, const Plan& plan, int threads)
        : source_(source),
          plan_(plan),
          threads_(threads),
          width_(padded(source.value_dim())),
          row_floats_(width_ + kLanes) {
        const int64_t all_rows = plan.blocks() * plan.block_rows;
        const int64_t chunks = chunks_of(plan.longest);
        window_ = kPartialFloats / (all_rows * row_floats_);
        window_ = window_ < 1 ? 1 : window_ > chunks ? chunks : window_;
        // Short contexts: cut the rows too, so that every thread has work.
        const int64_t items = plan.blocks() * window_;
        parts_ = (2 * threads + items - 1) / items;
        const int64_t most_parts = (plan.block_rows + Worker::kLeastRows - 1) / Worker::kLeastRows;
        parts_ = parts_ < most_parts ? parts_ : most_parts;
    }

    int64_t floats() const { return plan_.blocks() * plan_.block_rows * row_floats_ * (window_ + 1); }

    void run(float* memory, int64_t thread_floats, float* partials) {
        partials_ = partials;
        run_on(threads_, [&](Team& team) {
            Worker worker(source_, memory + team.index * thread_floats, plan_.block_rows);
            for (int64_t first = 0; first < chunks_of(plan_.longest); first += window_) {
                compute_window(team, worker, first);
                team.barrier();
                fold_window(team, first);
                team.barrier();
            }
        });
    }

private:
    // Slot 0 .. window - 1: chunks of the window; slot `window`: the total so far.
    Partial stored(int64_t block, int64_t row, int64_t slot) const {
        float* at = partials_ + ((block * plan_.block_rows + row) * (window_ + 1) + slot) * row_floats_;
        return {at, at + width_, at + width_ + 1};
    }

    // Parts of one chunk and chunks of all heads follow each other, as they do in the cache.
    struct Item {
        int64_t block, slot, part;
    };
    Item item_at(int64_t i) const {
        const int64_t heads = plan_.head_blocks(), head = i / parts_ % heads, slot = i / (parts_ * heads) % window_;
        return {i / (parts_ * heads * window_) * heads + head, slot, i % parts_};
    }

    void compute_window(Team& team, Worker& worker, int64_t first) {
        const int64_t items = plan_.blocks() * window_ * parts_;
        const auto claim = [&] { return static_cast<int64_t>(team.next_in_range(static_cast<size_t>(items))); };
        for (int64_t i = claim(); i < items; i = claim()) {
            const auto [index, slot, part] = item_at(i);
            const Item next = item_at(smaller(i + 1, items - 1));
            const Block block = plan_.block(index);
            const int64_t rows = plan_.rows(block);
            const int64_t begin = rows * part / parts_, end = rows * (part + 1) / parts_;
            if (begin == end) continue;
            worker.begin(block, begin, end);
            if (worker.longest() <= (first + slot) * kChunk) continue;
            worker.compute(first + slot, {plan_.block(next.block), first + next.slot});
            for (int64_t row = begin; row < end; ++row)
                keep(worker.partial(static_cast<int>(row - begin)), index, row, slot);
        }
    }

    void keep(const Partial& from, int64_t block, int64_t row, int64_t slot) const {
        const Partial to = stored(block, row, slot);
        std::memcpy(to.acc, from.acc, sizeof(float) * static_cast<size_t>(width_));
        *to.max = *from.max;
        *to.sum = *from.sum;
    }

    void fold_window(Team& team, int64_t first) {
        const int64_t items = plan_.blocks() * plan_.block_rows;
        for (auto i = static_cast<int64_t>(team.next()); i < items; i = static_cast<int64_t>(team.next())) {
            const Block block = plan_.block(i / plan_.block_rows);
            const int64_t row = i % plan_.block_rows;
            if (row < plan_.rows(block)) fold_row(block, i / plan_.block_rows, row, first);
        }
    }

    void fold_row(const Block& block, int64_t index, int64_t row, int64_t first) const {
        const Partial total = stored(index, row, window_);
        const Row place = row_of(block, plan_.group, row);
        const int64_t chunks = chunks_of(source_.visible(place.token));
        if (first == 0) total.clear(width_);
        const int64_t last = chunks < first + window_ ? chunks : first + window_;
        for (int64_t chunk = first; chunk < last; ++chunk) fold(total, stored(index, row, chunk - first), width_);
        if (first < chunks && chunks <= first + window_) write_row(source_, total, output_of(source_, place));
    }

    const Source& source_;
    const Plan& plan_;
    int threads_;
    int64_t width_, row_floats_, window_ = 1, parts_ = 1;
    float* partials_ = nullptr;
};

template <class Worker>
void run_with(const typename Worker::Source& source) {
    if (source.tokens() == 0) return;
    // Scratch holds the plan's starts, then each thread's memory, then partial results: asked for twice, because the
    // sizes of the later parts follow from the plan.
    const auto start_bytes = static_cast<size_t>(source.tokens() + 1) * sizeof(int64_t);
    const Plan sizes = make_plan<Worker>(source, static_cast<int64_t*>(scratch(start_bytes)));
    const int threads = sizes.work < kInlineWork ? 1 : thread_count();
    SplitRun<Worker> split(source, sizes, threads);
    // Long contexts of few rows are read chunk by chunk.
    const bool whole = !(sizes.reading && sizes.longest > kChunk) && (threads == 1 || sizes.blocks() >= 8 * threads);
    const int64_t thread_floats = (Worker::floats(source, sizes.block_rows) + 15) / 16 * 16;
    const int64_t floats = threads * thread_floats + (whole ? 0 : split.floats());
    auto* memory = static_cast<float*>(scratch(static_cast<size_t>(floats) * sizeof(float) + start_bytes));
    const Plan plan = make_plan<Worker>(source, reinterpret_cast<int64_t*>(memory + floats));
    if (whole)
        run_whole<Worker>(source, plan, threads, memory, thread_floats);
    else
        SplitRun<Worker>(source, plan, threads).run(memory, thread_floats, memory + threads * thread_floats);
}

template <class Source>
void run(const Source& source) {
    run_with<RowWorker<Source>>(source);
}

// ---- entry points
// ----------------------------------------------------------------------------------------------------

template <template <class> class Source, class B, class Call>
void run_paged(const Call& call) {
    if (call.type == CacheType::f32) return run(Source<float>{call});
    if (call.type == CacheType::f16) return run(Source<F16>{call});
    run(Source<B>{call});
}

void attention(const AttentionCall& call) { run_paged<GroupedSource, BF16>(call); }
bool latents_on_tiles([[maybe_unused]] CacheType type, [[maybe_unused]] int64_t latent, [[maybe_unused]] int64_t rope) {
#if defined(__AMX_BF16__)
    return type == CacheType::bf16 && LatentTiles::fit(latent + rope, latent);
#else
    return false;
#endif
}
void mla_attention(const MlaCall& call) {
#if defined(__AMX_BF16__)
    if (latents_on_tiles(call.type, call.latent, call.rope)) return run_with<TileWorker>(LatentSource<ApartBF16>{call});
#endif
    run_paged<LatentSource, ApartBF16>(call);
}
void mla_prefill(const MlaPrefillCall& call) { run(ExpandedSource{call}); }

template <class T>
void store_typed(T* cache, const float* values, const int64_t* slots, int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows; ++i) convert<false>(values + i * width, width, cache + slots[i] * width);
}

void store_rows(CacheType type, void* cache, const float* values, const int64_t* slots, int64_t rows, int64_t width) {
    if (type == CacheType::f32) return store_typed(static_cast<float*>(cache), values, slots, rows, width);
    if (type == CacheType::f16) return store_typed(static_cast<F16*>(cache), values, slots, rows, width);
    store_typed(static_cast<BF16*>(cache), values, slots, rows, width);
}

template <class T>
void load_typed(const T* cache, float* values, const int64_t* slots, int64_t rows, int64_t width) {
    constexpr int64_t kRowsPerItem = 64;
    const int threads = rows * width < kInlineWork ? 1 : thread_count();
    parallel_for(threads, static_cast<size_t>((rows + kRowsPerItem - 1) / kRowsPerItem), [&](size_t item) {
        const auto first = static_cast<int64_t>(item) * kRowsPerItem;
        const int64_t last = first + kRowsPerItem < rows ? first + kRowsPerItem : rows;
        for (int64_t i = first; i < last; ++i) convert<false>(cache + slots[i] * width, width, values + i * width);
    });
}

void load_rows(CacheType type, const void* cache, float* values, const int64_t* slots, int64_t rows, int64_t width) {
    if (type == CacheType::f32) return load_typed(static_cast<const float*>(cache), values, slots, rows, width);
    if (type == CacheType::f16) return load_typed(static_cast<const F16*>(cache), values, slots, rows, width);
    load_typed(static_cast<const BF16*>(cache), values, slots, rows, width);
}

}  // namespace

AttentionKernels attention_kernels() {
    return {attention, mla_attention, latents_on_tiles, mla_prefill, store_rows, load_rows};
}

}  // namespace finback::FINBACK_NAMESPACE
