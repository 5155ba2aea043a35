// How a call's work is cut into items and its memory into pieces, the same on every instruction set.
#pragma once

#include "formats.h"
#include "scratch.h"
#include "streams.h"

namespace finback {

// Multiply-adds below which waking another thread costs more than it saves.
inline constexpr size_t kForkWork = 200000;
// A weight's bytes count more than its arithmetic when few tokens use them.
inline constexpr size_t kItemBytes = 64 * 1024;
inline constexpr size_t kItemsPerThread = 12;

// Row blocks that a product takes side by side: a pair, and two of a float format, whose chains of additions hide each
// other.
FINBACK_INLINE constexpr size_t blocks_together(Format format) { return is_integer(format) ? 2 : 4; }

FINBACK_INLINE int threads_for(size_t work, int threads) { return work < kForkWork ? 1 : threads; }

// Row blocks per item of a weight, of which and of others `all` are one pool: long sequential reads, as many as there
// are streams, yet enough items to balance the threads.
FINBACK_INLINE size_t blocks_per_item(const Weight& weight, size_t all, int threads) {
    const size_t by_bytes = kItemBytes / (weight.block_stride() + 1) + 1;
    const size_t by_count = all / (kItemsPerThread * static_cast<size_t>(threads)) + 1;
    const size_t least = by_bytes < by_count ? by_bytes : by_count;
    const size_t together = blocks_together(weight.format);
    size_t streamed = 2 * weight_streams();
    while (streamed > together && by_count < streamed) streamed /= 2;
    if (streamed <= together) return ceil_div(least, together) * together;
    return least < streamed ? streamed : least / streamed * streamed;
}

// Bytes that `count` objects of T take as one piece.
template <class T>
FINBACK_INLINE constexpr size_t piece_bytes(size_t count) {
    return ceil_div(count * sizeof(T), 64) * 64;
}

// Working memory, the calling thread's or given, handed out front to back. Whoever makes it adds up the pieces first.
class Pieces {
public:
    FINBACK_INLINE explicit Pieces(size_t bytes) : Pieces(scratch(bytes)) {}
    FINBACK_INLINE explicit Pieces(void* memory) : next_(static_cast<uint8_t*>(memory)) {}

    template <class T>
    FINBACK_INLINE T* take(size_t count) {
        T* piece = reinterpret_cast<T*>(next_);
        next_ += piece_bytes<T>(count);
        return piece;
    }

private:
    uint8_t* next_;
};

}  // namespace finback
