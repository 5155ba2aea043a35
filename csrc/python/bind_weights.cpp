// Bindings of weights and matrix products: every argument is checked here, then the GIL goes.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <chrono>
#include <limits>
#include <optional>
#include <tuple>

#include "array_args.h"
#include "dispatch.h"
#include "formats.h"
#include "matrix.h"
#include "pack.h"
#include "part.h"
#include "thread_pool.h"
#include "work.h"

namespace finback {
namespace {

// ---- packing
// -----------------------------------------------------------------------------------------------------------

const float* checked_scales(const Weight& w, const OptionalArray& scales) {
    if (w.format != Format::f8_e4m3) {
        require(!scales, "pack", "scales belong to f8_e4m3 only, not to ", info(w.format).name);
        return nullptr;
    }
    require(scales.has_value(), "pack", "f8_e4m3 needs scales [rows, ceil(cols / 128)]");
    const int64_t per_row = signed_size(ceil_div(w.cols, kFp8ScaleCols));
    if (scales->ndim() == 3)
        return elements<float>("pack", "scales", *scales, {signed_size(w.experts), signed_size(w.rows), per_row});
    return elements<float>("pack", "scales", *scales, {signed_size(w.experts * w.rows), per_row});
}

nb::object pack_tiles(const std::string& format, const InputArray& source, int64_t rows, int64_t cols, int64_t experts,
                      const OptionalArray& scales, const nb::object& out) {
    const Weight w = checked_shape("pack", format, rows, cols, experts);
    PublishedWeight published{w.format, w.rows, w.cols, w.experts, nullptr, checked_scales(w, scales)};
    const size_t bytes = w.experts * w.rows * row_bytes(w.format, w.cols);
    published.data = elements<uint8_t>("pack", "source", source, {signed_size(bytes)});
    nb::object result;
    uint8_t* tiles = nullptr;
    InOutArray view;
    if (!out.is_none()) {
        require(view.take(out.ptr()), "pack", "out must be an array of bytes");
        tiles = writable_elements<uint8_t>("pack", "out", view, {signed_size(bytes_of(w))});
        result = out;
    } else {
        const Output<uint8_t> fresh({signed_size(bytes_of(w))});
        tiles = fresh.data;
        result = fresh.array;
    }
    const nb::gil_scoped_release release;
    pack(published, tiles);
    return result;
}

std::pair<nb::object, double> quantize_rows(const std::string& format, const InputArray& x) {
    const Format f = format_named("quantize", format);
    require(f == Format::q8_0 || f == Format::q4_0 || f == Format::q4_1, "quantize",
            "format must be q8_0, q4_0 or q4_1, not ", format);
    const float* values = elements<float>("quantize", "x", x, {kAny, kAny});
    const size_t rows = size_of(x, 0), cols = size_of(x, 1);
    require(cols % kGroupCols == 0, "quantize", "columns of x must be a multiple of 32, not ", cols);
    const Output<uint8_t> blocks({signed_size(rows * row_bytes(f, cols))});
    double error = 0.0;
    {
        const nb::gil_scoped_release release;
        error = kernels().gemm.quantize(f, values, rows, cols, blocks.data);
    }
    return {blocks.array, error};
}

nb::object unpack_expert(const Matrix& m, int64_t expert) {
    const Weight& w = m.weight;
    require(expert >= 0 && static_cast<size_t>(expert) < w.experts, "unpack", "expert must be from 0 to ",
            w.experts - 1, ", not ", expert);
    const Output<float> out({signed_size(w.rows), signed_size(w.cols)});
    const nb::gil_scoped_release release;
    unpack_rows(w, static_cast<size_t>(expert), 0, w.rows, out.data);
    return out.array;
}

nb::object take_matrix_rows(const Matrix& m, const InputArray& ids) {
    const int64_t* rows = elements<int64_t>("take_rows", "ids", ids, {kAny});
    const size_t count = size_of(ids, 0);
    for (size_t i = 0; i < count; ++i)
        require(rows[i] >= 0 && static_cast<size_t>(rows[i]) < m.weight.rows, "take_rows", "ids[", i,
                "] must be from 0 to ", m.weight.rows - 1, ", not ", rows[i]);
    const Output<float> out({signed_size(count), signed_size(m.weight.cols)});
    const nb::gil_scoped_release release;
    take_rows(m.weight, rows, count, out.data);
    return out.array;
}

// ---- products
// ----------------------------------------------------------------------------------------------------------

const float* optional_rows(const char* operation, const OptionalArray& add, size_t n, size_t rows) {
    return add ? elements<float>(operation, "add", *add, {signed_size(n), signed_size(rows)}) : nullptr;
}

using Biases = std::optional<std::vector<OptionalArray>>;

std::vector<const float*> bias_pointers(const Biases& bias, const std::vector<Weight>& weights) {
    std::vector<const float*> pointers(weights.size(), nullptr);
    if (!bias) return pointers;
    require(bias->size() == weights.size(), "linear", "bias must have one entry (an array or None) per weight, not ",
            bias->size(), " for ", weights.size());
    for (size_t i = 0; i < weights.size(); ++i)
        if ((*bias)[i]) pointers[i] = elements<float>("linear", "bias", *(*bias)[i], {signed_size(weights[i].rows)});
    return pointers;
}

nb::list linear_products(const InputArray& x, const std::vector<const Matrix*>& matrices, const OptionalNorm& norm,
                         const Biases& bias, const OptionalArray& add) {
    const float* input = elements<float>("linear", "x", x, {kAny, kAny});
    require(!matrices.empty(), "linear", "weights must not be empty");
    require(!add || matrices.size() == 1, "linear", "add goes with exactly one weight, not ", matrices.size());
    const size_t n = size_of(x, 0);
    std::vector<Weight> weights;
    for (const Matrix* m : matrices) {
        require(m != nullptr, "linear", "weights must not hold None");
        require_matrix(m->weight, "linear", "weight", 1, m->weight.rows, size_of(x, 1));
        weights.push_back(m->weight);
    }
    const std::vector<const float*> biases = bias_pointers(bias, weights);
    const float* residual = optional_rows("linear", add, n, weights[0].rows);
    const Norm scale = norm_of("linear", norm, x.shape(1));
    nb::list results;
    std::vector<float*> out;
    for (const Weight& w : weights) {
        const Output<float> result({signed_size(n), signed_size(w.rows)});
        out.push_back(result.data);
        results.append(result.array);
    }
    const nb::gil_scoped_release release;
    kernels().gemm.linear({input, n, scale, weights.data(), weights.size(), biases.data(), residual, out.data()});
    return results;
}

nb::object head_products(const InputArray& x, const Matrix& m) {
    const Weight& w = m.weight;
    const bool shared_input = x.ndim() == 2;
    const float* input =
        shared_input ? elements<float>("head_linear", "x", x, {kAny, signed_size(w.cols)})
                     : elements<float>("head_linear", "x", x, {kAny, signed_size(w.experts), signed_size(w.cols)});
    const size_t n = size_of(x, 0);
    const Output<float> out({signed_size(n), signed_size(w.experts), signed_size(w.rows)});
    const nb::gil_scoped_release release;
    kernels().gemm.head_linear({input, n, w.cols, shared_input, w, out.data});
    return out.array;
}

GatedWeights gated(const char* operation, const Matrix& gate, const Matrix& up, const Matrix& down, size_t cols) {
    const Weight &g = gate.weight, &d = down.weight;
    require_matrix(g, operation, "gate", g.experts, g.rows, cols);
    require_matrix(up.weight, operation, "up", g.experts, g.rows, cols);
    require_matrix(d, operation, "down", g.experts, d.rows, g.rows);
    return {g, up.weight, d};
}

nb::object run_ffn(FfnCall& call, size_t hidden) {
    const Output<float> out({signed_size(call.n), signed_size(hidden)});
    call.out = out.data;
    const nb::gil_scoped_release release;
    kernels().gemm.ffn(call);
    return out.array;
}

nb::object mlp(const InputArray& x, const Matrix& gate, const Matrix& up, const Matrix& down, const OptionalNorm& norm,
               const OptionalArray& add) {
    FfnCall call;
    call.x = elements<float>("mlp", "x", x, {kAny, kAny});
    call.n = size_of(x, 0);
    call.norm = norm_of("mlp", norm, x.shape(1));
    const GatedWeights weights = gated("mlp", gate, up, down, size_of(x, 1));
    require(weights.gate.experts == 1, "mlp", "weights must have one expert, not ", weights.gate.experts);
    call.shared = &weights;
    call.add = optional_rows("mlp", add, call.n, weights.down.rows);
    return run_ffn(call, weights.down.rows);
}

// What a network adds to the residual stream x of n rows; which network is left open.
FfnCall in_place(int64_t n, const Norm& norm, float* x) {
    FfnCall call;
    call.x = call.add = call.out = x;
    call.n = static_cast<size_t>(n);
    call.norm = norm;
    return call;
}

// A dense gated network of one layer, normalised rows and residual included.
class GatedNetwork final : public Part {
public:
    GatedNetwork(const Matrix& gate, const Matrix& up, const Matrix& down, NormArgument norm)
        : norm_(std::move(norm)), weights_(gated(kName, gate, up, down, gate.weight.cols)) {
        require_matrix(weights_.down, kName, "down", 1, weights_.gate.cols, weights_.gate.rows);
        of_x_ = norm_of(kName, norm_, width());
    }

