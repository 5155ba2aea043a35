// The gated feed-forward network, dense or of experts; see FfnCall in gemm.h.
#pragma once

#include "gemm.h"
#include "simd.h"

namespace finback::FINBACK_NAMESPACE {

void ffn(const FfnCall& call);

}  // namespace finback::FINBACK_NAMESPACE
