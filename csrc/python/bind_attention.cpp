// Bindings of norms, RoPE, KV rows, attention, routing and sampling: every argument is checked here, then the GIL goes.
#include "array_args.h"
#include "dispatch.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace finback {
namespace {

// ---- what the faces share
// ----------------------------------------------------------------------------------------------

struct Cache {
    const void* data;
    CacheType type;
    int64_t blocks, block_size, width;  // width: elements of one position
};

CacheType cache_type(const char* operation, const char* name, nb::dlpack::dtype type) {
    if (type == nb::dtype<float>()) return CacheType::f32;
    if (type.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && type.bits == 16) return CacheType::f16;
    require(type == nb::dtype<uint16_t>(), operation, name, " must be float32, float16 or uint16 (bfloat16 bits)");
    return CacheType::bf16;
}

template <class A>
Cache cache_of(const char* operation, const char* name, const A& array) {
    require(array.ndim() >= 3 && array.shape(1) > 0, operation, name,
            " must be [blocks, block_size, ...] with block_size > 0, not ", describe(array));
    require(is_contiguous(array) && array.device_type() == nb::device::cpu::value, operation, name,
            " must be C-contiguous in the processor's memory");
    Cache cache{array.data(), cache_type(operation, name, array.dtype()), static_cast<int64_t>(array.shape(0)),
                static_cast<int64_t>(array.shape(1)), 1};
    for (size_t i = 2; i < array.ndim(); ++i) cache.width *= static_cast<int64_t>(array.shape(i));
    return cache;
}

int64_t length(const InputArray& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); }

void require_rank(const char* operation, const char* name, const InputArray& array, size_t rank) {
    require(array.ndim() == rank, operation, name, " must have ", rank, " axes, not ", describe(array));
}

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

nb::object attention(const InputArray& q, const InputArray& k_cache, const InputArray& v_cache,
                     const InputArray& block_tables, const InputArray& seq_ids, const InputArray& positions,
                     float scale) {
    constexpr const char* op = "attention";
    require_rank(op, "q", q, 3);
    require_rank(op, "k_cache", k_cache, 4);
    require_rank(op, "v_cache", v_cache, 4);
    const Cache k = cache_of(op, "k_cache", k_cache), v = cache_of(op, "v_cache", v_cache);
    const int64_t n = length(q, 0), heads = length(q, 1), kv_heads = length(k_cache, 2), key_dim = length(k_cache, 3);
    const int64_t value_dim = length(v_cache, 3);
    require(k.type == v.type && v.blocks == k.blocks && v.block_size == k.block_size && length(v_cache, 2) == kv_heads,
            op, "v_cache must match k_cache in type, blocks, block size and heads: ", describe(v_cache), " against ",
            describe(k_cache));
    require(kv_heads > 0 && heads > 0 && heads % kv_heads == 0, op,
            "q's heads must be a multiple of k_cache's: ", heads, " against ", kv_heads);
    require(key_dim > 0 && value_dim > 0, op, "k_cache and v_cache must have a last axis above 0");
    AttentionCall call{};
    call.q = elements<float>(op, "q", q, {n, heads, key_dim});
    call.k = k.data;
    call.v = v.data;
    call.type = k.type;
    call.paging = paging_of(op, k, n, block_tables, seq_ids, positions);
    call.tokens = n;
    call.heads = heads;
    call.kv_heads = kv_heads;
    call.key_dim = key_dim;
    call.value_dim = value_dim;
    call.scale = scale;
    Output<> out({n, heads, value_dim});
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
    call.rope = rope;
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
    bool same = values.ndim() == cache.ndim() - 1 && values.dtype() == nb::dtype<float>() && is_contiguous(values);
    for (size_t i = 1; same && i < values.ndim(); ++i) same = values.shape(i) == cache.shape(i + 1);
    require(same, op, "values must be C-contiguous float32 with the axes of the cache behind its second, not ",
            describe(values), " for ", describe(cache));
    const int64_t rows = length(values, 0);
    const int64_t* at = slots_of(op, target, slots, rows);
    const auto* from = static_cast<const float*>(values.data());
    without_gil([&] { kernels().attention.store_rows(target.type, cache.data(), from, at, rows, target.width); });
}

nb::object load_rows(const InputArray& cache, const InputArray& slots) {
    constexpr const char* op = "load_rows";
    const Cache source = cache_of(op, "cache", cache);
    require_rank(op, "slots", slots, 1);
    const int64_t rows = length(slots, 0);
    const int64_t* at = slots_of(op, source, slots, rows);
    std::vector<int64_t> shape{rows};
    for (size_t i = 2; i < cache.ndim(); ++i) shape.push_back(length(cache, i));
    Output<> out(shape);
    without_gil([&] { kernels().attention.load_rows(source.type, source.data, out.data, at, rows, source.width); });
    return out.array;
}

// ---- norms and rotations
// -------------------------------------------------------------------------------------------------

