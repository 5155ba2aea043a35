// Entry points of attention.cpp, one set per instruction set. Arguments have been checked by the caller: every
// position, sequence, block and slot that a call can reach lies inside its array.
#pragma once

#include <cstdint>

#include "dispatch_macros.h"

namespace finback {

// Element types of a KV cache.
enum class CacheType { f32, f16, bf16 };

// Where each token's context lies: token i sees positions 0 .. positions[i] of sequence seq_ids[i]; position p of
// sequence s is row p % block_size of block block_tables[s * max_blocks + p / block_size].
struct Paging {
    const int32_t* block_tables;
    const int32_t* seq_ids;
    const int32_t* positions;
    int64_t max_blocks;
    int64_t block_size;
};

struct AttentionCall {
    const float* q;  // [tokens, heads, key_dim]
    const void* k;   // [blocks, block_size, kv_heads, key_dim]
    const void* v;   // [blocks, block_size, kv_heads, value_dim]
    float* out;      // [tokens, heads, value_dim]
    CacheType type;
    Paging paging;
    int64_t tokens, heads, kv_heads, key_dim, value_dim;
    float scale;
};

struct MlaCall {
    const float* q_latent;  // [tokens, heads, latent]
    const float* q_rope;    // [tokens, heads], rope_stride apart, of which the first rope elements count
    const void* cache;      // [blocks, block_size, latent + rope]
    float* out;             // [tokens, heads, latent]
    CacheType type;
    Paging paging;
    int64_t tokens, heads, latent, rope, rope_stride;
    float scale;
};

struct MlaPrefillCall {
    const float* q;       // [tokens, row_heads, nope + rope], of which the first `heads` count
    const float* k_nope;  // [context, heads, nope]
    const float* k_rope;  // [context, rope_stride], of which the first rope elements count
    const float* v;       // [context, heads, value_dim]
    float* out;           // [tokens, row_heads, value_dim]: of the first `heads`
    int64_t tokens, heads, row_heads, nope, rope, rope_stride, value_dim;
    int64_t first_position;
    float scale;
};

struct AttentionKernels {
    void (*attention)(const AttentionCall&);
    void (*mla_attention)(const MlaCall&);
    // Whether mla_attention multiplies such latents on tile registers: then it beats mla_prefill behind long contexts.
    bool (*latents_on_tiles)(CacheType type, int64_t latent, int64_t rope);
    void (*mla_prefill)(const MlaPrefillCall&);
    // Rows of `width` elements between float32 arrays and the slots of a cache.
    void (*store_rows)(CacheType type, void* cache, const float* values, const int64_t* slots, int64_t rows,
                       int64_t width);
    void (*load_rows)(CacheType type, const void* cache, float* values, const int64_t* slots, int64_t rows,
                      int64_t width);
};

#define FINBACK_DECLARE(isa)              \
    namespace isa {                       \
    AttentionKernels attention_kernels(); \
    }
FINBACK_FOR_EACH_ISA(FINBACK_DECLARE)
#undef FINBACK_DECLARE

}  // namespace finback
