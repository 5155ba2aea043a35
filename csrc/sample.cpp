// (to be written)
#include "sample.h"

#include "simd.h"

namespace finback::FINBACK_NAMESPACE {

SampleKernels sample_kernels() { return {}; }

}  // namespace finback::FINBACK_NAMESPACE
