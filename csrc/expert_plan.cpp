// See expert_plan.h: a counting sort.
#include "expert_plan.h"

#include <algorithm>

namespace finback {

void plan_experts(const int32_t* ids, size_t n, size_t k, size_t experts, int32_t* first_slots, ExpertPlan& plan) {
    std::fill_n(first_slots, experts + 1, 0);
    for (size_t i = 0; i < n * k; ++i) ++first_slots[ids[i] + 1];
    plan.run_count = 0;
    for (size_t e = 0; e < experts; ++e) {
        const int32_t count = first_slots[e + 1];
        first_slots[e + 1] += first_slots[e];
        if (count > 0) plan.runs[plan.run_count++] = {static_cast<int32_t>(e), first_slots[e], count};
    }
    for (size_t i = 0; i < n * k; ++i) {
        const int32_t slot = first_slots[ids[i]]++;
        plan.token_of_slot[slot] = static_cast<int32_t>(i / k);
        plan.slot_of_choice[i] = slot;
    }
    std::stable_sort(plan.runs, plan.runs + plan.run_count,
                     [](const ExpertRun& a, const ExpertRun& b) { return a.count > b.count; });
}

}  // namespace finback
