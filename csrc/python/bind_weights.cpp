// Bindings of weights and matrix products.
#include "bindings.h"

namespace finback {

void bind_weights(nb::module_&) {}

}  // namespace finback
