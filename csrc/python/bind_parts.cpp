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

// Uninitialised memory, aligned as working memory is.
struct alignas(64) Line {
    uint8_t bytes[64];
};

nb::object run_parts(const std::vector<const Part*>& parts, const InputArray& x, const InputArray& slots,
                     const InputArray& cos, const InputArray& sin, const InputArray& block_tables,
                     const InputArray& seq_ids, const InputArray& positions, const InputArray& prompts) {
    constexpr const char* op = "run_parts";
    const StepArrays step{slots, cos, sin, block_tables, seq_ids, positions, prompts};
    const float* input = elements<float>(op, "x", x, {kAny, kAny});
    const int64_t n = x.shape(0);
    const Output<> out({n, x.shape(1)});
    std::vector<PartWork> works;
    works.reserve(parts.size());
    size_t bytes = 0;
    for (const Part* part : parts) {
        require(part != nullptr, op, "parts must not hold None");
        require(part->width() == x.shape(1), op, "x must be float32 [n, ", part->width(), "], not ", describe(x));
        works.push_back(part->prepare(step, n, out.data));
        bytes = std::max(bytes, works.back().bytes);
    }
    const nb::gil_scoped_release release;
    const std::unique_ptr<Line[]> memory(new Line[ceil_div(bytes, sizeof(Line))]);
    std::memcpy(out.data, input, sizeof(float) * static_cast<size_t>(x.size()));
    Interruptions interruptions;
    for (const PartWork& work : works) {
        work.run(Pieces(memory.get()));
        interruptions.let_in();
    }
    return out.array;
}

}  // namespace

void bind_parts(nb::module_& m) {
    nb::class_<Part>(m, "Part", "A part of a layer, bound to its weights and its cache.");
    m.def("run_parts", &run_parts, "parts"_a, "x"_a, nb::kw_only(), "slots"_a, "cos"_a, "sin"_a, "block_tables"_a,
          "seq_ids"_a, "positions"_a, "prompts"_a, "x after all parts, one after the other.");
}

}  // namespace finback
