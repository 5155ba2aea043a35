// The native module: one line per family of bindings.
#include "bindings.h"

NB_MODULE(_native, m) {
    m.doc() = "Finback's C++ kernels. Import finback.kernels instead: it documents and types them.";
    finback::bind_weights(m);
    finback::bind_attention(m);
    finback::bind_system(m);
}
