// Choices: the next token out of a row of logits, and the experts of a token.
//
// Everything here is bit-equal on every instruction set (no fused operations, fixed orders of additions), so that equal
// logits lead to equal choices on every machine.
//
// Sampling never sorts the vocabulary. One pass counts tokens and their weights in buckets of 1/16 of a logit below the
// largest; top-k, top-p, min-p and the draw itself are then positions in the descending order, each found by walking
// the bucket totals and sorting the one bucket that it falls into.
#include "sample.h"

#include "scratch.h"
#include "simd.h"
#include "thread_pool.h"

namespace finback::FINBACK_NAMESPACE {
namespace {

constexpr int kBuckets = 1024;
constexpr float kBucketsPerLogit = 16.0f;
constexpr uint16_t kNoBucket = 0xffff;     // weight 0: never chosen
constexpr float kLargestDistance = 87.0f;  // e^-87 is the smallest weight that counts
const float kMinusInfinity = -__builtin_inff();

// The largest logit and whether all of them can be worked with: none NaN or +infinity, at least one finite.
bool find_largest(const float* logits, int64_t n, float& largest) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = float_to_bits(logits[i]);
        bad |= static_cast<uint32_t>((bits & 0x7fffffffu) > 0x7f800000u) | static_cast<uint32_t>(bits == 0x7f800000u);
    }
    F32x8 top = set1(kMinusInfinity);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) top = max(top, load(logits + i));
    largest = max_lane(top);
    for (; i < n; ++i) largest = logits[i] > largest ? logits[i] : largest;
    return bad == 0 && largest > kMinusInfinity;
}

int64_t argmax(const float* logits, int64_t n) {
    float largest;
    if (!find_largest(logits, n, largest)) return -1;
    int64_t i = 0;
    while (logits[i] != largest) ++i;
    return i;
}

// ---- descending order
// --------------------------------------------------------------------------------------------------

// Heaps of indices whose root comes last in the descending order of their values (smaller index first among equals).
struct Descending {
    const float* values;

    bool before(int32_t a, int32_t b) const { return values[a] > values[b] || (values[a] == values[b] && a < b); }
    void sift_down(int32_t* heap, int64_t at, int64_t n) const {
        const int32_t moving = heap[at];
        for (int64_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
            if (child + 1 < n && before(heap[child], heap[child + 1])) ++child;
            if (!before(moving, heap[child])) break;
            heap[at] = heap[child];
            at = child;
        }
        heap[at] = moving;
    }
    void make_heap(int32_t* heap, int64_t n) const {
        for (int64_t i = n / 2; i-- > 0;) sift_down(heap, i, n);
    }
    void sort_heap(int32_t* heap, int64_t n) const {
        for (int64_t last = n - 1; last > 0; --last) {
            const int32_t root = heap[0];
            heap[0] = heap[last];
            heap[last] = root;
            sift_down(heap, 0, last);
        }
    }
    void sort(int32_t* ids, int64_t n) const {
        bool sorted = true;  // equal values arrive in order
        for (int64_t i = 1; i < n; ++i) sorted = sorted && before(ids[i - 1], ids[i]);
        if (sorted) return;
        make_heap(ids, n);
        sort_heap(ids, n);
    }
};

void top_indices(const float* logits, int64_t n, int64_t k, int32_t* ids) {
    if (k == 0) return;
    const Descending order{logits};
    for (int64_t i = 0; i < k; ++i) ids[i] = static_cast<int32_t>(i);
    order.make_heap(ids, k);
    int64_t i = k;
    const auto offer = [&](int64_t candidate) {
        if (logits[candidate] <= logits[ids[0]]) return;  // among equals the earlier index stays
        ids[0] = static_cast<int32_t>(candidate);
        order.sift_down(ids, 0, k);
    };
    for (; i + kLanes <= n; i += kLanes)
        if (max_lane(load(logits + i)) > logits[ids[0]])
            for (int64_t j = i; j < i + kLanes; ++j) offer(j);
    for (; i < n; ++i) offer(i);
    order.sort_heap(ids, k);
}

