// Bindings of attention as parts of decoder layers: grouped-query and latent, each from the residual stream and back.
#include <nanobind/stl/array.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "dispatch.h"
#include "matrix.h"
#include "paged.h"
#include "part.h"

namespace finback {
namespace {

// ---- grouped-query attention
// ---------------------------------------------------------------------------------------------

using AttentionMatrices = std::array<const Matrix*, 4>;  // q, k, v and o
using AttentionBiases = std::array<OptionalArray, 4>;    // of the same

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
    PartWork prepare(const StepArrays& step, int64_t n, float* x) const override {
        const int64_t row_floats = heads_ * (cache_.key_dim + cache_.value_dim) + cache_.k.width + cache_.v.width;
        const auto floats = static_cast<size_t>(n * row_floats);
        return {piece_bytes<float>(floats),
                [this, c = calls(step, n), floats, x](Pieces memory) { run(c, x, memory.take<float>(floats)); }};
    }

private:
    static constexpr const char* kName = "GroupedAttention";

    struct Calls {
        Heads queries, keys;
        RopeCall turn_q, turn_k;
        const int64_t* slots;
        AttentionCall attention;
    };

    Calls calls(const StepArrays& step, int64_t n) const {
        Calls c{};
        c.queries = {n, heads_, cache_.key_dim};
        c.keys = {n, cache_.heads, cache_.key_dim};
        c.turn_q = rope_of(kName, c.queries, step.cos, step.sin, interleaved_, 0);
        c.turn_k = rope_of(kName, c.keys, step.cos, step.sin, interleaved_, 0);
        c.slots = slots_of(kName, cache_.k, step.slots, n);
        const Paging paging = paging_of(kName, cache_.k, n, step.block_tables, step.seq_ids, step.positions);
        c.attention = attention_over(kName, cache_, n, heads_, paging, scale_);
        return c;
    }

