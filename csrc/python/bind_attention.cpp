// Bindings of norms, RoPE, KV rows, attention, routing and sampling: every argument is checked here, then the GIL goes.
#include "dispatch.h"
#include "matrix.h"
#include "part.h"

#include <nanobind/stl/array.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace finback {
namespace {

// ---- what the faces share
// ----------------------------------------------------------------------------------------------

struct Cache {
    void* data;
    CacheType type;
    int64_t blocks, block_size, width;  // width: elements of one position
};

CacheType cache_type(const char* operation, const char* name, const InputArray& array) {
    if (array.type() == 'f') return CacheType::f32;
    if (array.type() == 'e') return CacheType::f16;
    require(array.type() == 'H', operation, name, " must be float32, float16 or uint16 (bfloat16 bits), not ",
            describe(array));
    return CacheType::bf16;
}

Cache cache_of(const char* operation, const char* name, const InputArray& array) {
    require(array.ndim() >= 3 && array.shape(1) > 0, operation, name,
            " must be [blocks, block_size, ...] with block_size > 0, not ", describe(array));
    require_contiguous(operation, name, array);
    Cache cache{array.data(), cache_type(operation, name, array), array.shape(0), array.shape(1), 1};
    for (size_t i = 2; i < array.ndim(); ++i) cache.width *= array.shape(i);
    return cache;
}

int64_t length(const InputArray& array, size_t axis) { return array.shape(axis); }

// The blocks that hold positions 0 .. last[s] of each sequence exist.
void check_blocks(const char* operation, const Paging& paging, const std::vector<int64_t>& last, int64_t blocks) {
    for (size_t s = 0; s < last.size(); ++s) {
        const int32_t* table = paging.block_tables + static_cast<int64_t>(s) * paging.max_blocks;
        for (int64_t b = 0; last[s] >= 0 && b <= last[s] / paging.block_size; ++b)
            require(table[b] >= 0 && table[b] < blocks, operation, "block_tables[", s, ", ", b, "] is ", table[b],
                    ", but the cache has ", blocks, " blocks");
    }
}

Paging paging_of(const char* operation, const Cache& cache, int64_t tokens, const InputArray& block_tables,
                 const InputArray& seq_ids, const InputArray& positions) {
    require_rank(operation, "block_tables", block_tables, 2);
    const int64_t sequences = length(block_tables, 0), max_blocks = length(block_tables, 1);
    const Paging paging{elements<int32_t>(operation, "block_tables", block_tables, {sequences, max_blocks}),
                        elements<int32_t>(operation, "seq_ids", seq_ids, {tokens}),
                        elements<int32_t>(operation, "positions", positions, {tokens}), max_blocks, cache.block_size};
    std::vector<int64_t> last(static_cast<size_t>(sequences), -1);
    for (int64_t i = 0; i < tokens; ++i) {
        const int64_t s = paging.seq_ids[i], p = paging.positions[i];
        require(s >= 0 && s < sequences, operation, "seq_ids[", i, "] is ", s, ", but there are ", sequences,
                " sequences");
        require(p >= 0 && p / cache.block_size < max_blocks, operation, "positions[", i, "] is ", p,
                ", but block_tables reach to ", max_blocks, " blocks of ", cache.block_size);
        last[static_cast<size_t>(s)] = std::max(last[static_cast<size_t>(s)], p);
    }
    check_blocks(operation, paging, last, cache.blocks);
    return paging;
}

template <class F>
void without_gil(F&& body) {
    const nb::gil_scoped_release release;
    body();
}

// ---- attention
// -----------------------------------------------------------------------------------------------------------

// Keys and values of grouped-query attention, both writable or not.
struct HeadCache {
    Cache k, v;
    int64_t heads, key_dim, value_dim;
};

HeadCache head_cache(const char* operation, const InputArray& k_cache, const InputArray& v_cache) {
    require_rank(operation, "k_cache", k_cache, 4);
    require_rank(operation, "v_cache", v_cache, 4);
    const HeadCache cache{cache_of(operation, "k_cache", k_cache), cache_of(operation, "v_cache", v_cache),
                          length(k_cache, 2), length(k_cache, 3), length(v_cache, 3)};
    const Cache &k = cache.k, &v = cache.v;
    require(
        v.type == k.type && v.blocks == k.blocks && v.block_size == k.block_size && length(v_cache, 2) == cache.heads,
        operation, "v_cache must match k_cache in type, blocks, block size and heads: ", describe(v_cache), " against ",
        describe(k_cache));
    require(cache.heads > 0 && cache.key_dim > 0 && cache.value_dim > 0, operation,
            "k_cache and v_cache must have heads and a last axis above 0");
    return cache;
}

// All but the queries and the result.
AttentionCall attention_over(const char* operation, const HeadCache& cache, int64_t tokens, int64_t heads,
                             const Paging& paging, float scale) {
    require(heads > 0 && heads % cache.heads == 0, operation, "q's heads must be a multiple of k_cache's: ", heads,
            " against ", cache.heads);
    AttentionCall call{};
    call.k = cache.k.data;
    call.v = cache.v.data;
    call.type = cache.k.type;
    call.paging = paging;
    call.tokens = tokens;
    call.heads = heads;
    call.kv_heads = cache.heads;
    call.key_dim = cache.key_dim;
    call.value_dim = cache.value_dim;
    call.scale = scale;
    return call;
}

nb::object attention(const InputArray& q, const InputArray& k_cache, const InputArray& v_cache,
                     const InputArray& block_tables, const InputArray& seq_ids, const InputArray& positions,
                     float scale) {
    constexpr const char* op = "attention";
    require_rank(op, "q", q, 3);
    const HeadCache cache = head_cache(op, k_cache, v_cache);
    const int64_t n = length(q, 0), heads = length(q, 1);
    AttentionCall call =
        attention_over(op, cache, n, heads, paging_of(op, cache.k, n, block_tables, seq_ids, positions), scale);
    call.q = elements<float>(op, "q", q, {n, heads, cache.key_dim});
    Output<> out({n, heads, cache.value_dim});
    call.out = out.data;
    without_gil([&] { kernels().attention.attention(call); });
    return out.array;
}

nb::object mla_attention(const InputArray& q_latent, const InputArray& q_rope, const InputArray& cache,
                         const InputArray& block_tables, const InputArray& seq_ids, const InputArray& positions,
                         float scale) {
    constexpr const char* op = "mla_attention";
    require_rank(op, "q_latent", q_latent, 3);
    require_rank(op, "q_rope", q_rope, 3);
    require_rank(op, "cache", cache, 3);
    const Cache latents = cache_of(op, "cache", cache);
    const int64_t n = length(q_latent, 0), heads = length(q_latent, 1), latent = length(q_latent, 2);
    const int64_t rope = length(q_rope, 2);
    require(heads > 0 && latent > 0, op, "q_latent must have heads and a last axis above 0, not ", describe(q_latent));
    require(latents.width == latent + rope, op, "cache must hold ", latent, " + ", rope, " elements per position, not ",
            latents.width);
    MlaCall call{};
    call.q_latent = elements<float>(op, "q_latent", q_latent, {n, heads, latent});
    call.q_rope = elements<float>(op, "q_rope", q_rope, {n, heads, rope});
    call.cache = latents.data;
    call.type = latents.type;
    call.paging = paging_of(op, latents, n, block_tables, seq_ids, positions);
    call.tokens = n;
    call.heads = heads;
    call.latent = latent;
    call.rope = call.rope_stride = rope;
    call.scale = scale;
    Output<> out({n, heads, latent});
    call.out = out.data;
    without_gil([&] { kernels().attention.mla_attention(call); });
    return out.array;
}

nb::object mla_prefill(const InputArray& q, const InputArray& k_nope, const InputArray& k_rope, const InputArray& v,
                       int64_t first_position, float scale) {
    constexpr const char* op = "mla_prefill";
    require_rank(op, "q", q, 3);
    require_rank(op, "k_nope", k_nope, 3);
    require_rank(op, "k_rope", k_rope, 2);
    require_rank(op, "v", v, 3);
    const int64_t context = length(k_nope, 0);
    MlaPrefillCall call{};
    call.tokens = length(q, 0);
    call.heads = length(q, 1);
    call.nope = length(k_nope, 2);
    call.rope = length(k_rope, 1);
    call.value_dim = length(v, 2);
    require(call.heads > 0 && call.value_dim > 0, op, "heads and v's last axis must be above 0");
    require(call.nope + call.rope > 0, op, "keys must not be empty");
    call.q = elements<float>(op, "q", q, {call.tokens, call.heads, call.nope + call.rope});
    call.k_nope = elements<float>(op, "k_nope", k_nope, {context, call.heads, call.nope});
    call.k_rope = elements<float>(op, "k_rope", k_rope, {context, call.rope});
    call.v = elements<float>(op, "v", v, {context, call.heads, call.value_dim});
    require(first_position >= 0 && first_position <= context && call.tokens <= context - first_position, op,
            "queries at positions ", first_position, " to ", first_position, " + ", call.tokens,
            " need as many keys, not ", context);
    call.first_position = first_position;
    call.scale = scale;
    Output<> out({call.tokens, call.heads, call.value_dim});
    call.out = out.data;
    without_gil([&] { kernels().attention.mla_prefill(call); });
    return out.array;
}

// ---- rows of a cache
// -----------------------------------------------------------------------------------------------------

const int64_t* slots_of(const char* operation, const Cache& cache, const InputArray& slots, int64_t rows) {
    const int64_t* at = elements<int64_t>(operation, "slots", slots, {rows});
    const int64_t capacity = cache.blocks * cache.block_size;
    for (int64_t i = 0; i < rows; ++i)
        require(at[i] >= 0 && at[i] < capacity, operation, "slots[", i, "] is ", at[i], ", but the cache has ",
                capacity);
    return at;
}

void store_rows(const InOutArray& cache, const InputArray& values, const InputArray& slots) {
    constexpr const char* op = "store_rows";
    const Cache target = cache_of(op, "cache", cache);
    require_writable(op, "cache", cache);
    bool same = values.ndim() == cache.ndim() - 1 && values.type() == 'f' && values.contiguous();
    for (size_t i = 1; same && i < values.ndim(); ++i) same = values.shape(i) == cache.shape(i + 1);
    require(same, op, "values must be C-contiguous float32 with the axes of the cache behind its second, not ",
            describe(values), " for ", describe(cache));
    const int64_t rows = length(values, 0);
    const int64_t* at = slots_of(op, target, slots, rows);
    const auto* from = static_cast<const float*>(values.data());
    without_gil([&] { kernels().attention.store_rows(target.type, target.data, from, at, rows, target.width); });
}

nb::object load_rows(const InputArray& cache, const InputArray& slots) {
    constexpr const char* op = "load_rows";
    const Cache source = cache_of(op, "cache", cache);
    require_rank(op, "slots", slots, 1);
    const int64_t rows = length(slots, 0);
    const int64_t* at = slots_of(op, source, slots, rows);
    std::vector<int64_t> shape{rows};
    for (size_t i = 2; i < cache.ndim(); ++i) shape.push_back(length(cache, i));
    Output<> out(shape.data(), shape.size());
    without_gil([&] { kernels().attention.load_rows(source.type, source.data, out.data, at, rows, source.width); });
    return out.array;
}

// ---- norms and rotations
// -------------------------------------------------------------------------------------------------

nb::object rms_norm(const InputArray& x, const InputArray& weight, float eps) {
    constexpr const char* op = "rms_norm";
    require(x.ndim() >= 1 && x.type() == 'f', op, "x must be float32 [..., d], not ", describe(x));
    require_contiguous(op, "x", x);
    const int64_t width = length(x, x.ndim() - 1);
    require(width > 0, op, "x must have a last axis above 0");
    const Norm norm{elements<float>(op, "weight", weight, {width}), eps};
    const auto* from = static_cast<const float*>(x.data());
    std::vector<int64_t> shape;
    for (size_t i = 0; i < x.ndim(); ++i) shape.push_back(length(x, i));
    Output<> out(shape.data(), shape.size());
    const int64_t rows = x.size() / width;
    without_gil([&] { kernels().norm_rope.rms_norm(from, norm, out.data, rows, width, width); });
    return out.array;
}

// Heads [n, heads * width] to be normalised and rotated in place.
struct Heads {
    float* x;
    int64_t tokens, heads, width;
};

Heads heads_of(const char* operation, const char* name, const InOutArray& x, int64_t tokens, int64_t width) {
    float* data = writable_elements<float>(operation, name, x, {tokens, kAny});
    require(width > 0 && length(x, 1) % width == 0, operation, name, " must hold whole heads of ", width, ", not ",
            describe(x));
    return {data, tokens, length(x, 1) / width, width};
}

RopeCall rope_of(const char* operation, const Heads& heads, const InputArray& cos, const InputArray& sin,
                 bool interleaved, int64_t start) {
    require_rank(operation, "cos", cos, 2);
    RopeCall call{};
    call.x = heads.x;
    call.tokens = heads.tokens;
    call.heads = heads.heads;
    call.width = heads.width;
    call.pairs = length(cos, 1);
    call.cos = elements<float>(operation, "cos", cos, {call.tokens, call.pairs});
    call.sin = elements<float>(operation, "sin", sin, {call.tokens, call.pairs});
    require(start >= 0 && start <= call.width && 2 * call.pairs <= call.width - start, operation, "elements ", start,
            " to ", start, " + ", 2 * call.pairs, " must lie inside a head of ", call.width);
    call.start = start;
    call.interleaved = interleaved;
    return call;
}

void rotate(const RopeCall& call) {
    if (call.heads > 0 && call.pairs > 0) kernels().norm_rope.rope(call);
}

void rope(const InOutArray& x, const InputArray& cos, const InputArray& sin, bool interleaved, int64_t start) {
    require_rank("rope", "x", x, 3);
    const Heads heads{writable_elements<float>("rope", "x", x, {kAny, kAny, kAny}), length(x, 0), length(x, 1),
                      length(x, 2)};
    const RopeCall call = rope_of("rope", heads, cos, sin, interleaved, start);
    without_gil([&] { rotate(call); });
}

void norm_heads(const Heads& heads, const Norm& norm) {
    if (norm.weight == nullptr) return;
    kernels().norm_rope.rms_norm(heads.x, norm, heads.x, heads.tokens * heads.heads, heads.width, heads.width);
}

// ---- parts of layers
// -----------------------------------------------------------------------------------------------------

using AttentionMatrices = std::array<const Matrix*, 4>;            // q, k, v and o
using AttentionBiases = std::array<std::optional<InputArray>, 4>;  // of the same

// Grouped-query attention of one layer: norm, products, rotation, cache, attention and the product with o.
class GroupedAttention final : public Part {
public:
    GroupedAttention(const AttentionMatrices& matrices, InOutArray k_cache, InOutArray v_cache, NormArgument norm,
                     AttentionBiases biases, OptionalNorm q_norm, OptionalNorm k_norm, bool interleaved, float scale)
        : k_cache_(std::move(k_cache)),
          v_cache_(std::move(v_cache)),
          norm_(std::move(norm)),
          q_norm_(std::move(q_norm)),
          k_norm_(std::move(k_norm)),
          biases_(std::move(biases)),
          interleaved_(interleaved),
          scale_(scale) {
        require_writable(kName, "k_cache", k_cache_);
        require_writable(kName, "v_cache", v_cache_);
        cache_ = head_cache(kName, k_cache_, v_cache_);
        require(std::none_of(matrices.begin(), matrices.end(), [](const Matrix* m) { return m == nullptr; }), kName,
                "the weights of q, k, v and o must be there");
        const int64_t hidden = signed_size(matrices[0]->weight.cols);
        heads_ = signed_size(matrices[0]->weight.rows) / cache_.key_dim;
        require(heads_ > 0 && heads_ % cache_.heads == 0, kName, "q's heads must be a multiple of k_cache's: ", heads_,
                " against ", cache_.heads);
        const int64_t rows[4] = {heads_ * cache_.key_dim, cache_.k.width, cache_.v.width, hidden};
        const int64_t cols[4] = {hidden, hidden, hidden, heads_ * cache_.value_dim};
        constexpr const char* names[4] = {"q", "k", "v", "o"};
        for (size_t i = 0; i < 4; ++i) {
            weights_[i] = matrices[i]->weight;
            require_matrix(weights_[i], kName, names[i], 1, static_cast<size_t>(rows[i]), static_cast<size_t>(cols[i]));
        }
        for (size_t i = 0; i < 4; ++i)
            bias_[i] = biases_[i] ? elements<float>(kName, "bias", *biases_[i], {rows[i]}) : nullptr;
        of_x_ = norm_of(kName, norm_, hidden);
        of_q_ = norm_of(kName, q_norm_, cache_.key_dim);
        of_k_ = norm_of(kName, k_norm_, cache_.key_dim);
    }