    int64_t width() const override { return signed_size(weights_.gate.cols); }
    PartWork prepare(const StepArrays&, int64_t n, float* x) const override {
        FfnCall call = in_place(n, of_x_, x);
        call.shared = &weights_;
        return {0, [call](Pieces) { kernels().gemm.ffn(call); }};
    }

private:
    static constexpr const char* kName = "GatedNetwork";

    NormArgument norm_;
    GatedWeights weights_;
    Norm of_x_;
};

void check_choices(const int32_t* ids, size_t n, size_t k, size_t experts) {
    require(k >= 1, "moe", "ids must choose at least one expert per token");
    require(n * k <= static_cast<size_t>(std::numeric_limits<int32_t>::max()), "moe", "too many choices: ", n * k);
    for (size_t i = 0; i < n * k; ++i)
        require(ids[i] >= 0 && static_cast<size_t>(ids[i]) < experts, "moe", "ids[", i / k, ", ", i % k,
                "] must be from 0 to ", experts - 1, ", not ", ids[i]);
}

using MatrixTriple = std::tuple<const Matrix*, const Matrix*, const Matrix*>;

GatedWeights shared_weights(const char* operation, const MatrixTriple& triple, size_t cols, size_t hidden) {
    const auto& [gate, up, down] = triple;
    require(gate != nullptr && up != nullptr && down != nullptr, operation, "shared must hold three matrices");
    const GatedWeights weights = gated(operation, *gate, *up, *down, cols);
    require_matrix(weights.down, operation, "shared down", 1, hidden, weights.gate.rows);
    return weights;
}

nb::object moe(const InputArray& x, const InputArray& ids, const InputArray& weights, const Matrix& gate,
               const Matrix& up, const Matrix& down, const std::optional<MatrixTriple>& shared,
               const OptionalNorm& norm, const OptionalArray& add) {
    FfnCall call;
    call.x = elements<float>("moe", "x", x, {kAny, kAny});
    call.n = size_of(x, 0);
    call.norm = norm_of("moe", norm, x.shape(1));
    call.ids = elements<int32_t>("moe", "ids", ids, {signed_size(call.n), kAny});
    call.chosen = size_of(ids, 1);
    call.weights = elements<float>("moe", "weights", weights, {signed_size(call.n), signed_size(call.chosen)});
    const GatedWeights routed = gated("moe", gate, up, down, size_of(x, 1));
    check_choices(call.ids, call.n, call.chosen, routed.gate.experts);
    const size_t hidden = routed.down.rows;
    const GatedWeights always = shared ? shared_weights("moe", *shared, size_of(x, 1), hidden) : GatedWeights{};
    call.routed = &routed;
    call.shared = shared ? &always : nullptr;
    call.add = optional_rows("moe", add, call.n, hidden);
    return run_ffn(call, hidden);
}

// ---- choosing experts
// ------------------------------------------------------------------------------------------------------

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

// How each token's experts are chosen: the part of the arguments that every call of a model repeats.
struct Routing {
    const OptionalArray& bias;
    const std::string& scoring;
    int64_t top_k, groups, top_groups;
    const std::string& group_rule;
    bool normalize;
    float scale;
};

// All but the logits and the results.
RouteCall route_call(const char* operation, const Routing& routing, int64_t tokens, int64_t experts) {
    RouteCall call{};
    call.tokens = tokens;
    call.experts = experts;
    if (routing.bias) call.bias = elements<float>(operation, "bias", *routing.bias, {experts});
    require(routing.top_k >= 1 && routing.top_k <= experts, operation, "top_k must be from 1 to ", experts, ", not ",
            routing.top_k);
    call.top_k = routing.top_k;
    call.groups = routing.groups;
    call.top_groups = routing.top_groups;
    call.scoring = scoring_of(operation, routing.scoring);
    call.group_rule = group_rule_of(operation, routing.group_rule);
    call.normalize = routing.normalize;
    call.scale = routing.scale;
    check_groups(operation, call);
    if (call.group_rule == GroupRule::none) call.groups = 1;
    return call;
}

nb::object route(const InputArray& logits, const OptionalArray& bias, const std::string& scoring, int64_t top_k,
                 int64_t groups, int64_t top_groups, const std::string& group_rule, bool normalize, float scale) {
    constexpr const char* op = "route";
    require_rank(op, "logits", logits, 2);
    RouteCall call = route_call(op, {bias, scoring, top_k, groups, top_groups, group_rule, normalize, scale},
                                logits.shape(0), logits.shape(1));
    call.logits = elements<float>(op, "logits", logits, {call.tokens, call.experts});
    const Output<int32_t> ids({call.tokens, top_k});
    const Output<> weights({call.tokens, top_k});
    call.ids = ids.data;
    call.weights = weights.data;
    if (call.tokens > 0) {
        const nb::gil_scoped_release release;
        kernels().sample.route(call);
    }
    return nb::make_tuple(ids.array, weights.array);
}

// Mixture of experts of one layer: the router's product, the choice and the networks, shared ones included.
class RoutedNetwork final : public Part {
public:
    RoutedNetwork(const Matrix& router, const Matrix& gate, const Matrix& up, const Matrix& down,
                  const std::optional<MatrixTriple>& shared, NormArgument norm, OptionalArray bias,
                  const std::string& scoring, int64_t top_k, int64_t groups, int64_t top_groups,
                  const std::string& group_rule, bool normalize, float scale)
        : norm_(std::move(norm)),
          bias_(std::move(bias)),
          router_(router.weight),
          routed_(gated(kName, gate, up, down, gate.weight.cols)) {
        const size_t hidden = routed_.gate.cols, experts = routed_.gate.experts;
        require_matrix(routed_.down, kName, "down", experts, hidden, routed_.gate.rows);
        require_matrix(router_, kName, "router", 1, experts, hidden);
        if (shared) shared_ = shared_weights(kName, *shared, hidden, hidden);
        choice_ = route_call(kName, {bias_, scoring, top_k, groups, top_groups, group_rule, normalize, scale}, 0,
                             signed_size(experts));
        of_x_ = norm_of(kName, norm_, width());
    }

