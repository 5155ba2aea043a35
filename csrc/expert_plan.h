// Which tokens go to which expert: integers only, compiled once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace finback {

// One expert's tokens: slots [first_slot, first_slot + count).
struct ExpertRun {
    int32_t expert;
    int32_t first_slot;
    int32_t count;
};

// A slot is one (token, choice) pair; slots are sorted by expert, then by token, then by choice.
struct ExpertPlan {
    int32_t* token_of_slot;   // [n * k]
    int32_t* slot_of_choice;  // [n, k]
    ExpertRun* runs;          // [min(n * k, experts)], most tokens first, so that big pieces of work start early
    size_t run_count;
};

// `first_slots` is work memory for experts + 1 integers. ids are in [0, experts).
void plan_experts(const int32_t* ids, size_t n, size_t k, size_t experts, int32_t* first_slots, ExpertPlan& plan);

}  // namespace finback