    int64_t width() const override { return signed_size(weights_[0].cols); }
    int64_t floats_per_row() const override {
        return heads_ * (cache_.key_dim + cache_.value_dim) + cache_.k.width + cache_.v.width;
    }
    std::function<void()> prepare(const StepArrays& step, int64_t n, float* x, float* memory) const override {
        return [this, c = calls(step, n, memory), n, x] { run(c, n, x); };
    }

private:
    static constexpr const char* kName = "GroupedAttention";

    // A step's pieces. Fresh queries, keys, values and what the queries attend to lie one behind the other in memory.
    struct Calls {
        Heads queries, keys;
        float* values;
        RopeCall turn_q, turn_k;
        const int64_t* slots;
        AttentionCall attention;
    };

    void run(const Calls& c, int64_t n, float* x) const {
        const auto count = static_cast<size_t>(n);
        float* const fresh[3] = {c.queries.x, c.keys.x, c.values};
        const GemmKernels& gemm = kernels().gemm;
        const AttentionKernels& attention = kernels().attention;
        gemm.linear({x, count, of_x_, weights_, 3, bias_, nullptr, fresh});
        norm_heads(c.queries, of_q_);
        norm_heads(c.keys, of_k_);
        rotate(c.turn_q);
        rotate(c.turn_k);
        attention.store_rows(cache_.k.type, cache_.k.data, c.keys.x, c.slots, n, cache_.k.width);
        attention.store_rows(cache_.v.type, cache_.v.data, c.values, c.slots, n, cache_.v.width);
        attention.attention(c.attention);
        gemm.linear({c.attention.out, count, Norm{}, &weights_[3], 1, &bias_[3], x, &x});
    }

