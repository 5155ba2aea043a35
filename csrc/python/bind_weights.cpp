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
#include "pack.h"
#include "thread_pool.h"
#include "work.h"

namespace finback {
namespace {

using OptionalArray = std::optional<InputArray>;

constexpr int64_t kMostRows = int64_t{1} << 31;

int64_t signed_size(size_t size) { return static_cast<int64_t>(size); }

// ---- the weight
// --------------------------------------------------------------------------------------------------------

Format format_named(const char* operation, const std::string& name) {
    for (int f = 0; f < kFormats; ++f)
        if (name == kFormatInfo[f].name) return static_cast<Format>(f);
    require(false, operation, "unknown format '", name, "'");
    return Format::f32;
}

// Sizes as given by Python, checked: positive, bounded, whole blocks, no overflow in their product.
Weight checked_shape(const char* operation, const std::string& format, int64_t rows, int64_t cols, int64_t experts) {
    Weight w;
    w.format = format_named(operation, format);
    const int64_t block = signed_size(info(w.format).block_cols);
    require(rows >= 1 && rows <= kMostRows, operation, "rows must be from 1 to 2^31, not ", rows);
    require(cols >= 1 && cols <= kMostRows, operation, "cols must be from 1 to 2^31, not ", cols);
    require(experts >= 1 && experts <= kMostRows, operation, "experts must be from 1 to 2^31, not ", experts);
    require(cols % block == 0, operation, "cols must be a multiple of ", block, " for ", format, ", not ", cols);
    w.rows = static_cast<size_t>(rows);
    w.cols = static_cast<size_t>(cols);
    w.experts = static_cast<size_t>(experts);
    size_t bytes = 0;
    const bool fits = !__builtin_mul_overflow(row_blocks(w.rows), w.experts, &bytes) &&
                      !__builtin_mul_overflow(bytes, w.block_stride(), &bytes) &&
                      bytes <= static_cast<size_t>(std::numeric_limits<int64_t>::max());
    require(fits, operation, "a weight of ", experts, " x ", rows, " x ", cols, " is too large");
    return w;
}

size_t bytes_of(const Weight& w) { return packed_bytes(w.format, w.rows, w.cols, w.experts); }

// A packed weight and the Python array that holds its bytes.
struct Matrix {
    Weight weight;
    nb::object data;

