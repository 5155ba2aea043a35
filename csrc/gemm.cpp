// See gemm.h: products of one input with several weights, or of per-head inputs with per-head weights.
#include "gemm.h"

#include "ffn.h"
#include "product.h"
#include "quantize.h"
#include "thread_pool.h"
#include "work.h"

namespace finback::FINBACK_NAMESPACE {
namespace {

// All weights' row blocks as one pool of items.
struct Pool {
    const Weight* weights;
    size_t count;
    int threads;

    size_t per_item(size_t w) const {
        return blocks_per_item(row_blocks(weights[w].rows), weights[w].block_stride(), 2, threads);
    }
    size_t items_of(size_t w) const { return ceil_div(row_blocks(weights[w].rows), per_item(w)); }
    size_t items() const {
        size_t sum = 0;
        for (size_t w = 0; w < count; ++w) sum += items_of(w);
        return sum;
    }
};

void quantize_rows(Team& team, const float* x, size_t rows, size_t cols, Activation* out) {
    const size_t groups = cols / kGroupCols;
    for (size_t i = team.next(); i < rows; i = team.next()) quantize_row(x + i * cols, cols, out + i * groups);
    team.barrier();
}

void linear_item(const LinearCall& call, const Pool& pool, const Activation* groups, size_t item) {
    size_t w = 0;
    for (; item >= pool.items_of(w); ++w) item -= pool.items_of(w);
    const Weight& weight = call.weights[w];
    const size_t first = item * pool.per_item(w);
    const size_t blocks = row_blocks(weight.rows);
    const size_t end = first + pool.per_item(w) < blocks ? first + pool.per_item(w) : blocks;
    const size_t row = first * kBlockRows;
    const Input in{groups, weight.cols / kGroupCols, call.x, weight.cols, nullptr, call.n};
    const Output out{call.out[w] + row, weight.rows, call.bias[w] != nullptr ? call.bias[w] + row : nullptr,
                     call.add != nullptr ? call.add + row : nullptr, weight.rows};
    product(weight, 0, first, end, in, out);
}

void linear(const LinearCall& call) {
    if (call.n == 0) return;
    const size_t cols = call.weights[0].cols;
    bool integers = false;
    size_t rows = 0;
    for (size_t w = 0; w < call.count; ++w) {
        integers = integers || is_integer(call.weights[w].format);
        rows += call.weights[w].rows;
    }
    const size_t group_count = integers ? call.n * (cols / kGroupCols) : 0;
    Pieces pieces(piece_bytes<Activation>(group_count));
    Activation* groups = pieces.take<Activation>(group_count);
    const int threads = threads_for(call.n * rows * cols, thread_count());
    const Pool pool{call.weights, call.count, threads};
    const size_t items = pool.items();
    run_on(threads, [&](Team& team) {
        if (integers) quantize_rows(team, call.x, call.n, cols, groups);
        for (size_t i = team.next(); i < items; i = team.next()) linear_item(call, pool, groups, i);
    });
}

void head_item(const HeadLinearCall& call, const Activation* groups, size_t per_item, size_t item) {
    const Weight& w = call.weight;
    const size_t blocks = row_blocks(w.rows);
    const size_t per_head = ceil_div(blocks, per_item);
    const size_t head = item / per_head;
    const size_t first = item % per_head * per_item;
    const size_t end = first + per_item < blocks ? first + per_item : blocks;
    const size_t heads_in = call.shared_input ? 1 : w.experts;
    const size_t row = call.shared_input ? 0 : head;
    const size_t group_cols = w.cols / kGroupCols;
    Input in;
    in.n = call.n;
    if (is_integer(w.format)) {
        in.groups = groups + row * group_cols;
        in.group_stride = heads_in * group_cols;
    } else {
        in.values = call.x + row * w.cols;
        in.value_stride = heads_in * w.cols;
    }
    const Output out{call.out + head * w.rows + first * kBlockRows, w.experts * w.rows, nullptr, nullptr, 0};
    product(w, head, first, end, in, out);
}

void head_linear(const HeadLinearCall& call) {
    if (call.n == 0) return;
    const Weight& w = call.weight;
    const size_t inputs = call.n * (call.shared_input ? 1 : w.experts);
    const bool integers = is_integer(w.format);
    const size_t group_count = integers ? inputs * (w.cols / kGroupCols) : 0;
    Pieces pieces(piece_bytes<Activation>(group_count));
    Activation* groups = pieces.take<Activation>(group_count);
    const int threads = threads_for(call.n * w.experts * w.rows * w.cols, thread_count());
    const size_t per_item = blocks_per_item(row_blocks(w.rows), w.block_stride(), 2, 1);
    const size_t items = w.experts * ceil_div(row_blocks(w.rows), per_item);
    run_on(threads, [&](Team& team) {
        if (integers) quantize_rows(team, call.x, inputs, w.cols, groups);
        for (size_t i = team.next(); i < items; i = team.next()) head_item(call, groups, per_item, i);
    });
}

// Reads every whole 128 bytes once; the result keeps the compiler from dropping the reads.
uint64_t read_all(const uint8_t* data, size_t bytes) {
    I8x32 a = set1_byte(0), b = a, c = a, d = a;
    for (size_t i = 0; i + 128 <= bytes; i += 128) {
        a = a | load_bytes(data + i);
        b = b | load_bytes(data + i + 32);
        c = c | load_bytes(data + i + 64);
        d = d | load_bytes(data + i + 96);
    }
    uint8_t out[32];
    store_bytes(out, (a | b) | (c | d));
    uint64_t sum = 0;
    for (uint8_t byte : out) sum += byte;
    return sum;
}

// `rounds` times kByteChains dot products of 32 bytes in registers: what the integer formats could reach at best.
uint64_t multiply_bytes(size_t rounds) {
    uint8_t u[32];
    for (uint8_t i = 0; i < 32; ++i) u[i] = i % 16;
    const I8x32 x = set1_byte(1);
    I8x32 codes = load_bytes(u);
    Partial sums[kByteChains];
    for (Partial& sum : sums) sum = start_at(set1_i16(0));
    for (size_t round = 0; round < rounds; ++round) {
        codes = settled(codes);  // so that no product is taken out of the loop
        FINBACK_UNROLL(8)
        for (size_t i = 0; i < kByteChains; ++i) {
            sums[i] = add_dot(sums[i], codes, x);
            codes = settled(codes);
        }
    }
    I32x8 sum = total(sums[0]);
    for (size_t i = 1; i < kByteChains; ++i) sum = sum + total(sums[i]);
    return static_cast<uint64_t>(max_lane(sum));
}

}  // namespace

GemmKernels gemm_kernels() { return {&linear, &head_linear, &ffn, &quantize, &read_all, &multiply_bytes}; }

}  // namespace finback::FINBACK_NAMESPACE
