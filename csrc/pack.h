// Published blocks to tiles and back, value for value: nothing here rounds.
#pragma once

#include "formats.h"

namespace finback {

// A weight as published: row-major blocks of `experts` matrices [rows, cols], one after another.
struct PublishedWeight {
    Format format = Format::f32;
    size_t rows = 0;
    size_t cols = 0;
    size_t experts = 1;
    const uint8_t* data = nullptr;
    const float* scales = nullptr;  // f8_e4m3 only: [experts * rows, ceil(cols / 128)] multipliers
};

// Fills packed_bytes(...) bytes at `tiles`, on all threads.
void pack(const PublishedWeight& source, uint8_t* tiles);

// The float32 values of rows first .. first + count - 1 of one expert, [count, cols], on all threads.
void unpack_rows(const Weight& weight, size_t expert, size_t first, size_t count, float* out);
// out[i] = row ids[i] of expert 0. The caller has checked the ids.
void take_rows(const Weight& weight, const int64_t* ids, size_t count, float* out);

}  // namespace finback
