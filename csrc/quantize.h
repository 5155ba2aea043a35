// Float rows to published 8- and 4-bit blocks, with the scale of least squared error.
#pragma once

#include "formats.h"
#include "simd.h"

namespace finback::FINBACK_NAMESPACE {

// Fills rows * row_bytes(format, cols) bytes of q8_0, q4_0 or q4_1 blocks; returns the relative squared error
// (sum of squared differences over sum of squares; 0 for an all-zero input). Several threads; the sum over rows is
// taken in the order of the rows.
double quantize(Format format, const float* x, size_t rows, size_t cols, uint8_t* blocks);

}  // namespace finback::FINBACK_NAMESPACE
