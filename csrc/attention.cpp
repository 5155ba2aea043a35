// (to be written)
#include "attention.h"

#include "simd.h"

namespace finback::FINBACK_NAMESPACE {

AttentionKernels attention_kernels() { return {}; }

}  // namespace finback::FINBACK_NAMESPACE
