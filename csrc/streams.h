// How many streams of weights a thread reads side by side when it multiplies few tokens: as many as this processor's
// own fetching ahead keeps apart. No result depends on it.
#pragma once

#include <cstddef>

namespace finback {

inline constexpr size_t kMostStreams = 8;

// 1 or kMostStreams.
size_t weight_streams();
// Returns the number that was in force.
size_t select_streams(size_t count);

}  // namespace finback
