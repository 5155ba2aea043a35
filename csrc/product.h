// The one product under linear, head_linear and the gated networks: some row blocks of a weight times some tokens.
#pragma once

#include "activations.h"

namespace finback::FINBACK_NAMESPACE {

// The rows of a product's input: int8 groups for integer formats, floats for float formats; strides in elements.
struct Input {
    const Activation* groups = nullptr;
    size_t group_stride = 0;
    const float* values = nullptr;
    size_t value_stride = 0;
    const int32_t* index = nullptr;  // row of token i, if not i itself
    size_t n = 0;
};

// Where the results go, relative to the first row of the product: out[token * stride + row].
struct Output {
    float* out = nullptr;
    size_t stride = 0;
    const float* bias = nullptr;
    const float* add = nullptr;
    size_t add_stride = 0;
};

// Row blocks [first, end) of one expert of the weight, whole pairs but for the weight's last. Each result is computed
// in the same order of operations whatever the other tokens, row blocks and threads are.
void product(const Weight& weight, size_t expert, size_t first, size_t end, const Input& input, const Output& output);

}  // namespace finback::FINBACK_NAMESPACE
