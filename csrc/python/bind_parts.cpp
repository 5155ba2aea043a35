// Binding of runs of parts. The parts themselves are bound with their family.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "part.h"

namespace finback {
namespace {

// Heeds signals between parts, as Python would between calls: a step of a large model takes minutes.
class Interruptions {
public:
    void let_in() {
        const Clock::time_point now = Clock::now();
        if (now - last_ < std::chrono::milliseconds(100)) return;
        const nb::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
        last_ = now;
    }

private:
    using Clock = std::chrono::steady_clock;
    Clock::time_point last_ = Clock::now();
};

nb::object run_parts(const std::vector<const Part*>& parts, const InputArray& x, const InputArray& slots,
                     const InputArray& cos, const InputArray& sin, const InputArray& block_tables,
                     const InputArray& seq_ids, const InputArray& positions) {
    constexpr const char* op = "run_parts";
    const StepArrays step{slots, cos, sin, block_tables, seq_ids, positions};
    const float* input = elements<float>(op, "x", x, {kAny, kAny});
    const int64_t n = x.shape(0);
    int64_t floats = 0;
    for (const Part* part : parts) {
        require(part != nullptr, op, "parts must not hold None");
        require(part->width() == x.shape(1), op, "x must be float32 [n, ", part->width(), "], not ", describe(x));
        floats = std::max(floats, n * part->floats_per_row());
    }
    const std::unique_ptr<float[]> memory(new float[static_cast<size_t>(floats)]);
    const Output<> out({n, x.shape(1)});
    std::vector<std::function<void()>> works;
    works.reserve(parts.size());
    for (const Part* part : parts) works.push_back(part->prepare(step, n, out.data, memory.get()));
    const nb::gil_scoped_release release;
    std::memcpy(out.data, input, sizeof(float) * static_cast<size_t>(x.size()));
    Interruptions interruptions;
    for (const auto& work : works) {
        work();
        interruptions.let_in();
    }
    return out.array;
}

}  // namespace

void bind_parts(nb::module_& m) {
    nb::class_<Part>(m, "Part", "A part of a layer, bound to its weights and its cache.");
    m.def("run_parts", &run_parts, "parts"_a, "x"_a, nb::kw_only(), "slots"_a, "cos"_a, "sin"_a, "block_tables"_a,
          "seq_ids"_a, "positions"_a, "x after all parts, one after the other.");
}

}  // namespace finback
