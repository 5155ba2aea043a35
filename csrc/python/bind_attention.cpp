// Bindings of norms, RoPE, KV rows, attention and sampling.
#include "bindings.h"

namespace finback {

void bind_attention(nb::module_&) {}

}  // namespace finback
