// Working memory of one kernel call, kept by the calling thread from call to call.
//
// Memory is taken before the team starts, by the caller for all its workers, so that running out of it is an exception
// in the caller and never a dead worker thread.
#pragma once

#include <cstddef>

namespace finback {

// At least `bytes` of uninitialised memory, aligned to 64 bytes, valid until this thread calls scratch() again.
// Throws std::bad_alloc.
void* scratch(size_t bytes);

}  // namespace finback