// ---- sampling
// ----------------------------------------------------------------------------------------------------------

// Weight of a logit relative to the largest one's, which is 1.
inline F32x8 weights_of(F32x8 logits, float largest, float temperature) {
    return exp_same_everywhere((logits - set1(largest)) / set1(temperature));
}

// Tokens of positive weight, by bucket, with the descending order worked out only where it is asked for.
class Candidates {
public:
    static size_t bytes(int64_t vocab) {
        return static_cast<size_t>(vocab) * (sizeof(float) + sizeof(int32_t) + sizeof(uint16_t)) +
               kBuckets * (sizeof(double) + sizeof(int64_t));
    }

    Candidates(const SampleCall& call, float largest, void* memory) : call_(call), largest_(largest) {
        mass_ = static_cast<double*>(memory);
        count_ = reinterpret_cast<int64_t*>(mass_ + kBuckets);
        weight_ = reinterpret_cast<float*>(count_ + kBuckets);
        sorted_ = reinterpret_cast<int32_t*>(weight_ + call.vocab);
        bucket_ = reinterpret_cast<uint16_t*>(sorted_ + call.vocab);
        for (int b = 0; b < kBuckets; ++b) mass_[b] = 0.0;
        for (int b = 0; b < kBuckets; ++b) count_[b] = 0;
        fill();
    }

    int64_t size() const { return size_; }
    // Tokens whose weight is at least min_p; the largest weight is 1.
    int64_t above_min_p() const { return above_min_p_; }

    // Total weight of the first n tokens in descending order.
    double mass_of_first(int64_t n) {
        double mass = 0.0;
        for (int b = 0; n > 0 && b < kBuckets; n -= count_[b++]) {
            if (count_[b] <= n) {
                mass += mass_[b];
                continue;
            }
            sort(b);
            for (int64_t i = 0; i < n; ++i) mass += static_cast<double>(weight_[sorted_[i]]);
            return mass;
        }
        return mass;
    }

    // Number of tokens that are preceded by less than `limit` of weight.
    int64_t count_below(double limit) {
        double mass = 0.0;
        int64_t tokens = 0;
        for (int b = 0; b < kBuckets; tokens += count_[b], mass += mass_[b++]) {
            if (mass + mass_[b] < limit) continue;
            sort(b);
            for (int64_t i = 0; i < count_[b]; ++i) {
                if (mass >= limit) return tokens + i;
                mass += static_cast<double>(weight_[sorted_[i]]);
            }
            return tokens + count_[b];
        }
        return size_;
    }

    // The token among the first n at which the running sum of weights exceeds `target`; the n-th at the latest.
    int64_t at(double target, int64_t n) {
        double mass = 0.0;
        for (int b = 0; b < kBuckets; n -= count_[b], mass += mass_[b++]) {
            if (count_[b] < n && mass + mass_[b] <= target) continue;
            if (count_[b] == 0) continue;
            sort(b);
            const int64_t last = (count_[b] < n ? count_[b] : n) - 1;
            for (int64_t i = 0; i < last; ++i) {
                mass += static_cast<double>(weight_[sorted_[i]]);
                if (mass > target) return sorted_[i];
            }
            return sorted_[last];
        }
        return -1;  // not reached: n is at least 1 and at most size()
    }

private:
    void fill() {
        const int64_t whole = call_.vocab / kLanes * kLanes;
        for (int64_t i = 0; i < whole; i += kLanes) add(i, call_.logits + i, kLanes);
        float rest[kLanes];
        for (int i = 0; i < kLanes; ++i) rest[i] = whole + i < call_.vocab ? call_.logits[whole + i] : kMinusInfinity;
        add(whole, rest, static_cast<int>(call_.vocab - whole));
    }

