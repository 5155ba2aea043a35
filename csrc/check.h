// Argument checks at the boundary: a failed one names the operation, the argument, what was expected and what came.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace finback {

// Becomes finback.errors.KernelArgumentError in Python.
class ArgumentError : public std::invalid_argument {
public:
    using std::invalid_argument::invalid_argument;
};

template <class... Parts>
void require(bool holds, const char* operation, const Parts&... parts) {
    if (holds) return;
    std::ostringstream text;
    text << '[' << operation << "] ";
    (text << ... << parts);
    throw ArgumentError(text.str());
}

}  // namespace finback
