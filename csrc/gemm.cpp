// (to be written)
#include "gemm.h"

#include "simd.h"

namespace finback::FINBACK_NAMESPACE {

GemmKernels gemm_kernels() { return {}; }

}  // namespace finback::FINBACK_NAMESPACE
