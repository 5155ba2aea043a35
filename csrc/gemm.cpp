// See gemm.h: products of one input with several weights, or of per-head inputs with per-head weights.
#include "gemm.h"

#include "ffn.h"
#include "product.h"
#include "quantize.h"
#include "rows.h"
#include "thread_pool.h"
#include "work.h"

namespace finback::FINBACK_NAMESPACE {
namespace {

// All weights' row blocks as one pool of items.
struct Pool {
    const Weight* weights;
    size_t count;
    int threads;
    size_t blocks;  // of all of them

    size_t per_item(size_t w) const { return blocks_per_item(weights[w], blocks, threads); }
    size_t items_of(size_t w) const { return ceil_div(row_blocks(weights[w].rows), per_item(w)); }
    size_t items() const {
        size_t sum = 0;
        for (size_t w = 0; w < count; ++w) sum += items_of(w);
        return sum;
    }
    // Row blocks [first, end) of one weight.
    struct Item {
        size_t weight, first, end;
    };
    Item at(size_t item) const {
        size_t w = 0;
        for (; item >= items_of(w); ++w) item -= items_of(w);
        const size_t first = item * per_item(w), blocks = row_blocks(weights[w].rows);
        return {w, first, first + per_item(w) < blocks ? first + per_item(w) : blocks};
    }
};

void linear_item(const LinearCall& call, const Pool::Item& item, const Rows& rows) {
    const auto& [w, first, end] = item;
    const Weight& weight = call.weights[w];
    const size_t row = first * kBlockRows;
    const Output out{call.out[w] + row, weight.rows, call.bias[w] != nullptr ? call.bias[w] + row : nullptr,
                     call.add != nullptr ? call.add + row : nullptr, weight.rows};
    product(weight, 0, first, end, rows.input(0, 1, call.n), out);
}

void linear(const LinearCall& call) {
    if (call.n == 0) return;
    const size_t cols = call.weights[0].cols;
    Forms forms;
    size_t outputs = 0, blocks = 0, bytes = 0;
    for (size_t w = 0; w < call.count; ++w) {
        forms.add(call.weights[w]);
        outputs += call.weights[w].rows;
        blocks += row_blocks(call.weights[w].rows);
        bytes += packed_bytes(call.weights[w].format, call.weights[w].rows, cols, 1);
    }
    Rows rows{call.x, call.n, cols, cols, call.norm, forms};
    Pieces pieces(rows.bytes());
    rows.take(pieces);
    // One token waits for a float weight's bytes, as a router's, longer than for its multiply-adds.
    const size_t products = call.n * outputs * cols, reading = 2 * bytes;
    const int threads = threads_for(products > reading ? products : reading, thread_count());
    const Pool pool{call.weights, call.count, threads, blocks};
    const size_t items = pool.items();
    run_on(threads, [&](Team& team) {
        rows.prepare(team);
        for_claimed(team, items, [&](size_t item) { linear_item(call, pool.at(item), rows); });
    });
}

struct HeadPool {
    size_t blocks, per_item, heads;

    size_t per_head() const { return ceil_div(blocks, per_item); }
    size_t items() const { return heads * per_head(); }
    size_t head(size_t item) const { return item / per_head(); }
    size_t first(size_t item) const { return item % per_head() * per_item; }
};

void head_item(const HeadLinearCall& call, const Rows& rows, const HeadPool& pool, size_t item) {
    const Weight& w = call.weight;
    const size_t head = pool.head(item), first = pool.first(item);
    const size_t end = first + pool.per_item < pool.blocks ? first + pool.per_item : pool.blocks;
    const Input in = call.shared_input ? rows.input(0, 1, call.n) : rows.input(head, w.experts, call.n);
    const Output out{call.out + head * w.rows + first * kBlockRows, w.experts * w.rows, nullptr, nullptr, 0};
    product(w, head, first, end, in, out);
}

void head_linear(const HeadLinearCall& call) {
    if (call.n == 0) return;
    const Weight& w = call.weight;
    Forms forms;
    forms.add(w);
    Rows rows{call.x, call.n * (call.shared_input ? 1 : w.experts), w.cols, call.stride, {}, forms};
    Pieces pieces(rows.bytes());
    rows.take(pieces);
    const int threads = threads_for(call.n * w.experts * w.rows * w.cols, thread_count());
    const HeadPool pool{row_blocks(w.rows), blocks_per_item(w, w.experts * row_blocks(w.rows), threads), w.experts};
    const size_t items = pool.items();
    run_on(threads, [&](Team& team) {
        rows.prepare(team);
        for_claimed(team, items, [&](size_t item) { head_item(call, rows, pool, item); });
    });
}

// Reads a multiple of kReadMultiple bytes once, as weights are read, several streams about as far ahead as product()
// asks for them; the result keeps the compiler from dropping the reads.
uint64_t read_all(const uint8_t* data, size_t bytes) {
    const size_t streams = weight_streams(), part = bytes / streams;
    I8x32 a = set1_byte(0), b = a;
    for (size_t i = 0; i < part; i += 64) {
        for (size_t s = 0; s < streams; ++s) {
            const uint8_t* at = data + s * part + i;
            if (streams > 1) prefetch<true>(at + 1600);
            a = a | load_bytes(at);
            b = b | load_bytes(at + 32);
        }
    }
    uint8_t out[32];
    store_bytes(out, a | b);
    uint64_t sum = 0;
    for (uint8_t byte : out) sum += byte;
    return sum;
}

// What the integer formats could reach at best: `rounds` times the dot products of a register tile, in registers.
uint64_t multiply_bytes(size_t rounds) {
    uint8_t u[32];
    for (uint8_t i = 0; i < 32; ++i) u[i] = i % 16;
    const I8x32 once = load_bytes(u);
    const int8_t ones[4] = {1, 1, 1, 1};
    Bytes<2> codes = join(once, once);
    Partial<2> sums[kTileTokens];
    FINBACK_UNROLL(8)
    for (size_t i = 0; i < kTileTokens; ++i) sums[i] = start_at_zero<2>();
    for (size_t round = 0; round < rounds; ++round) {
        FINBACK_UNROLL(8)
        for (size_t i = 0; i < kTileTokens; ++i) {
            codes = settled(codes);  // so that no product is taken out of the loop
            sums[i] = add_dot(sums[i], codes, ones);
        }
    }
    Ints<2> sum = total(sums[0]);
    FINBACK_UNROLL(8)
    for (size_t i = 1; i < kTileTokens; ++i) sum = sum + total(sums[i]);
    return static_cast<uint64_t>(max_lane(lower(sum) + upper(sum)));
}

}  // namespace

GemmKernels gemm_kernels() {
    return {&linear, &head_linear, &ffn, &quantize, &read_all, &multiply_bytes, kTileTokens * sizeof(Bytes<2>)};
}

}  // namespace finback::FINBACK_NAMESPACE
