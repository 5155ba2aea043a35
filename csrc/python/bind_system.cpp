// Bindings of what belongs to the machine: threads, instruction sets and streams.
#include <sys/mman.h>

#include <algorithm>

#include "array_args.h"
#include "bindings.h"
#include "dispatch.h"
#include "streams.h"
#include "thread_pool.h"

namespace finback {
namespace {

constexpr size_t kPageBytes = 4096;  // the least that a system has
constexpr size_t kPieceBytes = 4 << 20;

// Asking first lets a disk work on a whole piece at once. Reading maps the pages, here and, on a virtual machine, on
// its host too, which a request to the system alone does not.
void bring_in(const InputArray& data) {
    const uint8_t* begin = elements<uint8_t>("bring_in", "data", data, {kAny});
    const size_t bytes = static_cast<size_t>(data.size());
    const nb::gil_scoped_release release;
    parallel_for(thread_count(), ceil_div(bytes, kPieceBytes), [&](size_t piece) {
        const uint8_t* first = begin + piece * kPieceBytes;
        const size_t count = std::min(kPieceBytes, bytes - piece * kPieceBytes);
        const uintptr_t before = reinterpret_cast<uintptr_t>(first) % kPageBytes;
        (void)posix_madvise(const_cast<uint8_t*>(first) - before, count + before, POSIX_MADV_WILLNEED);
        for (size_t at = 0; at < count; at += kPageBytes) (void)*static_cast<const volatile uint8_t*>(first + at);
    });
}

}  // namespace

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
    m.def(
        "select_streams",
        [](int64_t count) {
            require(count == 1 || count == int64_t{kMostStreams}, "select_streams", "count must be 1 or ", kMostStreams,
                    ", not ", count);
            return select_streams(static_cast<size_t>(count));
        },
        "count"_a, "Sets how many streams of weights a thread reads side by side; returns the former number.");
    m.def("bring_in", &bring_in, "data"_a);
}

}  // namespace finback