    int64_t width() const override { return signed_size(routed_.gate.cols); }
    PartWork prepare(const StepArrays&, int64_t n, float* x) const override {
        const size_t logits = static_cast<size_t>(n * choice_.experts), chosen = static_cast<size_t>(n * choice_.top_k);
        return {piece_bytes<float>(logits) + piece_bytes<float>(chosen) + piece_bytes<int32_t>(chosen),
                [this, n, x](Pieces memory) { run(n, x, memory); }};
    }

private:
    static constexpr const char* kName = "RoutedNetwork";

    void run(int64_t n, float* x, Pieces memory) const {
        if (n == 0) return;
        FfnCall call = in_place(n, of_x_, x);
        call.chosen = static_cast<size_t>(choice_.top_k);
        RouteCall choice = choice_;
        choice.tokens = n;
        float* logits = memory.take<float>(call.n * routed_.gate.experts);
        choice.logits = logits;
        call.weights = choice.weights = memory.take<float>(call.n * call.chosen);
        call.ids = choice.ids = memory.take<int32_t>(call.n * call.chosen);
        call.routed = &routed_;
        call.shared = shared_ ? &*shared_ : nullptr;
        const float* no_bias = nullptr;
        kernels().gemm.linear({x, call.n, of_x_, &router_, 1, &no_bias, nullptr, &logits});
        kernels().sample.route(choice);
        kernels().gemm.ffn(call);
    }