    void add(int64_t first, const float* logits, int n) {
        float weights[kLanes];
        store(weights, weights_of(load(logits), largest_, call_.temperature));
        for (int i = 0; i < n; ++i) {
            const float distance = largest_ - logits[i];
            weight_[first + i] = weights[i];
            bucket_[first + i] = kNoBucket;
            if (!(distance / call_.temperature < kLargestDistance)) continue;
            const float scaled = distance * kBucketsPerLogit;
            const int b = scaled < static_cast<float>(kBuckets - 1) ? static_cast<int>(scaled) : kBuckets - 1;
            bucket_[first + i] = static_cast<uint16_t>(b);
            ++count_[b];
            mass_[b] += static_cast<double>(weights[i]);
            ++size_;
            above_min_p_ += weights[i] >= call_.min_p;
        }
    }

    void sort(int bucket) {
        if (bucket == sorted_bucket_) return;
        int64_t n = 0;
        for (int64_t i = 0; i < call_.vocab; ++i)
            if (bucket_[i] == bucket) sorted_[n++] = static_cast<int32_t>(i);
        Descending{call_.logits}.sort(sorted_, n);
        sorted_bucket_ = bucket;
    }

    const SampleCall& call_;
    float largest_;
    double* mass_;
    int64_t* count_;
    float* weight_;
    int32_t* sorted_;
    uint16_t* bucket_;
    int64_t size_ = 0, above_min_p_ = 0;
    int sorted_bucket_ = -1;
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t sample(const SampleCall& call) {
    float largest;
    if (!find_largest(call.logits, call.vocab, largest)) return -1;
    Candidates candidates(call, largest, scratch(Candidates::bytes(call.vocab)));
    int64_t kept = candidates.size();
    if (call.top_k > 0) kept = smaller(kept, call.top_k);
    if (call.top_p < 1.0f)
        kept = smaller(kept, candidates.count_below(static_cast<double>(call.top_p) * candidates.mass_of_first(kept)));
    kept = smaller(kept, candidates.above_min_p());
    return candidates.at(call.uniform * candidates.mass_of_first(kept), kept);
}

bool log_sum_exp(const float* logits, int64_t n, float* largest, double* log_sum) {
    if (!find_largest(logits, n, *largest)) return false;
    double sums[kLanes] = {};
    for (int64_t i = 0; i < n; i += kLanes) {
        float lanes[kLanes];
        for (int j = 0; j < kLanes; ++j) lanes[j] = i + j < n ? logits[i + j] : kMinusInfinity;
        store(lanes, weights_of(load(lanes), *largest, 1.0f));
        for (int j = 0; j < kLanes; ++j) sums[j] += i + j < n ? static_cast<double>(lanes[j]) : 0.0;
    }
    *log_sum = __builtin_log(((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7])));
    return true;
}

// ---- routing
// -----------------------------------------------------------------------------------------------------------

// One token's scores while its experts are chosen.
struct Router {
    const RouteCall& call;
    float* scores;   // [padded experts], what the weights are made of
    float* choice;   // [padded experts], what the experts are chosen by; -infinity once out
    float* ranking;  // [groups]

    static int64_t floats(const RouteCall& call) { return 2 * (call.experts + kLanes) + call.groups; }

    Router(const RouteCall& route, float* memory)
        : call(route),
          scores(memory),
          choice(memory + route.experts + kLanes),
          ranking(choice + route.experts + kLanes) {}

    void route(int64_t token) const {
        score(call.logits + token * call.experts);
        for (int64_t e = 0; e < call.experts; ++e)
            choice[e] = number(call.bias == nullptr ? scores[e] : scores[e] + call.bias[e]);
        if (call.group_rule != GroupRule::none) mask_groups();
        int32_t* ids = call.ids + token * call.top_k;
        for (int64_t j = 0; j < call.top_k; ++j) ids[j] = static_cast<int32_t>(take_largest(choice, call.experts));
        weigh(ids, call.weights + token * call.top_k);
    }

