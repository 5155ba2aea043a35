// See thread_pool.h.
#include "thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(FINBACK_X86)
#include <immintrin.h>
#endif

namespace finback {
namespace {

inline void pause_cpu() {
#if defined(FINBACK_X86)
    _mm_pause();
#endif
}

constexpr int kSpins = 20000;  // tens of microseconds: longer than the gap between two kernels of a step

class Pool {
public:
    ~Pool() { resize(1); }

    int size() const { return requested_.load(std::memory_order_relaxed); }
    void request(int count) { requested_.store(count, std::memory_order_relaxed); }

    void run(int threads, TeamFunction function, void* context) {
        const std::lock_guard<std::mutex> call(call_mutex_);
        const int wanted = size();
        if (static_cast<int>(workers_.size()) + 1 != wanted) resize(wanted);
        if (threads > wanted) threads = wanted;
        active_ = threads < 1 ? 1 : threads;
        clear_counters();
        Team team;
        team.size = active_;
        if (active_ == 1) {
            function(context, team);
            return;
        }
        function_ = function;
        context_ = context;
        pending_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
        announce();
        function(context, team);
        while (pending_.load(std::memory_order_acquire) != 0) pause_cpu();
    }

    void barrier(int members) {
        if (members == 1) {
            clear_counters();
            return;
        }
        const uint32_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
            arrived_.store(0, std::memory_order_relaxed);
            clear_counters();
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
            pause_cpu();
            if (spins > kSpins) std::this_thread::yield();  // more threads than free cores
        }
    }

    size_t next() { return counter_.fetch_add(1, std::memory_order_relaxed); }

    // Some items of the thread's own range, one of another's, or none. A claim waits for all that was read before it:
    // so an eighth of what is left at a time.
    Items claim_in_range(size_t index, size_t size, size_t count) {
        for (size_t i = 0; i < size; ++i) {
            const size_t owner = (index + i) % size, begin = count * owner / size, end = count * (owner + 1) / size;
            std::atomic<uint64_t>& taken = ranges_[owner].taken;
            uint64_t old = taken.load(std::memory_order_relaxed);
            for (;;) {
                const size_t front = old & 0xffffffffu, back = old >> 32;
                if (begin + front + back >= end) break;
                const size_t left = end - begin - front - back, some = i == 0 ? (left + 7) / 8 : 1;
                const uint64_t more = i == 0 ? old + some : old + (uint64_t{1} << 32);
                if (!taken.compare_exchange_weak(old, more, std::memory_order_relaxed)) continue;
                const size_t first = i == 0 ? begin + front : end - 1 - back;
                return {first, first + some};
            }
        }
        return {};
    }

private:
    // Items taken of a thread's range: from the front in the low half, from the back in the high half.
    struct alignas(64) Range {
        std::atomic<uint64_t> taken{0};
    };

    void clear_counters() {
        counter_.store(0, std::memory_order_relaxed);
        for (int i = 0; i < active_; ++i) ranges_[static_cast<size_t>(i)].taken.store(0, std::memory_order_relaxed);
    }

    void announce() {
        generation_.fetch_add(1, std::memory_order_seq_cst);
        if (parked_.load(std::memory_order_seq_cst) == 0) return;
        const std::lock_guard<std::mutex> lock(park_mutex_);
        park_.notify_all();
    }

    // Waits for the next generation: spin first, then park.
    uint32_t await(uint32_t seen) {
        for (int spins = 0; spins < kSpins; ++spins) {
            const uint32_t now = generation_.load(std::memory_order_acquire);
            if (now != seen) return now;
            pause_cpu();
        }
        std::unique_lock<std::mutex> lock(park_mutex_);
        parked_.fetch_add(1, std::memory_order_seq_cst);
        park_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != seen; });
        parked_.fetch_sub(1, std::memory_order_seq_cst);
        return generation_.load(std::memory_order_acquire);
    }

    void work(int index, uint32_t seen) {
        for (;;) {
            seen = await(seen);
            if (stopping_.load(std::memory_order_acquire)) return;
            if (index < active_) {
                Team team;
                team.index = index;
                team.size = active_;
                function_(context_, team);
            }
            // Idle members report too: the next run may not begin while one still reads this run's fields.
            pending_.fetch_sub(1, std::memory_order_acq_rel);
        }
    }

    void resize(int count) {
        stopping_.store(true, std::memory_order_release);
        announce();
        for (std::thread& worker : workers_) worker.join();
        workers_.clear();
        stopping_.store(false, std::memory_order_release);
        ranges_ = std::vector<Range>(static_cast<size_t>(count));
        const uint32_t seen = generation_.load(std::memory_order_acquire);
        for (int i = 1; i < count; ++i) workers_.emplace_back([this, i, seen] { work(i, seen); });
    }

    std::mutex call_mutex_;
    std::atomic<int> requested_{1};
    std::vector<std::thread> workers_;

    TeamFunction function_ = nullptr;
    void* context_ = nullptr;
    int active_ = 1;
    std::vector<Range> ranges_{1};

    std::atomic<uint32_t> generation_{0};
    std::atomic<bool> stopping_{false};
    std::atomic<int> parked_{0};
    std::mutex park_mutex_;
    std::condition_variable park_;

    alignas(64) std::atomic<int> pending_{0};
    alignas(64) std::atomic<size_t> counter_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

// The one process-wide team: the processor's cores are process-wide too.
Pool& pool() {
    static Pool instance;
    return instance;
}

}  // namespace

void Team::barrier() { pool().barrier(size); }
size_t Team::next() { return pool().next(); }
size_t Team::next_in_range(size_t count) {
    if (claimed_.first == claimed_.end)
        claimed_ = pool().claim_in_range(static_cast<size_t>(index), static_cast<size_t>(size), count);
    return claimed_.first < claimed_.end ? claimed_.first++ : count;
}
int thread_count() { return pool().size(); }
void set_thread_count(int count) { pool().request(count); }
void run_team(int threads, TeamFunction function, void* context) { pool().run(threads, function, context); }

}  // namespace finback