    NormArgument norm_;
    OptionalArray bias_;
    Weight router_;
    GatedWeights routed_;
    std::optional<GatedWeights> shared_;
    RouteCall choice_{};
    Norm of_x_;
};

// ---- the machine
// -------------------------------------------------------------------------------------------------------

double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Median pass of reading a buffer, each thread its own part, for about `seconds`: what a program can expect from memory
// that others use as well.
double read_bandwidth(int64_t bytes, double seconds) {
    require(bytes >= 1 << 20 && bytes <= int64_t{1} << 36, "read_bandwidth", "bytes must be from 2^20 to 2^36, not ",
            bytes);
    require(seconds >= 0.0 && seconds <= 60.0, "read_bandwidth", "seconds must be from 0 to 60, not ", seconds);
    const nb::gil_scoped_release release;
    const size_t threads = static_cast<size_t>(thread_count());
    const size_t part = static_cast<size_t>(bytes) / threads / kReadMultiple * kReadMultiple;
    const std::unique_ptr<uint8_t[]> data(new uint8_t[part * threads]);
    std::vector<uint64_t> sums(threads * 8, 0);  // a cache line each
    run_on(thread_count(),
           [&](Team& team) { std::memset(data.get() + part * static_cast<size_t>(team.index), 1, part); });
    std::vector<double> rates;
    const auto begin = std::chrono::steady_clock::now();
    while (rates.size() < 3 || seconds_since(begin) < seconds) {
        const auto start = std::chrono::steady_clock::now();
        parallel_for(static_cast<int>(threads), threads,
                     [&](size_t i) { sums[8 * i] += kernels().gemm.read_all(data.get() + part * i, part); });
        rates.push_back(static_cast<double>(part * threads) / seconds_since(start));
    }
    const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
    std::nth_element(rates.begin(), middle, rates.end());
    return sums[0] == 0 ? 0.0 : *middle;
}

// Best pass of multiplying bytes in registers on every thread, for about `seconds`: multiply-adds per second.
double int8_rate(double seconds) {
    require(seconds >= 0.0 && seconds <= 60.0, "int8_rate", "seconds must be from 0 to 60, not ", seconds);
    const nb::gil_scoped_release release;
    constexpr size_t rounds = 100000;
    const size_t threads = static_cast<size_t>(thread_count());
    std::vector<uint64_t> sums(threads * 8, 0);  // a cache line each
    double best = 0.0;
    const auto begin = std::chrono::steady_clock::now();
    for (int pass = 0; pass < 3 || seconds_since(begin) < seconds; ++pass) {
        const auto start = std::chrono::steady_clock::now();
        parallel_for(static_cast<int>(threads), threads,
                     [&](size_t i) { sums[8 * i] += kernels().gemm.multiply_bytes(rounds); });
        best = std::max(best,
                        static_cast<double>(threads * rounds * kernels().gemm.bytes_per_round) / seconds_since(start));
    }
    return sums[0] == ~uint64_t{0} ? 0.0 : best;
}

// ---- registration
// ------------------------------------------------------------------------------------------------------

void bind_matrix(nb::module_& m) {
    nb::class_<Matrix>(m, "Matrix", "A packed weight [experts, rows, cols]; keeps the array of its bytes alive.")
        .def(nb::init<const std::string&, int64_t, int64_t, nb::object, int64_t>(), "format"_a, "rows"_a, "cols"_a,
             "data"_a, "experts"_a = 1)
        .def_prop_ro("format", [](const Matrix& self) { return info(self.weight.format).name; })
        .def_prop_ro("rows", [](const Matrix& self) { return self.weight.rows; })
        .def_prop_ro("cols", [](const Matrix& self) { return self.weight.cols; })
        .def_prop_ro("experts", [](const Matrix& self) { return self.weight.experts; })
        .def_prop_ro("data", [](const Matrix& self) { return self.data; })
        .def_prop_ro("nbytes", &Matrix::nbytes)
        .def("__repr__", &Matrix::text);
}

void bind_packing(nb::module_& m) {
    m.def(
        "packed_bytes",
        [](const std::string& format, int64_t rows, int64_t cols, int64_t experts) {
            return bytes_of(checked_shape("packed_bytes", format, rows, cols, experts));
        },
        "format"_a, "rows"_a, "cols"_a, "experts"_a = 1);
    m.def("pack", &pack_tiles, "format"_a, "source"_a, "rows"_a, "cols"_a, nb::kw_only(), "experts"_a = 1,
          "scales"_a = nb::none(), "out"_a = nb::none());
    m.def("quantize", &quantize_rows, "format"_a, "x"_a);
    m.def("unpack", &unpack_expert, "m"_a, nb::kw_only(), "expert"_a = 0);
    m.def("take_rows", &take_matrix_rows, "m"_a, "ids"_a);
}

void bind_products(nb::module_& m) {
    m.def("linear", &linear_products, "x"_a, "weights"_a, nb::kw_only(), "norm"_a = nb::none(), "bias"_a = nb::none(),
          "add"_a = nb::none());
    m.def("head_linear", &head_products, "x"_a, "w"_a);
    m.def("mlp", &mlp, "x"_a, "gate"_a, "up"_a, "down"_a, nb::kw_only(), "norm"_a = nb::none(), "add"_a = nb::none());
    m.def("route", &route, "logits"_a, nb::kw_only(), "bias"_a.none(), "scoring"_a, "top_k"_a, "groups"_a,
          "top_groups"_a, "group_rule"_a, "normalize"_a, "scale"_a);
    nb::class_<GatedNetwork, Part>(m, "GatedNetwork")
        .def(nb::init<const Matrix&, const Matrix&, const Matrix&, NormArgument>(), "gate"_a, "up"_a, "down"_a,
             nb::kw_only(), "norm"_a, nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>());
    nb::class_<RoutedNetwork, Part>(m, "RoutedNetwork")
        .def(nb::init<const Matrix&, const Matrix&, const Matrix&, const Matrix&, const std::optional<MatrixTriple>&,
                      NormArgument, OptionalArray, const std::string&, int64_t, int64_t, int64_t, const std::string&,
                      bool, float>(),
             "router"_a, "gate"_a, "up"_a, "down"_a, nb::kw_only(), "shared"_a.none(), "norm"_a, "bias"_a.none(),
             "scoring"_a, "top_k"_a, "groups"_a, "top_groups"_a, "group_rule"_a, "normalize"_a, "scale"_a,
             nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>(),
             nb::keep_alive<1, 6>());
    m.def("moe", &moe, "x"_a, "ids"_a, "weights"_a, "gate"_a, "up"_a, "down"_a, nb::kw_only(), "shared"_a = nb::none(),
          "norm"_a = nb::none(), "add"_a = nb::none());
}

}  // namespace

void bind_weights(nb::module_& m) {
    bind_matrix(m);
    bind_packing(m);
    bind_products(m);
    m.def("read_bandwidth", &read_bandwidth, "bytes"_a, "seconds"_a);
    m.def("int8_rate", &int8_rate, "seconds"_a);
}

}  // namespace finback
