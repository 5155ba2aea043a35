// See streams.h. Measured (docs/log.md): an Intel Xeon of the Emerald Rapids kind reads eight streams a third to a half
// faster than one; for an AMD EPYC of the Zen 4 kind a second stream costs 10 to 25 %.
#include "streams.h"

#include <atomic>

namespace finback {
namespace {

size_t streams_of_processor() {
#if defined(FINBACK_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_is("intel")) return kMostStreams;
#endif
    return 1;
}

std::atomic<size_t>& current() {
    static std::atomic<size_t> streams{streams_of_processor()};
    return streams;
}

}  // namespace

size_t weight_streams() { return current().load(std::memory_order_relaxed); }

size_t select_streams(size_t count) { return current().exchange(count, std::memory_order_relaxed); }

}  // namespace finback
