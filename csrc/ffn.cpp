// See ffn.h. One fork: quantise x; every chosen expert's gate and up as one pool of work that leaves the quantised
// hidden rows; down by chunks of output columns over all experts, each chunk ending with the weighted sum per token.
// A dense network is the case without routed experts.
#include "ffn.h"

#include "expert_plan.h"
#include "product.h"
#include "rows.h"
#include "thread_pool.h"
#include "work.h"

namespace finback::FINBACK_NAMESPACE {
namespace {

constexpr size_t kTokenBlock = 128;  // tokens whose gate and up values wait in the cache for each other
constexpr size_t kHiddenChunk = 64;  // hidden columns per item; a multiple of a group

// The hidden rows of some slots, in the form that the down weights take.
struct Hidden {
    Activation* groups = nullptr;
    float* values = nullptr;
    size_t cols = 0;

    static size_t bytes(const Weight& down, size_t slots) {
        return is_integer(down.format) ? piece_bytes<Activation>(slots * (down.cols / kGroupCols))
                                       : piece_bytes<float>(slots * down.cols);
    }
    void take(Pieces& pieces, const Weight& down, size_t slots) {
        cols = down.cols;
        if (is_integer(down.format))
            groups = pieces.take<Activation>(slots * (cols / kGroupCols));
        else
            values = pieces.take<float>(slots * cols);
    }
    Input rows(size_t first, size_t count) const {
        Input in;
        in.n = count;
        if (groups != nullptr) {
            in.group_stride = cols / kGroupCols;
            in.groups = groups + first * in.group_stride;
        } else {
            in.value_stride = cols;
            in.values = values + first * cols;
        }
        return in;
    }
};

struct Work {
    const FfnCall& call;
    size_t slots;      // n * k
    size_t out_chunk;  // output columns per item
    ExpertPlan plan;
    Rows rows;
    Hidden routed, shared;
    float* thread_memory;  // per thread: gate and up values, or one output chunk of every slot
    size_t thread_floats;
};

// The network whose shape stands for all: shared and routed experts have the same width outside.
const GatedWeights& any_network(const FfnCall& call) { return call.shared != nullptr ? *call.shared : *call.routed; }

// Long stretches of a weight, yet enough items to balance the threads.
size_t out_chunk_of(size_t rows, int threads) { return rows < 64 * 8 * static_cast<size_t>(threads) ? 32 : 64; }
size_t hidden_items(const GatedWeights* w) { return w == nullptr ? 0 : ceil_div(w->gate.rows, kHiddenChunk); }

// silu(gate) * up of one token's columns [0, count), into the hidden row at `first`.
void finish_hidden(float* gate, const float* up, size_t count, const Hidden& hidden, size_t slot, size_t first) {
    float* values = hidden.groups != nullptr ? gate : hidden.values + slot * hidden.cols + first;
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(values + i, silu(load(gate + i)) * load(up + i));
    for (; i < count; ++i) {
        float lane[kLanes];
        store(lane, silu(set1(gate[i])) * set1(up[i]));
        values[i] = lane[0];
    }
    if (hidden.groups == nullptr) return;
    Activation* groups = hidden.groups + slot * (hidden.cols / kGroupCols) + first / kGroupCols;
    quantize_row(values, count, groups);
}

struct Run {
    const GatedWeights& weights;
    const Hidden& hidden;
    size_t expert;
    const int32_t* tokens;  // null: token i is i
    size_t first_slot;
    size_t count;
};

// Tokens [begin, begin + count) of a run.
Input input_of(const Work& work, const Run& run, size_t begin, size_t count) {
    if (run.tokens == nullptr) return work.rows.input(begin, 1, count);
    Input in = work.rows.input(0, 1, count);
    in.index = run.tokens + begin;
    return in;
}

void hidden_item(const Work& work, const Run& run, size_t chunk, float* memory) {
    const size_t first = chunk * kHiddenChunk;
    const size_t rows = run.weights.gate.rows;
    const size_t width = rows - first < kHiddenChunk ? rows - first : kHiddenChunk;
    const size_t block = first / kBlockRows, end = row_blocks(first + width);
    float* gate = memory;
    float* up = memory + kTokenBlock * kHiddenChunk;
    for (size_t begin = 0; begin < run.count; begin += kTokenBlock) {
        const size_t count = run.count - begin < kTokenBlock ? run.count - begin : kTokenBlock;
        const Input in = input_of(work, run, begin, count);
        product(run.weights.gate, run.expert, block, end, in, {gate, kHiddenChunk, nullptr, nullptr, 0});
        product(run.weights.up, run.expert, block, end, in, {up, kHiddenChunk, nullptr, nullptr, 0});
        for (size_t t = 0; t < count; ++t)
            finish_hidden(gate + t * kHiddenChunk, up + t * kHiddenChunk, width, run.hidden, run.first_slot + begin + t,
                          first);
    }
}

Run routed_run(const Work& work, size_t i) {
    const ExpertRun& run = work.plan.runs[i];
    return {*work.call.routed,
            work.routed,
            static_cast<size_t>(run.expert),
            work.plan.token_of_slot + run.first_slot,
            static_cast<size_t>(run.first_slot),
            static_cast<size_t>(run.count)};
}
Run shared_run(const Work& work) { return {*work.call.shared, work.shared, 0, nullptr, 0, work.call.n}; }

// Shared experts first: they have the most tokens.
void hidden_phase(Team& team, const Work& work, float* memory) {
    const size_t shared = hidden_items(work.call.shared), per_run = hidden_items(work.call.routed);
    const size_t items = shared + per_run * work.plan.run_count;
    const auto run_of = [&](size_t i) {
        return i < shared ? shared_run(work) : routed_run(work, (i - shared) / per_run);
    };
    const auto chunk_of = [&](size_t i) { return i < shared ? i : (i - shared) % per_run; };
    for_claimed(team, items, [&](size_t item) { hidden_item(work, run_of(item), chunk_of(item), memory); });
    team.barrier();
}

// out += weight * y. With a weight of 1 it rounds as an addition does.
void add_weighted(float weight, const float* y, size_t width, float* out) {
    size_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store(out + i, fma(set1(weight), load(y + i), load(out + i)));
    for (; i < width; ++i) out[i] = fma1(weight, y[i], out[i]);
}

// One token's output columns [first, first + width): the fixed order of additions.
void combine(const Work& work, size_t token, size_t first, size_t width, const float* memory) {
    const FfnCall& call = work.call;
    const size_t hidden = any_network(call).down.rows;
    float* out = call.out + token * hidden + first;
    for (size_t i = 0; i < width; ++i) out[i] = call.add != nullptr ? call.add[token * hidden + first + i] : 0.0f;
    for (size_t j = 0; j < call.chosen; ++j) {
        const size_t choice = token * call.chosen + j;
        const auto slot = static_cast<size_t>(work.plan.slot_of_choice[choice]);
        add_weighted(call.weights[choice], memory + slot * work.out_chunk, width, out);
    }
    if (call.shared != nullptr) add_weighted(1.0f, memory + (work.slots + token) * work.out_chunk, width, out);
}

// The runs whose sum a token's output is: the routed experts', then the shared one's.
size_t down_runs(const Work& work) { return work.plan.run_count + (work.call.shared != nullptr ? 1 : 0); }
Run down_run(const Work& work, size_t i) { return i < work.plan.run_count ? routed_run(work, i) : shared_run(work); }

void down_item(const Work& work, size_t chunk, size_t rows, float* memory) {
    const size_t first = chunk * work.out_chunk;
    const size_t width = rows - first < work.out_chunk ? rows - first : work.out_chunk;
    const size_t block = first / kBlockRows, end = row_blocks(first + width), runs = down_runs(work);
    for (size_t i = 0; i < runs; ++i) {
        const Run run = down_run(work, i);
        const size_t slot = (i < work.plan.run_count ? 0 : work.slots) + run.first_slot;
        product(run.weights.down, run.expert, block, end, run.hidden.rows(run.first_slot, run.count),
                {memory + slot * work.out_chunk, work.out_chunk, nullptr, nullptr, 0});
    }
    for (size_t token = 0; token < work.call.n; ++token) combine(work, token, first, width, memory);
}

void down_phase(Team& team, const Work& work, float* memory) {
    const size_t rows = any_network(work.call).down.rows;
    const size_t items = ceil_div(rows, work.out_chunk);
    for_claimed(team, items, [&](size_t item) { down_item(work, item, rows, memory); });
}

void add_forms(const GatedWeights* w, Forms& forms) {
    if (w == nullptr) return;
    forms.add(w->gate);
    forms.add(w->up);
}
size_t multiply_adds(const GatedWeights* w, size_t tokens) {
    return w == nullptr ? 0 : 3 * tokens * w->gate.rows * w->gate.cols;
}

void run_phases(const Work& work, int threads) {
    run_on(threads, [&](Team& team) {
        float* memory = work.thread_memory + static_cast<size_t>(team.index) * work.thread_floats;
        work.rows.prepare(team);
        hidden_phase(team, work, memory);
        down_phase(team, work, memory);
    });
}

}  // namespace

void ffn(const FfnCall& call) {
    if (call.n == 0) return;
    const size_t cols = any_network(call).gate.cols, hidden = any_network(call).down.rows;
    const size_t slots = call.n * call.chosen, out_chunk = out_chunk_of(hidden, thread_count());
    Forms forms;
    add_forms(call.routed, forms);
    add_forms(call.shared, forms);
    Work work{call, slots, out_chunk, {}, {call.x, call.n, cols, cols, call.norm, forms}, {}, {}, nullptr, 0};
    const size_t experts = call.routed != nullptr ? call.routed->gate.experts : 0;
    const size_t most_runs = experts < work.slots ? experts : work.slots;
    const size_t chunk_floats = (work.slots + call.n) * work.out_chunk, block_floats = 2 * kTokenBlock * kHiddenChunk;
    work.thread_floats = chunk_floats > block_floats ? chunk_floats : block_floats;
    const int threads =
        threads_for(multiply_adds(call.routed, work.slots) + multiply_adds(call.shared, call.n), thread_count());
    const size_t floats = work.thread_floats * static_cast<size_t>(threads);
    Pieces pieces(work.rows.bytes() + piece_bytes<float>(floats) + 2 * piece_bytes<int32_t>(work.slots) +
                  piece_bytes<int32_t>(experts + 1) + piece_bytes<ExpertRun>(most_runs) +
                  (call.routed != nullptr ? Hidden::bytes(call.routed->down, work.slots) : 0) +
                  (call.shared != nullptr ? Hidden::bytes(call.shared->down, call.n) : 0));
    work.rows.take(pieces);
    work.thread_memory = pieces.take<float>(floats);
    if (call.routed != nullptr) {
        work.plan = {pieces.take<int32_t>(work.slots), pieces.take<int32_t>(work.slots),
                     pieces.take<ExpertRun>(most_runs), 0};
        work.routed.take(pieces, call.routed->down, work.slots);
        plan_experts(call.ids, call.n, call.chosen, experts, pieces.take<int32_t>(experts + 1), work.plan);
    }
    if (call.shared != nullptr) work.shared.take(pieces, call.shared->down, call.n);
    run_phases(work, threads);
}

}  // namespace finback::FINBACK_NAMESPACE
