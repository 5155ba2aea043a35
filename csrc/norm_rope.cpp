// (to be written)
#include "norm_rope.h"

#include "simd.h"

namespace finback::FINBACK_NAMESPACE {

NormRopeKernels norm_rope_kernels() { return {}; }

}  // namespace finback::FINBACK_NAMESPACE