    // Fresh queries, keys, values and what the queries attend to lie one behind the other in memory.
    void run(const Calls& c, float* x, float* memory) const {
        const int64_t n = c.queries.tokens;
        const auto count = static_cast<size_t>(n);
        float *q = memory, *k = q + n * heads_ * cache_.key_dim, *v = k + n * cache_.k.width;
        float* const fresh[3] = {q, k, v};
        AttentionCall call = c.attention;
        call.q = q;
        call.out = v + n * cache_.v.width;
        const GemmKernels& gemm = kernels().gemm;
        const AttentionKernels& attention = kernels().attention;
        gemm.linear({x, count, of_x_, weights_, 3, bias_, nullptr, fresh});
        norm_heads(c.queries, of_q_, q);
        norm_heads(c.keys, of_k_, k);
        rotate(c.turn_q, q);
        rotate(c.turn_k, k);
        attention.store_rows(cache_.k.type, cache_.k.data, k, c.slots, n, cache_.k.width);
        attention.store_rows(cache_.v.type, cache_.v.data, v, c.slots, n, cache_.v.width);
        attention.attention(call);
        gemm.linear({call.out, count, Norm{}, &weights_[3], 1, &bias_[3], x, &x});
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

// ---- latent attention
// ----------------------------------------------------------------------------------------------------

using BottleneckArguments = std::tuple<const Matrix*, OptionalArray, NormArgument>;  // q_a, its bias, what follows it

// Multi-head latent attention of one layer: norm, products, rotation, cache, attention in both forms and the product
// with o. Prompts are expanded, as far as they stand before a position; all other rows are absorbed.
class LatentAttention final : public Part {
public:
    LatentAttention(const Matrix& q, const Matrix& kv_a, const Matrix& k_up, const Matrix& k_absorb, const Matrix& v_up,
                    const Matrix& o, InOutArray cache, NormArgument norm, std::optional<BottleneckArguments> bottleneck,
                    OptionalArray kv_a_bias, NormArgument kv_a_norm, OptionalArray o_bias, bool interleaved,
                    float scale, int64_t absorbed_from, int64_t working_bytes)
        : cache_array_(std::move(cache)),
          norm_(std::move(norm)),
          latent_norm_(std::move(kv_a_norm)),
          bottleneck_(std::move(bottleneck)),
          kv_a_bias_array_(std::move(kv_a_bias)),
          o_bias_array_(std::move(o_bias)),
          q_(q.weight),
          kv_a_(kv_a.weight),
          k_up_(k_up.weight),
          k_absorb_(k_absorb.weight),
          v_up_(v_up.weight),
          o_(o.weight),
          heads_(signed_size(k_absorb_.experts)),
          latent_(signed_size(k_absorb_.rows)),
          nope_(signed_size(k_absorb_.cols)),
          value_(signed_size(v_up_.rows)),
          interleaved_(interleaved),
          scale_(scale),
          absorbed_from_(absorbed_from),
          working_bytes_(working_bytes) {
        require_rank(kName, "cache", cache_array_, 3);
        require_writable(kName, "cache", cache_array_);
        cache_ = cache_of(kName, "cache", cache_array_);
        rope_ = cache_.width - latent_;
        require(rope_ >= 0 && rope_ % 2 == 0, kName, "cache must hold a latent of ", latent_,
                " elements and pairs of rotated ones per position, not ", cache_.width);
        require_matrix(k_up_, kName, "k_up", k_absorb_.experts, k_absorb_.cols, k_absorb_.rows);
        require_matrix(v_up_, kName, "v_up", k_absorb_.experts, v_up_.rows, k_absorb_.rows);
        require_matrix(kv_a_, kName, "kv_a", 1, static_cast<size_t>(cache_.width), kv_a_.cols);
        if (bottleneck_) bind_bottleneck(*bottleneck_);
        const size_t q_cols = bottleneck_ ? q_a_.rows : kv_a_.cols;
        require_matrix(q_, kName, "q", 1, static_cast<size_t>(heads_ * head_dim()), q_cols);
        require_matrix(o_, kName, "o", 1, kv_a_.cols, static_cast<size_t>(heads_ * value_));
        kv_a_bias_ = bias_of("kv_a_bias", kv_a_bias_array_, cache_.width);
        o_bias_ = bias_of("o_bias", o_bias_array_, width());
        of_x_ = norm_of(kName, norm_, width());
        of_latent_ = norm_of(kName, latent_norm_, latent_);
        require(absorbed_from_ >= 0, kName, "absorbed_from must be at least 0, not ", absorbed_from_);
        require(working_bytes_ > 0, kName, "working_bytes must be above 0, not ", working_bytes_);
    }

    int64_t width() const override { return signed_size(kv_a_.cols); }
    PartWork prepare(const StepArrays& step, int64_t n, float* x) const override {
        Calls c = calls(step, n);
        return {bytes(c), [this, c = std::move(c), x](Pieces memory) { run(c, x, memory); }};
    }

private:
    static constexpr const char* kName = "LatentAttention";

    // Rows [first, end) that take one form of attention.
    struct Range {
        int64_t first, end;
        bool expanded;
        int64_t rows() const { return end - first; }
    };

    struct Calls {
        RopeCall turn_q, turn_latents;
        const int64_t* slots;
        MlaCall attention;  // of all rows, were they absorbed
        std::vector<Range> ranges;

        int64_t rows() const { return attention.tokens; }
        const Paging& paging() const { return attention.paging; }
    };

    // A step's fresh rows: [n, heads * head_dim], [n, latent + rope], [n, heads * value].
    struct Fresh {
        float *q, *latents, *attended;
    };

    int64_t head_dim() const { return nope_ + rope_; }

    void bind_bottleneck(const BottleneckArguments& arguments) {
        const auto& [q_a, bias, norm] = arguments;
        require(q_a != nullptr, kName, "a bottleneck must have a weight");
        q_a_ = q_a->weight;
        require_matrix(q_a_, kName, "q_a", 1, q_a_.rows, kv_a_.cols);
        q_a_bias_ = bias_of("q_a_bias", bias, signed_size(q_a_.rows));
        of_q_a_ = norm_of(kName, norm, signed_size(q_a_.rows));
    }
    static const float* bias_of(const char* name, const OptionalArray& bias, int64_t rows) {
        return bias ? elements<float>(kName, name, *bias, {rows}) : nullptr;
    }

    Calls calls(const StepArrays& step, int64_t n) const {
        Calls c{};
        elements<float>(kName, "cos", step.cos, {n, rope_ / 2});
        c.turn_q = rope_of(kName, {n, heads_, head_dim()}, step.cos, step.sin, interleaved_, nope_);
        c.turn_latents = rope_of(kName, {n, 1, cache_.width}, step.cos, step.sin, interleaved_, latent_);
        c.slots = slots_of(kName, cache_, step.slots, n);
        const Paging paging = paging_of(kName, cache_, n, step.block_tables, step.seq_ids, step.positions);
        c.attention = latents_over(cache_, n, heads_, latent_, paging, scale_);
        c.attention.rope_stride = head_dim();
        c.ranges = ranges_of(step.prompts, paging, n);
        return c;
    }

    std::vector<Range> ranges_of(const InputArray& prompts, const Paging& paging, int64_t n) const {
        const int32_t* bounds = elements<int32_t>(kName, "prompts", prompts, {kAny, 2});
        std::vector<Range> ranges;
        int64_t done = 0;
        for (int64_t i = 0, last = 0; i < length(prompts, 0); ++i) {
            const int64_t first = bounds[2 * i], end = bounds[2 * i + 1];
            require(last <= first && first < end && end <= n, kName, "prompts[", i, "] must be rows behind row ", last,
                    " of ", n, ", not ", first, " to ", end);
            for (int64_t row = first + 1; row < end; ++row)
                require(paging.seq_ids[row] == paging.seq_ids[first] &&
                            paging.positions[row] == paging.positions[row - 1] + 1,
                        kName, "prompts[", i, "] must be consecutive positions of one sequence, which row ", row,
                        " is not");
            last = end;
            const int64_t rows = std::clamp<int64_t>(absorbed_from_ - paging.positions[first], 0, end - first);
            if (rows == 0) continue;
            if (done < first) ranges.push_back({done, first, false});
            ranges.push_back({first, first + rows, true});
            done = first + rows;
        }
        if (done < n) ranges.push_back({done, n, false});
        return ranges;
    }

    // ---- working memory

    size_t bytes(const Calls& c) const {
        size_t most = bottleneck_ ? piece_bytes<float>(static_cast<size_t>(c.rows()) * q_a_.rows) : 0;
        for (const Range& range : c.ranges)
            most = std::max(most, range.expanded ? expanded_bytes(context_of(c, range)) : absorbed_bytes(range));
        return piece_bytes<float>(floats(c.rows(), heads_ * head_dim())) +
               piece_bytes<float>(floats(c.rows(), cache_.width)) +
               piece_bytes<float>(floats(c.rows(), heads_ * value_)) + most;
    }
    size_t expanded_bytes(int64_t context) const {
        const int64_t heads = heads_at_once(context);
        return piece_bytes<int64_t>(static_cast<size_t>(context)) + piece_bytes<float>(floats(context, cache_.width)) +
               piece_bytes<float>(floats(context, heads * nope_)) + piece_bytes<float>(floats(context, heads * value_));
    }
    size_t absorbed_bytes(const Range& range) const {
        return 2 * piece_bytes<float>(floats(std::min(range.rows(), rows_at_once()), heads_ * latent_));
    }
    static size_t floats(int64_t rows, int64_t width) { return static_cast<size_t>(rows * width); }

    // Of a prompt's range: the positions that its last row sees.
    static int64_t context_of(const Calls& c, const Range& range) {
        return int64_t{c.paging().positions[range.end - 1]} + 1;
    }
    // Heads whose keys and values are expanded together, and rows whose queries are in latent space together.
    int64_t heads_at_once(int64_t context) const {
        return std::clamp<int64_t>(working_bytes_ / (signed_size(sizeof(float)) * context * (nope_ + value_)), 1,
                                   heads_);
    }
    int64_t rows_at_once() const {
        return std::max<int64_t>(working_bytes_ / (2 * signed_size(sizeof(float)) * heads_ * latent_), 1);
    }

    // ---- work

    void run(const Calls& c, float* x, Pieces memory) const {
        const Fresh fresh{memory.take<float>(floats(c.rows(), heads_ * head_dim())),
                          memory.take<float>(floats(c.rows(), cache_.width)),
                          memory.take<float>(floats(c.rows(), heads_ * value_))};
        project(c, x, fresh, memory);
        cache(c, fresh);
        for (const Range& range : c.ranges)
            range.expanded ? expand(c, range, fresh, memory) : absorb(c, range, fresh, memory);
        kernels().gemm.linear({fresh.attended, static_cast<size_t>(c.rows()), Norm{}, &o_, 1, &o_bias_, x, &x});
    }

    void project(const Calls& c, const float* x, const Fresh& fresh, Pieces memory) const {
        const auto n = static_cast<size_t>(c.rows());
        float* narrow = bottleneck_ ? memory.take<float>(n * q_a_.rows) : fresh.q;
        const Weight weights[2] = {bottleneck_ ? q_a_ : q_, kv_a_};
        const float* const biases[2] = {q_a_bias_, kv_a_bias_};
        float* const out[2] = {narrow, fresh.latents};
        kernels().gemm.linear({x, n, of_x_, weights, 2, biases, nullptr, out});
        const float* none = nullptr;
        if (bottleneck_) kernels().gemm.linear({narrow, n, of_q_a_, &q_, 1, &none, nullptr, &fresh.q});
    }

    void cache(const Calls& c, const Fresh& fresh) const {
        rotate(c.turn_q, fresh.q);
        rotate(c.turn_latents, fresh.latents);
        kernels().norm_rope.rms_norm(fresh.latents, of_latent_, fresh.latents, c.rows(), latent_, cache_.width);
        kernels().attention.store_rows(cache_.type, cache_.data, fresh.latents, c.slots, c.rows(), cache_.width);
    }

    void absorb(const Calls& c, const Range& range, const Fresh& fresh, Pieces memory) const {
        const int64_t most = rows_at_once();
        for (int64_t first = range.first; first < range.end; first += most)
            absorb_rows(c, first, std::min(most, range.end - first), fresh, memory);
    }

    void absorb_rows(const Calls& c, int64_t first, int64_t rows, const Fresh& fresh, Pieces memory) const {
        const auto n = static_cast<size_t>(rows);
        const float* q = fresh.q + first * heads_ * head_dim();
        float* q_latent = memory.take<float>(floats(rows, heads_ * latent_));
        MlaCall call = c.attention;
        call.q_latent = q_latent;
        call.q_rope = q + nope_;
        call.out = memory.take<float>(floats(rows, heads_ * latent_));
        call.paging.seq_ids += first;
        call.paging.positions += first;
        call.tokens = rows;
        const GemmKernels& gemm = kernels().gemm;
        gemm.head_linear({q, n, static_cast<size_t>(head_dim()), false, k_absorb_, q_latent});
        kernels().attention.mla_attention(call);
        gemm.head_linear({call.out, n, v_up_.cols, false, v_up_, fresh.attended + first * heads_ * value_});
    }

    // The range's own latents are read back too: attention sees what the cache holds, at its precision.
    void expand(const Calls& c, const Range& range, const Fresh& fresh, Pieces memory) const {
        const int64_t context = context_of(c, range), most = heads_at_once(context);
        auto* slots = memory.take<int64_t>(static_cast<size_t>(context));
        float* entries = memory.take<float>(floats(context, cache_.width));
        float* keys = memory.take<float>(floats(context, most * nope_));
        float* values = memory.take<float>(floats(context, most * value_));
        const Paging& paging = c.paging();
        const int32_t* table = paging.block_tables + paging.seq_ids[range.first] * paging.max_blocks;
        for (int64_t p = 0; p < context; ++p)
            slots[p] = table[p / cache_.block_size] * cache_.block_size + p % cache_.block_size;
        kernels().attention.load_rows(cache_.type, cache_.data, entries, slots, context, cache_.width);
        MlaPrefillCall call{};
        call.k_nope = keys;
        call.k_rope = entries + latent_;
        call.v = values;
        call.tokens = range.rows();
        call.row_heads = heads_;
        call.nope = nope_;
        call.rope = rope_;
        call.rope_stride = cache_.width;
        call.value_dim = value_;
        call.first_position = context - range.rows();
        call.scale = scale_;
        for (int64_t head = 0; head < heads_; head += most) {
            call.heads = std::min(most, heads_ - head);
            call.q = fresh.q + (range.first * heads_ + head) * head_dim();
            call.out = fresh.attended + (range.first * heads_ + head) * value_;
            expand_heads(k_up_, head, call.heads, entries, context, keys);
            expand_heads(v_up_, head, call.heads, entries, context, values);
            kernels().attention.mla_prefill(call);
        }
    }

    void expand_heads(const Weight& all, int64_t head, int64_t heads, const float* entries, int64_t context,
                      float* out) const {
        Weight some = all;
        some.data = all.pair_of(static_cast<size_t>(head), 0);
        some.experts = static_cast<size_t>(heads);
        kernels().gemm.head_linear(
            {entries, static_cast<size_t>(context), static_cast<size_t>(cache_.width), true, some, out});
    }

    InOutArray cache_array_;
    NormArgument norm_, latent_norm_;
    std::optional<BottleneckArguments> bottleneck_;
    OptionalArray kv_a_bias_array_, o_bias_array_;
    Cache cache_{};
    Weight q_a_, q_, kv_a_, k_up_, k_absorb_, v_up_, o_;
    const float *q_a_bias_ = nullptr, *kv_a_bias_ = nullptr, *o_bias_ = nullptr;
    Norm of_x_, of_q_a_, of_latent_;
    int64_t heads_, latent_, nope_, value_, rope_ = 0;
    bool interleaved_;
    float scale_;
    int64_t absorbed_from_, working_bytes_;
};

}  // namespace

void bind_attention_parts(nb::module_& m) {
    nb::class_<GroupedAttention, Part>(m, "GroupedAttention")
        .def(nb::init<const AttentionMatrices&, InOutArray, InOutArray, NormArgument, AttentionBiases, OptionalNorm,
                      OptionalNorm, bool, float>(),
             "weights"_a, "k_cache"_a, "v_cache"_a, nb::kw_only(), "norm"_a, "biases"_a, "q_norm"_a.none(),
             "k_norm"_a.none(), "interleaved"_a, "scale"_a, nb::keep_alive<1, 2>());
    nb::class_<LatentAttention, Part>(m, "LatentAttention")
        .def(nb::init<const Matrix&, const Matrix&, const Matrix&, const Matrix&, const Matrix&, const Matrix&,
                      InOutArray, NormArgument, std::optional<BottleneckArguments>, OptionalArray, NormArgument,
                      OptionalArray, bool, float, int64_t, int64_t>(),
             nb::kw_only(), "q"_a, "kv_a"_a, "k_up"_a, "k_absorb"_a, "v_up"_a, "o"_a, "cache"_a, "norm"_a,
             "bottleneck"_a.none(), "kv_a_bias"_a.none(), "kv_a_norm"_a, "o_bias"_a.none(), "interleaved"_a, "scale"_a,
             "absorbed_from"_a, "working_bytes"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(),
             nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>(), nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>(),
             nb::keep_alive<1, 10>());
}

}  // namespace finback