nb::object rms_norm(const InputArray& x, const InputArray& weight, float eps) {
    constexpr const char* op = "rms_norm";
    require(x.ndim() >= 1 && x.dtype() == nb::dtype<float>() && is_contiguous(x), op,
            "x must be C-contiguous float32 [..., d], not ", describe(x));
    const int64_t width = length(x, x.ndim() - 1);
    require(width > 0, op, "x must have a last axis above 0");
    const float* scale = elements<float>(op, "weight", weight, {width});
    const auto* from = static_cast<const float*>(x.data());
    std::vector<int64_t> shape;
    for (size_t i = 0; i < x.ndim(); ++i) shape.push_back(length(x, i));
    Output<> out(shape);
    const auto rows = static_cast<int64_t>(x.size()) / width;
    without_gil([&] { kernels().norm_rope.rms_norm(from, scale, eps, out.data, rows, width); });
    return out.array;
}

void rope(const InOutArray& x, const InputArray& cos, const InputArray& sin, bool interleaved, int64_t start) {
    constexpr const char* op = "rope";
    require(x.ndim() == 3, op, "x must be [n, heads, d], not ", describe(x));
    require_rank(op, "cos", cos, 2);
    RopeCall call{};
    call.tokens = static_cast<int64_t>(x.shape(0));
    call.heads = static_cast<int64_t>(x.shape(1));
    call.width = static_cast<int64_t>(x.shape(2));
    call.pairs = length(cos, 1);
    call.x = elements<float>(op, "x", x, {kAny, kAny, kAny});
    call.cos = elements<float>(op, "cos", cos, {call.tokens, call.pairs});
    call.sin = elements<float>(op, "sin", sin, {call.tokens, call.pairs});
    require(start >= 0 && start <= call.width && 2 * call.pairs <= call.width - start, op, "elements ", start, " to ",
            start, " + ", 2 * call.pairs, " must lie inside x's last axis of ", call.width);
    call.start = start;
    call.interleaved = interleaved;
    if (call.heads == 0 || call.pairs == 0) return;
    without_gil([&] { kernels().norm_rope.rope(call); });
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

Scoring scoring_of(const char* operation, const std::string& name) {
    require(name == "softmax" || name == "sigmoid", operation, "scoring must be softmax or sigmoid, not ", name);
    return name == "softmax" ? Scoring::softmax : Scoring::sigmoid;
}

GroupRule group_rule_of(const char* operation, const std::string& name) {
    require(name == "none" || name == "max" || name == "top2", operation, "group_rule must be none, max or top2, not ",
            name);
    return name == "none" ? GroupRule::none : name == "max" ? GroupRule::max : GroupRule::top2;
}

void check_groups(const char* operation, const RouteCall& call) {
    if (call.group_rule == GroupRule::none) return;
    require(call.groups > 0 && call.experts % call.groups == 0, operation, "groups must divide the ", call.experts,
            " experts, not be ", call.groups);
    require(call.group_rule == GroupRule::max || call.experts / call.groups >= 2, operation,
            "groups must have two experts each for top2");
    require(call.top_groups > 0 && call.top_groups <= call.groups, operation, "top_groups must be from 1 to ",
            call.groups, ", not ", call.top_groups);
    require(call.top_k <= call.top_groups * (call.experts / call.groups), operation, "top_k must be at most the ",
            call.top_groups * (call.experts / call.groups), " experts of the chosen groups, not ", call.top_k);
}

nb::object route(const InputArray& logits, const nb::object& bias, const std::string& scoring, int64_t top_k,
                 int64_t groups, int64_t top_groups, const std::string& group_rule, bool normalize, float scale) {
    constexpr const char* op = "route";
    require_rank(op, "logits", logits, 2);
    RouteCall call{};
    call.tokens = length(logits, 0);
    call.experts = length(logits, 1);
    call.logits = elements<float>(op, "logits", logits, {call.tokens, call.experts});
    InputArray bias_array;
    if (!bias.is_none()) {
        bias_array = nb::cast<InputArray>(bias);
        call.bias = elements<float>(op, "bias", bias_array, {call.experts});
    }
    require(top_k >= 1 && top_k <= call.experts, op, "top_k must be from 1 to ", call.experts, ", not ", top_k);
    call.top_k = top_k;
    call.groups = groups;
    call.top_groups = top_groups;
    call.scoring = scoring_of(op, scoring);
    call.group_rule = group_rule_of(op, group_rule);
    call.normalize = normalize;
    call.scale = scale;
    check_groups(op, call);
    if (call.group_rule == GroupRule::none) call.groups = 1;
    Output<int32_t> ids({call.tokens, top_k});
    Output<> weights({call.tokens, top_k});
    call.ids = ids.data;
    call.weights = weights.data;
    if (call.tokens > 0) without_gil([&] { kernels().sample.route(call); });
    return nb::make_tuple(ids.array, weights.array);
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
    m.def("sample", &sample, "logits"_a, nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "uniform"_a,
          "Draws a token.");
    m.def("top_logprobs", &top_logprobs, "logits"_a, "k"_a, "The k likeliest tokens and their log-probabilities.");
    m.def("logprob_of", &logprob_of, "logits"_a, "id"_a, "Log-probability of one token.");
    m.def("route", &route, "logits"_a, nb::kw_only(), "bias"_a.none(), "scoring"_a, "top_k"_a, "groups"_a,
          "top_groups"_a, "group_rule"_a, "normalize"_a, "scale"_a, "Chooses each token's experts.");
}

}  // namespace finback