    Matrix(const std::string& format, int64_t rows, int64_t cols, nb::object bytes, int64_t experts)
        : weight(checked_shape("Matrix", format, rows, cols, experts)), data(std::move(bytes)) {
        InputArray view;
        require(nb::try_cast(data, view, false), "Matrix", "data must be an array of bytes");
        weight.data = elements<uint8_t>("Matrix", "data", view, {signed_size(nbytes())});
        require(reinterpret_cast<uintptr_t>(weight.data) % alignof(float) == 0, "Matrix",
                "data must start at a multiple of 4 bytes");
    }
    size_t nbytes() const { return bytes_of(weight); }
    std::string text() const {
        std::string shape = std::to_string(weight.rows) + " x " + std::to_string(weight.cols);
        if (weight.experts > 1) shape = std::to_string(weight.experts) + " x " + shape;
        return std::string("Matrix(") + info(weight.format).name + ", " + shape + ")";
    }
};

void require_matrix(const Weight& w, const char* operation, const char* name, size_t experts, size_t rows,
                    size_t cols) {
    require(w.experts == experts && w.rows == rows && w.cols == cols, operation, name,
            " must be [experts, rows, cols] = ", describe({signed_size(experts), signed_size(rows), signed_size(cols)}),
            ", not ", describe({signed_size(w.experts), signed_size(w.rows), signed_size(w.cols)}));
}

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
                      const OptionalArray& scales, const std::optional<InOutArray>& out) {
    const Weight w = checked_shape("pack", format, rows, cols, experts);
    PublishedWeight published{w.format, w.rows, w.cols, w.experts, nullptr, checked_scales(w, scales)};
    const size_t bytes = w.experts * w.rows * row_bytes(w.format, w.cols);
    published.data = elements<uint8_t>("pack", "source", source, {signed_size(bytes)});
    nb::object result;
    uint8_t* tiles = nullptr;
    if (out) {
        tiles = elements<uint8_t>("pack", "out", *out, {signed_size(bytes_of(w))});
        result = nb::cast(*out);
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
    const size_t rows = x.shape(0), cols = x.shape(1);
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
    const size_t count = ids.shape(0);
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

nb::list linear_products(const InputArray& x, const std::vector<const Matrix*>& matrices, const Biases& bias,
                         const OptionalArray& add) {
    const float* input = elements<float>("linear", "x", x, {kAny, kAny});
    require(!matrices.empty(), "linear", "weights must not be empty");
    require(!add || matrices.size() == 1, "linear", "add goes with exactly one weight, not ", matrices.size());
    const size_t n = x.shape(0);
    std::vector<Weight> weights;
    for (const Matrix* m : matrices) {
        require(m != nullptr, "linear", "weights must not hold None");
        require_matrix(m->weight, "linear", "weight", 1, m->weight.rows, x.shape(1));
        weights.push_back(m->weight);
    }
    const std::vector<const float*> biases = bias_pointers(bias, weights);
    const float* residual = optional_rows("linear", add, n, weights[0].rows);
    nb::list results;
    std::vector<float*> out;
    for (const Weight& w : weights) {
        const Output<float> result({signed_size(n), signed_size(w.rows)});
        out.push_back(result.data);
        results.append(result.array);
    }
    const nb::gil_scoped_release release;
    kernels().gemm.linear({input, n, weights.data(), weights.size(), biases.data(), residual, out.data()});
    return results;
}

nb::object head_products(const InputArray& x, const Matrix& m) {
    const Weight& w = m.weight;
    const bool shared_input = x.ndim() == 2;
    const float* input =
        shared_input ? elements<float>("head_linear", "x", x, {kAny, signed_size(w.cols)})
                     : elements<float>("head_linear", "x", x, {kAny, signed_size(w.experts), signed_size(w.cols)});
    const size_t n = x.shape(0);
    const Output<float> out({signed_size(n), signed_size(w.experts), signed_size(w.rows)});
    const nb::gil_scoped_release release;
    kernels().gemm.head_linear({input, n, shared_input, w, out.data});
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

nb::object mlp(const InputArray& x, const Matrix& gate, const Matrix& up, const Matrix& down,
               const OptionalArray& add) {
    FfnCall call;
    call.x = elements<float>("mlp", "x", x, {kAny, kAny});
    call.n = x.shape(0);
    const GatedWeights weights = gated("mlp", gate, up, down, x.shape(1));
    require(weights.gate.experts == 1, "mlp", "weights must have one expert, not ", weights.gate.experts);
    call.shared = &weights;
    call.add = optional_rows("mlp", add, call.n, weights.down.rows);
    return run_ffn(call, weights.down.rows);
}

void check_choices(const int32_t* ids, size_t n, size_t k, size_t experts) {
    require(k >= 1, "moe", "ids must choose at least one expert per token");
    require(n * k <= static_cast<size_t>(std::numeric_limits<int32_t>::max()), "moe", "too many choices: ", n * k);
    for (size_t i = 0; i < n * k; ++i)
        require(ids[i] >= 0 && static_cast<size_t>(ids[i]) < experts, "moe", "ids[", i / k, ", ", i % k,
                "] must be from 0 to ", experts - 1, ", not ", ids[i]);
}

using MatrixTriple = std::tuple<const Matrix*, const Matrix*, const Matrix*>;

GatedWeights shared_weights(const MatrixTriple& triple, size_t cols, size_t hidden) {
    const auto& [gate, up, down] = triple;
    require(gate != nullptr && up != nullptr && down != nullptr, "moe", "shared must hold three matrices");
    const GatedWeights weights = gated("moe", *gate, *up, *down, cols);
    require_matrix(weights.down, "moe", "shared down", 1, hidden, weights.gate.rows);
    return weights;
}

nb::object moe(const InputArray& x, const InputArray& ids, const InputArray& weights, const Matrix& gate,
               const Matrix& up, const Matrix& down, const std::optional<MatrixTriple>& shared,
               const OptionalArray& add) {
    FfnCall call;
    call.x = elements<float>("moe", "x", x, {kAny, kAny});
    call.n = x.shape(0);
    call.ids = elements<int32_t>("moe", "ids", ids, {signed_size(call.n), kAny});
    call.chosen = ids.shape(1);
    call.weights = elements<float>("moe", "weights", weights, {signed_size(call.n), signed_size(call.chosen)});
    const GatedWeights routed = gated("moe", gate, up, down, x.shape(1));
    check_choices(call.ids, call.n, call.chosen, routed.gate.experts);
    const size_t hidden = routed.down.rows;
    const GatedWeights always = shared ? shared_weights(*shared, x.shape(1), hidden) : GatedWeights{};
    call.routed = &routed;
    call.shared = shared ? &always : nullptr;
    call.add = optional_rows("moe", add, call.n, hidden);
    return run_ffn(call, hidden);
}

// ---- the machine
// -------------------------------------------------------------------------------------------------------

double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Best pass of reading a buffer front to back, each thread its own part, for about `seconds`.
double read_bandwidth(int64_t bytes, double seconds) {
    require(bytes >= 1 << 20 && bytes <= int64_t{1} << 36, "read_bandwidth", "bytes must be from 2^20 to 2^36, not ",
            bytes);
    require(seconds >= 0.0 && seconds <= 60.0, "read_bandwidth", "seconds must be from 0 to 60, not ", seconds);
    const nb::gil_scoped_release release;
    const size_t threads = static_cast<size_t>(thread_count());
    const size_t part = static_cast<size_t>(bytes) / threads / 128 * 128;
    const std::unique_ptr<uint8_t[]> data(new uint8_t[part * threads]);
    std::vector<uint64_t> sums(threads * 8, 0);  // a cache line each
    run_on(thread_count(),
           [&](Team& team) { std::memset(data.get() + part * static_cast<size_t>(team.index), 1, part); });
    double best = 0.0;
    const auto begin = std::chrono::steady_clock::now();
    for (int pass = 0; pass < 3 || seconds_since(begin) < seconds; ++pass) {
        const auto start = std::chrono::steady_clock::now();
        parallel_for(static_cast<int>(threads), threads,
                     [&](size_t i) { sums[8 * i] += kernels().gemm.read_all(data.get() + part * i, part); });
        best = std::max(best, static_cast<double>(part * threads) / seconds_since(start));
    }
    return sums[0] == 0 ? 0.0 : best;
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
        best = std::max(best, static_cast<double>(threads * rounds * kByteChains * 32) / seconds_since(start));
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
    m.def("linear", &linear_products, "x"_a, "weights"_a, nb::kw_only(), "bias"_a = nb::none(), "add"_a = nb::none());
    m.def("head_linear", &head_products, "x"_a, "w"_a);
    m.def("mlp", &mlp, "x"_a, "gate"_a, "up"_a, "down"_a, nb::kw_only(), "add"_a = nb::none());
    m.def("moe", &moe, "x"_a, "ids"_a, "weights"_a, "gate"_a, "up"_a, "down"_a, nb::kw_only(), "shared"_a = nb::none(),
          "add"_a = nb::none());
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
