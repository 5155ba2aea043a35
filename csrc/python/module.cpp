// The native module: one line per family of bindings.
#include "bindings.h"

NB_MODULE(_native, m) {
    // A daemon thread at exit keeps its objects: that is no leak to report to a user.
    nanobind::set_leak_warnings(false);
    m.doc() = "Finback's C++ kernels. Import finback.kernels instead: it documents and types them.";
    finback::bind_parts(m);
    finback::bind_weights(m);
    finback::bind_attention(m);
    finback::bind_attention_parts(m);
    finback::bind_system(m);
}
