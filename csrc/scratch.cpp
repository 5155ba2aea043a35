// See scratch.h.
#include "scratch.h"

#include <cstdlib>
#include <new>

namespace finback {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kKeptBytes = size_t{64} << 20;  // a larger area goes back as soon as a call needs less

class Arena {
public:
    ~Arena() { std::free(data_); }

    void* reserve(size_t bytes) {
        const size_t wanted = (bytes + kAlignment - 1) / kAlignment * kAlignment;
        if (wanted > capacity_ || keep_nothing() || (capacity_ > kKeptBytes && wanted <= kKeptBytes)) replace(wanted);
        return data_;
    }

private:
    // Under the address sanitizer each call gets a block of its own size, so that overruns are seen.
    static constexpr bool keep_nothing() {
#if defined(__SANITIZE_ADDRESS__)
        return true;
#else
        return false;
#endif
    }

    void replace(size_t bytes) {
        std::free(data_);
        capacity_ = 0;
        data_ = std::aligned_alloc(kAlignment, bytes == 0 ? kAlignment : bytes);
        if (data_ == nullptr) throw std::bad_alloc();
        capacity_ = bytes;
    }

    void* data_ = nullptr;
    size_t capacity_ = 0;
};

}  // namespace

void* scratch(size_t bytes) {
    thread_local Arena arena;
    return arena.reserve(bytes);
}

}  // namespace finback
