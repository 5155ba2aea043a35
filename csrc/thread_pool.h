// A fixed team of threads that run one function together: fork, phases separated by barriers, join.
//
// Workers spin for a short while between calls and then park, so that back-to-back kernels of one step pay about a
// microsecond of hand-over and an idle process pays nothing. Work inside a phase is handed out by an atomic counter:
// which thread computes a tile never changes its value (rule R1).
#pragma once

#include <cstddef>
#include <cstdint>

namespace finback {

class Team;

using TeamFunction = void (*)(void* context, Team& team);

// Items [first, end).
struct Items {
    size_t first = 0, end = 0;
};

// What a function sees of the team that runs it. One object per thread.
class Team {
public:
    int index = 0;  // this thread, 0 .. size - 1
    int size = 1;

    // Every thread of the team waits here until all have arrived.
    void barrier();
    // Next unclaimed item of the current phase, counting up from 0. Returns `count` or more when none is left.
    // The counter starts again at 0 after each barrier().
    size_t next();
    // The same for items that lie one behind the other in memory: each thread goes through a range of its own from the
    // front, so that it reads on where it stopped, and then helps others from the back of theirs. All calls of a phase
    // pass the same count, until none is left. Do not mix with next() in a phase.
    size_t next_in_range(size_t count);

private:
    Items claimed_;  // and not handed out yet
};

int thread_count();
// Takes effect at the next run; 1 <= count <= 1024.
void set_thread_count(int count);

// Runs `function(context, team)` on `threads` threads at most (capped by thread_count()), the caller being thread 0.
// Calls from several Python threads are serialised. Nested calls are not allowed.
void run_team(int threads, TeamFunction function, void* context);

template <class F>
void run_on(int threads, F&& body) {
    run_team(threads, [](void* context, Team& team) { (*static_cast<F*>(context))(team); }, &body);
}

// body(i) for the items of [0, count) that this thread claims: in order, so what it reads ahead is its own next item.
template <class F>
void for_claimed(Team& team, size_t count, F&& body) {
    for (size_t i = team.next_in_range(count); i < count; i = team.next_in_range(count)) body(i);
}

// body(i) for i in [0, count), dynamically balanced; runs inline when threads == 1 or count == 1.
template <class F>
void parallel_for(int threads, size_t count, F&& body) {
    if (threads > 1 && static_cast<size_t>(threads) > count) threads = static_cast<int>(count);
    run_on(threads, [&](Team& team) {
        for (size_t i = team.next(); i < count; i = team.next()) body(i);
    });
}

}  // namespace finback
