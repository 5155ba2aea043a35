// Bindings of norms, RoPE, KV rows, attention, routing and sampling: every argument is checked here, then the GIL goes.
#include <cmath>
#include <limits>

#include "dispatch.h"
#include "paged.h"

namespace finback {
namespace {

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
    MlaCall call =
        latents_over(latents, n, heads, latent, paging_of(op, latents, n, block_tables, seq_ids, positions), scale);
    call.q_latent = elements<float>(op, "q_latent", q_latent, {n, heads, latent});
    call.q_rope = elements<float>(op, "q_rope", q_rope, {n, heads, rope});
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
    call.heads = call.row_heads = length(q, 1);
    call.nope = length(k_nope, 2);
    call.rope = call.rope_stride = length(k_rope, 1);
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

void rope(const InOutArray& x, const InputArray& cos, const InputArray& sin, bool interleaved, int64_t start) {
    require_rank("rope", "x", x, 3);
    float* data = writable_elements<float>("rope", "x", x, {kAny, kAny, kAny});
    const RopeCall call = rope_of("rope", {length(x, 0), length(x, 1), length(x, 2)}, cos, sin, interleaved, start);
    without_gil([&] { rotate(call, data); });
}

// ---- what latent attention runs on
// -----------------------------------------------------------------------------------------------------

bool latents_on_tiles(const InputArray& cache, int64_t latent) {
    constexpr const char* op = "latents_on_tiles";
    require_rank(op, "cache", cache, 3);
    const Cache latents = cache_of(op, "cache", cache);
    require(latent >= 0 && latent <= latents.width, op, "latent is ", latent, ", but the cache holds ", latents.width,
            " elements of a position");
    return kernels().attention.latents_on_tiles(latents.type, latent, latents.width - latent);
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
    m.def("latents_on_tiles", &latents_on_tiles, "cache"_a, "latent"_a,
          "Whether absorbed attention runs on tile registers.");
    m.def("sample", &sample, "logits"_a, nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "uniform"_a,
          "Draws a token.");
    m.def("top_logprobs", &top_logprobs, "logits"_a, "k"_a, "The k likeliest tokens and their log-probabilities.");
    m.def("logprob_of", &logprob_of, "logits"_a, "id"_a, "Log-probability of one token.");
}

}  // namespace finback