    Calls calls(const StepArrays& step, int64_t n, float* memory) const {
        Calls c{};
        c.queries = {memory, n, heads_, cache_.key_dim};
        c.keys = {memory + n * heads_ * cache_.key_dim, n, cache_.heads, cache_.key_dim};
        c.values = c.keys.x + n * cache_.k.width;
        c.turn_q = rope_of(kName, c.queries, step.cos, step.sin, interleaved_, 0);
        c.turn_k = rope_of(kName, c.keys, step.cos, step.sin, interleaved_, 0);
        c.slots = slots_of(kName, cache_.k, step.slots, n);
        const Paging paging = paging_of(kName, cache_.k, n, step.block_tables, step.seq_ids, step.positions);
        c.attention = attention_over(kName, cache_, n, heads_, paging, scale_);
        c.attention.q = c.queries.x;
        c.attention.out = c.values + n * cache_.v.width;
        return c;
    }

    InOutArray k_cache_, v_cache_;
    NormArgument norm_;
    OptionalNorm q_norm_, k_norm_;
    AttentionBiases biases_;
    HeadCache cache_{};
    Weight weights_[4];
    const float* bias_[4];
    Norm of_x_, of_q_, of_k_;
    int64_t heads_ = 0;
    bool interleaved_;
    float scale_;
};

// ---- what latent attention does with its fresh queries and latents
// ---------------------------------------------------------------------------------------

void cache_latents(const InOutArray& q, const InOutArray& latents, const InOutArray& cache, const InputArray& slots,
                   const InputArray& cos, const InputArray& sin, bool interleaved, int64_t head_dim,
                   const NormArgument& norm) {
    constexpr const char* op = "cache_latents";
    require_rank(op, "q", q, 2);
    require_rank(op, "cache", cache, 3);
    require_rank(op, "cos", cos, 2);
    require_writable(op, "cache", cache);
    const Cache target = cache_of(op, "cache", cache);
    const int64_t n = length(q, 0), rotated = 2 * length(cos, 1);
    const Heads queries = heads_of(op, "q", q, n, head_dim);
    const Heads fresh{writable_elements<float>(op, "latents", latents, {n, target.width}), n, 1, target.width};
    const RopeCall turn_q = rope_of(op, queries, cos, sin, interleaved, head_dim - rotated);
    const RopeCall turn_k = rope_of(op, fresh, cos, sin, interleaved, target.width - rotated);
    const int64_t latent = target.width - rotated;
    require(latent > 0, op, "the cache must hold latents before the ", rotated, " rotated elements");
    const Norm of_latent = norm_of(op, norm, latent);
    const int64_t* at = slots_of(op, target, slots, n);
    without_gil([&] {
        rotate(turn_q);
        rotate(turn_k);
        kernels().norm_rope.rms_norm(fresh.x, of_latent, fresh.x, n, latent, target.width);
        kernels().attention.store_rows(target.type, target.data, fresh.x, at, n, target.width);
    });
}

bool latents_on_tiles(const InputArray& cache, int64_t latent) {
    constexpr const char* op = "latents_on_tiles";
    require_rank(op, "cache", cache, 3);
    const Cache latents = cache_of(op, "cache", cache);
    require(latent >= 0 && latent <= latents.width, op, "latent is ", latent, ", but the cache holds ", latents.width,
            " elements of a position");
    return kernels().attention.latents_on_tiles(latents.type, latent, latents.width - latent);
}

nb::object mla_decode(const InputArray& q, const Matrix& k_absorb, const Matrix& v_up, const InputArray& cache,
                      const InputArray& block_tables, const InputArray& seq_ids, const InputArray& positions,
                      float scale) {
    constexpr const char* op = "mla_decode";
    const Weight &absorb = k_absorb.weight, &up = v_up.weight;
    require_rank(op, "cache", cache, 3);
    const Cache latents = cache_of(op, "cache", cache);
    const int64_t heads = signed_size(absorb.experts), latent = signed_size(absorb.rows);
    const int64_t nope = signed_size(absorb.cols), rope = latents.width - latent, n = length(q, 0);
    require(rope >= 0, op, "cache must hold at least the ", latent, " elements of a latent per position, not ",
            latents.width);
    require_matrix(up, op, "v_up", absorb.experts, up.rows, absorb.rows);
    const float* queries = elements<float>(op, "q", q, {n, heads, nope + rope});
    // Queries in latent space, and what they attend to: one after the other in one array.
    Output<> between({2, n, heads, latent});
    Output<> out({n, heads, signed_size(up.rows)});
    MlaCall call{};
    call.q_latent = between.data;
    call.q_rope = queries + nope;
    call.rope_stride = nope + rope;
    call.cache = latents.data;
    call.out = between.data + n * heads * latent;
    call.type = latents.type;
    call.paging = paging_of(op, latents, n, block_tables, seq_ids, positions);
    call.tokens = n;
    call.heads = heads;
    call.latent = latent;
    call.rope = rope;
    call.scale = scale;
    const auto count = static_cast<size_t>(n);
    without_gil([&] {
        kernels().gemm.head_linear(
            {queries, count, absorb.cols + static_cast<size_t>(rope), false, absorb, between.data});
        kernels().attention.mla_attention(call);
        kernels().gemm.head_linear({call.out, count, absorb.rows, false, up, out.data});
    });
    return out.array;
}

// ---- choices
// -------------------------------------------------------------------------------------------------------------

constexpr const char* kBadLogits = "logits must not hold NaN or +infinity, nor -infinity alone";

int64_t vocabulary(const char* operation, const InputArray& logits) {
    require_rank(operation, "logits", logits, 1);
    const int64_t vocab = length(logits, 0);
    require(vocab > 0 && vocab <= std::numeric_limits<int32_t>::max(), operation,
            "logits must hold 1 to 2^31 - 1 numbers, not ", vocab);
    return vocab;
}

int64_t sample(const InputArray& logits, float temperature, int64_t top_k, float top_p, float min_p, double uniform) {
    constexpr const char* op = "sample";
    SampleCall call{};
    call.vocab = vocabulary(op, logits);
    call.logits = elements<float>(op, "logits", logits, {call.vocab});
    require(temperature >= 0.0f && std::isfinite(temperature), op, "temperature must be at least 0, not ", temperature);
    require(top_k >= 0, op, "top_k must be at least 0 (0: no limit), not ", top_k);
    require(top_p > 0.0f && top_p <= 1.0f, op, "top_p must be above 0 and at most 1, not ", top_p);
    require(min_p >= 0.0f && min_p <= 1.0f, op, "min_p must be from 0 to 1, not ", min_p);
    require(uniform >= 0.0 && uniform < 1.0, op, "uniform must be at least 0 and below 1, not ", uniform);
    call.temperature = temperature;
    call.top_k = top_k;
    call.top_p = top_p;
    call.min_p = min_p;
    call.uniform = uniform;
    int64_t chosen = -1;
    without_gil([&] {
        chosen = temperature == 0.0f ? kernels().sample.argmax(call.logits, call.vocab) : kernels().sample.sample(call);
    });
    require(chosen >= 0, op, kBadLogits);
    return chosen;
}

nb::object top_logprobs(const InputArray& logits, int64_t k) {
    constexpr const char* op = "top_logprobs";
    const int64_t vocab = vocabulary(op, logits);
    const float* values = elements<float>(op, "logits", logits, {vocab});
    require(k >= 0 && k <= vocab, op, "k must be from 0 to ", vocab, ", not ", k);
    Output<int32_t> ids({k});
    Output<> logprobs({k});
    bool good = false;
    without_gil([&] {
        float largest = 0.0f;
        double log_sum = 0.0;
        good = kernels().sample.log_sum_exp(values, vocab, &largest, &log_sum);
        if (!good) return;
        kernels().sample.top_indices(values, vocab, k, ids.data);
        for (int64_t i = 0; i < k; ++i)
            logprobs.data[i] = static_cast<float>(static_cast<double>(values[ids.data[i]]) - largest - log_sum);
    });
    require(good, op, kBadLogits);
    return nb::make_tuple(ids.array, logprobs.array);
}

double logprob_of(const InputArray& logits, int64_t id) {
    constexpr const char* op = "logprob_of";
    const int64_t vocab = vocabulary(op, logits);
    const float* values = elements<float>(op, "logits", logits, {vocab});
    require(id >= 0 && id < vocab, op, "id must be from 0 to ", vocab - 1, ", not ", id);
    float largest = 0.0f;
    double log_sum = 0.0;
    bool good = false;
    without_gil([&] { good = kernels().sample.log_sum_exp(values, vocab, &largest, &log_sum); });
    require(good, op, kBadLogits);
    return static_cast<float>(static_cast<double>(values[id]) - largest - log_sum);
}

}  // namespace