    void score(const float* logits) const {
        const int64_t n = call.experts;
        for (int64_t e = 0; e < n; ++e) scores[e] = logits[e];
        for (int64_t e = n; e < n + kLanes; ++e) scores[e] = kMinusInfinity;
        if (call.scoring == Scoring::sigmoid) {
            for (int64_t e = 0; e < n; e += kLanes)
                store(scores + e, set1(1.0f) / (set1(1.0f) + exp_same_everywhere(zero() - load(scores + e))));
            return;
        }
        F32x8 top = load(scores);
        for (int64_t e = kLanes; e < n; e += kLanes) top = max(top, load(scores + e));
        const F32x8 largest = set1(max_lane(top));
        for (int64_t e = 0; e < n; e += kLanes) store(scores + e, exp_same_everywhere(load(scores + e) - largest));
        for (int64_t e = n; e < n + kLanes; ++e) scores[e] = 0.0f;
        F32x8 total = zero();
        for (int64_t e = 0; e < n; e += kLanes) total = total + load(scores + e);
        const F32x8 divisor = set1(sum(total));
        for (int64_t e = 0; e < n; e += kLanes) store(scores + e, load(scores + e) / divisor);
    }

    // What is not a number ranks last, so that NaN can mark what has been taken.
    static float number(float x) { return x == x ? x : kMinusInfinity; }

    // Index of the largest value that has not been taken, the smallest such index; marks it as taken.
    static int64_t take_largest(float* values, int64_t n) {
        int64_t best = -1;
        for (int64_t i = 0; i < n; ++i)
            if (values[i] == values[i] && (best < 0 || values[i] > values[best])) best = i;
        values[best] = __builtin_nanf("");
        return best;
    }

    float rank(const float* members, int64_t n) const {
        float first = kMinusInfinity, second = kMinusInfinity;
        for (int64_t i = 0; i < n; ++i) {
            if (members[i] > first) {
                second = first;
                first = members[i];
            } else if (members[i] > second) {
                second = members[i];
            }
        }
        return call.group_rule == GroupRule::max ? first : first + second;
    }

    // Experts outside the best groups go to -infinity.
    void mask_groups() const {
        const int64_t size = call.experts / call.groups;
        for (int64_t g = 0; g < call.groups; ++g) ranking[g] = number(rank(choice + g * size, size));
        for (int64_t j = 0; j < call.top_groups; ++j) take_largest(ranking, call.groups);
        for (int64_t g = 0; g < call.groups; ++g)
            if (ranking[g] == ranking[g])
                for (int64_t i = 0; i < size; ++i) choice[g * size + i] = kMinusInfinity;
    }

    void weigh(const int32_t* ids, float* weights) const {
        float total = 0.0f;
        for (int64_t j = 0; j < call.top_k; ++j) total += weights[j] = scores[ids[j]];
        const float divisor = call.normalize ? total + 1e-20f : 1.0f;
        for (int64_t j = 0; j < call.top_k; ++j) weights[j] = weights[j] / divisor * call.scale;
    }
};

void route(const RouteCall& call) {
    constexpr int64_t kTokensPerItem = 8;
    const int64_t items = (call.tokens + kTokensPerItem - 1) / kTokensPerItem;
    const int threads = call.tokens * call.experts * call.top_k < 65'536 ? 1 : thread_count();
    const int64_t floats = (Router::floats(call) + 15) / 16 * 16;
    auto* memory = static_cast<float*>(scratch(static_cast<size_t>(threads * floats) * sizeof(float)));
    run_on(threads, [&](Team& team) {
        const Router router(call, memory + team.index * floats);
        for (auto item = static_cast<int64_t>(team.next()); item < items; item = static_cast<int64_t>(team.next()))
            for (int64_t t = item * kTokensPerItem; t < smaller(call.tokens, (item + 1) * kTokensPerItem); ++t)
                router.route(t);
    });
}

}  // namespace

SampleKernels sample_kernels() { return {argmax, sample, log_sum_exp, top_indices, route}; }

}  // namespace finback::FINBACK_NAMESPACE
