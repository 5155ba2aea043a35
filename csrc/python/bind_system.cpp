// Bindings of what belongs to the machine: threads and instruction sets.
#include "bindings.h"
#include "dispatch.h"
#include "thread_pool.h"

namespace finback {

void bind_system(nb::module_& m) {
    nb::register_exception_translator([](const std::exception_ptr& p, void*) {
        try {
            std::rethrow_exception(p);
        } catch (const ArgumentError& error) {
            const nb::object type = nb::module_::import_("finback.errors").attr("KernelArgumentError");
            PyErr_SetString(type.ptr(), error.what());
        }
    });
    m.def("threads", &thread_count, "Threads that kernels run on.");
    m.def(
        "set_threads",
        [](int count) {
            require(count >= 1 && count <= 1024, "set_threads", "count must be from 1 to 1024, not ", count);
            set_thread_count(count);
        },
        "count"_a, "Sets the number of threads that kernels run on, the caller's included.");
    m.def("isa", &isa, "Name of the instruction set in use.");
    m.def("available_isas", &available_isas, "Instruction sets that this processor and this build have, lowest first.");
    m.def(
        "select_isa",
        [](const std::string& name) {
            bool found = false;
            for (const std::string& available : available_isas()) found = found || available == name;
            require(found, "select_isa", "this processor or build has no '", name, "'");
            return select_isa(name);
        },
        "name"_a, "Forces an instruction set; returns the one that was in use.");
}

}  // namespace finback