void bind_attention(nb::module_& m) {
    m.def("attention", &attention, "q"_a, "k_cache"_a, "v_cache"_a, nb::kw_only(), "block_tables"_a, "seq_ids"_a,
          "positions"_a, "scale"_a, "Grouped-query attention over a paged cache.");
    m.def("mla_attention", &mla_attention, "q_latent"_a, "q_rope"_a, "cache"_a, nb::kw_only(), "block_tables"_a,
          "seq_ids"_a, "positions"_a, "scale"_a,
          "Multi-head latent attention, absorbed form, over a paged cache of latents.");
    m.def("mla_prefill", &mla_prefill, "q"_a, "k_nope"_a, "k_rope"_a, "v"_a, nb::kw_only(), "first_position"_a,
          "scale"_a, "Multi-head latent attention, expanded form, of one sequence.");
    m.def("store_rows", &store_rows, "cache"_a, "values"_a, "slots"_a, "Writes rows into slots of a cache.");
    m.def("load_rows", &load_rows, "cache"_a, "slots"_a, "Reads rows from slots of a cache as float32.");
    m.def("rms_norm", &rms_norm, "x"_a, "weight"_a, "eps"_a, "Root-mean-square norm over the last axis.");
    m.def("rope", &rope, "x"_a, "cos"_a, "sin"_a, nb::kw_only(), "interleaved"_a, "start"_a = 0,
          "Rotary position embedding, in place.");
    nb::class_<GroupedAttention, Part>(m, "GroupedAttention")
        .def(nb::init<const AttentionMatrices&, InOutArray, InOutArray, NormArgument, AttentionBiases, OptionalNorm,
                      OptionalNorm, bool, float>(),
             "weights"_a, "k_cache"_a, "v_cache"_a, nb::kw_only(), "norm"_a, "biases"_a, "q_norm"_a.none(),
             "k_norm"_a.none(), "interleaved"_a, "scale"_a, nb::keep_alive<1, 2>());
    m.def("cache_latents", &cache_latents, "q"_a, "latents"_a, "cache"_a, nb::kw_only(), "slots"_a, "cos"_a, "sin"_a,
          "interleaved"_a, "head_dim"_a, "norm"_a,
          "Rotates q in place, finishes the latents and writes them to their slots.");
    m.def("latents_on_tiles", &latents_on_tiles, "cache"_a, "latent"_a,
          "Whether absorbed attention runs on tile registers.");
    m.def("mla_decode", &mla_decode, "q"_a, "k_absorb"_a, "v_up"_a, "cache"_a, nb::kw_only(), "block_tables"_a,
          "seq_ids"_a, "positions"_a, "scale"_a, "Absorbed attention from queries to head outputs.");
    m.def("sample", &sample, "logits"_a, nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "uniform"_a,
          "Draws a token.");
    m.def("top_logprobs", &top_logprobs, "logits"_a, "k"_a, "The k likeliest tokens and their log-probabilities.");
    m.def("logprob_of", &logprob_of, "logits"_a, "id"_a, "Log-probability of one token.");
}

}  // namespace finback
