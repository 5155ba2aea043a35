// A paged cache and the heads of queries and keys as Python holds them, and the checks of what a call says about them.
#pragma once

#include <algorithm>
#include <vector>

#include "array_args.h"
#include "attention.h"
#include "dispatch.h"
#include "norm_rope.h"

namespace finback {

struct Cache {
    void* data;
    CacheType type;
    int64_t blocks, block_size, width;  // width: elements of one position
};

inline CacheType cache_type(const char* operation, const char* name, const InputArray& array) {
    if (array.type() == 'f') return CacheType::f32;
    if (array.type() == 'e') return CacheType::f16;
    require(array.type() == 'H', operation, name, " must be float32, float16 or uint16 (bfloat16 bits), not ",
            describe(array));
    return CacheType::bf16;
}

inline Cache cache_of(const char* operation, const char* name, const InputArray& array) {
    require(array.ndim() >= 3 && array.shape(1) > 0, operation, name,
            " must be [blocks, block_size, ...] with block_size > 0, not ", describe(array));
    require_contiguous(operation, name, array);
    Cache cache{array.data(), cache_type(operation, name, array), array.shape(0), array.shape(1), 1};
    for (size_t i = 2; i < array.ndim(); ++i) cache.width *= array.shape(i);
    return cache;
}

inline int64_t length(const InputArray& array, size_t axis) { return array.shape(axis); }

// The blocks that hold positions 0 .. last[s] of each sequence exist.
inline void check_blocks(const char* operation, const Paging& paging, const std::vector<int64_t>& last,
                         int64_t blocks) {
    for (size_t s = 0; s < last.size(); ++s) {
        const int32_t* table = paging.block_tables + static_cast<int64_t>(s) * paging.max_blocks;
        for (int64_t b = 0; last[s] >= 0 && b <= last[s] / paging.block_size; ++b)
            require(table[b] >= 0 && table[b] < blocks, operation, "block_tables[", s, ", ", b, "] is ", table[b],
                    ", but the cache has ", blocks, " blocks");
    }
}

inline Paging paging_of(const char* operation, const Cache& cache, int64_t tokens, const InputArray& block_tables,
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

inline const int64_t* slots_of(const char* operation, const Cache& cache, const InputArray& slots, int64_t rows) {
    const int64_t* at = elements<int64_t>(operation, "slots", slots, {rows});
    const int64_t capacity = cache.blocks * cache.block_size;
    for (int64_t i = 0; i < rows; ++i)
        require(at[i] >= 0 && at[i] < capacity, operation, "slots[", i, "] is ", at[i], ", but the cache has ",
                capacity);
    return at;
}

// Keys and values of grouped-query attention, both writable or not.
struct HeadCache {
    Cache k, v;
    int64_t heads, key_dim, value_dim;
};

inline HeadCache head_cache(const char* operation, const InputArray& k_cache, const InputArray& v_cache) {
    require_rank(operation, "k_cache", k_cache, 4);
    require_rank(operation, "v_cache", v_cache, 4);
    const HeadCache cache{cache_of(operation, "k_cache", k_cache), cache_of(operation, "v_cache", v_cache),
                          length(k_cache, 2), length(k_cache, 3), length(v_cache, 3)};
    const Cache &k = cache.k, &v = cache.v;
    require(
        v.type == k.type && v.blocks == k.blocks && v.block_size == k.block_size && length(v_cache, 2) == cache.heads,
        operation, "v_cache must match k_cache in type, blocks, block size and heads: ", describe(v_cache), " against ",
        describe(k_cache));
    require(cache.heads > 0 && cache.key_dim > 0 && cache.value_dim > 0, operation,
            "k_cache and v_cache must have heads and a last axis above 0");
    return cache;
}

// All but the queries and the result.
inline AttentionCall attention_over(const char* operation, const HeadCache& cache, int64_t tokens, int64_t heads,
                                    const Paging& paging, float scale) {
    require(heads > 0 && heads % cache.heads == 0, operation, "q's heads must be a multiple of k_cache's: ", heads,
            " against ", cache.heads);
    AttentionCall call{};
    call.k = cache.k.data;
    call.v = cache.v.data;
    call.type = cache.k.type;
    call.paging = paging;
    call.tokens = tokens;
    call.heads = heads;
    call.kv_heads = cache.heads;
    call.key_dim = cache.key_dim;
    call.value_dim = cache.value_dim;
    call.scale = scale;
    return call;
}

// All but the queries, which lie by themselves, and the result: absorbed attention over latents and rotated keys.
inline MlaCall latents_over(const Cache& cache, int64_t tokens, int64_t heads, int64_t latent, const Paging& paging,
                            float scale) {
    MlaCall call{};
    call.cache = cache.data;
    call.type = cache.type;
    call.paging = paging;
    call.tokens = tokens;
    call.heads = heads;
    call.latent = latent;
    call.rope = call.rope_stride = cache.width - latent;
    call.scale = scale;
    return call;
}

// ---- heads to be normalised and rotated
// ------------------------------------------------------------------------------------------

// Of an array [tokens, heads * width] whose heads are normalised or rotated in place.
struct Heads {
    int64_t tokens, heads, width;
};

// All but the array.
inline RopeCall rope_of(const char* operation, const Heads& heads, const InputArray& cos, const InputArray& sin,
                        bool interleaved, int64_t start) {
    require_rank(operation, "cos", cos, 2);
    RopeCall call{};
    call.tokens = heads.tokens;
    call.heads = heads.heads;
    call.width = heads.width;
    call.pairs = length(cos, 1);
    call.cos = elements<float>(operation, "cos", cos, {call.tokens, call.pairs});
    call.sin = elements<float>(operation, "sin", sin, {call.tokens, call.pairs});
    require(start >= 0 && start <= call.width && 2 * call.pairs <= call.width - start, operation, "elements ", start,
            " to ", start, " + ", 2 * call.pairs, " must lie inside a head of ", call.width);
    call.start = start;
    call.interleaved = interleaved;
    return call;
}

inline void rotate(RopeCall call, float* x) {
    call.x = x;
    if (call.heads > 0 && call.pairs > 0) kernels().norm_rope.rope(call);
}

inline void norm_heads(const Heads& heads, const Norm& norm, float* x) {
    if (norm.weight == nullptr) return;
    kernels().norm_rope.rms_norm(x, norm, x, heads.tokens * heads.heads, heads.width, heads.width);
}

}  // namespace finback
