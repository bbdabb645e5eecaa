// Which experts a token goes to, by the logits of its router.

#include "../simd.h"
#include "../threads.h"

namespace CMODEL_ISA {
namespace {

// The numbers are those of device/cmodel/kernels.py.
enum Scoring { SOFTMAX = 0, SIGMOID = 1 };

constexpr int64_t ROWS_OF_ITEM = 4;
constexpr float LEAST = -__builtin_inff();

struct RouteExperts {
    const float* logits;      // [rows, experts]
    int64_t rows, experts, top_k, scoring;
    int64_t groups;           // of as many experts each
    int64_t top_groups;       // of which experts are chosen; together they have at least top_k
    int64_t renormalize;
    float scale;
    const float* bias;        // [experts] for the choice alone, or null
    int32_t* ids;             // [rows, top_k], the best first
    float* weights;           // [rows, top_k]
};

void find_scores(const float* logits, int64_t count, int64_t scoring, float* scores) {
    if (scoring == SIGMOID) {
        for (int64_t i = 0; i < count; i += LANES) {
            Vec x = load_some(logits + i, count - i);
            store_some(scores + i, 1 / (1 + exp(x < -88.f ? set1(88.f) : -x)), count - i);
        }
        return;
    }
    float highest = logits[0], total = 0;
    for (int64_t i = 1; i < count; ++i) highest = most(highest, logits[i]);
    for (int64_t i = 0; i < count; i += LANES) {
        store_some(scores + i, exp(load_some(logits + i, count - i) - highest), count - i);
    }
    for (int64_t i = 0; i < count; ++i) total += scores[i];
    for (int64_t i = 0; i < count; ++i) scores[i] /= total;
}

// What is not a number ranks last, so that no value compares as neither more nor less.
CMODEL_INLINE float ranked(float value) { return value == value ? value : LEAST; }

// The places of the `count` largest values, of equal ones the first. Those that are taken become NaN.
template <class Take>
void take_largest(float* values, int64_t size, int64_t count, const Take& take) {
    for (int64_t n = 0; n < count; ++n) {
        int64_t best = -1;
        for (int64_t i = 0; i < size; ++i) {
            if (values[i] == values[i] && (best < 0 || values[i] > values[best])) best = i;
        }
        values[best] = __builtin_nanf("");
        take(n, best);
    }
}

// Make the choices of all groups but the best NaN. A group is as good as its best expert, with a bias its two best.
void keep_groups(const RouteExperts& a, float* choice, float* group_scores) {
    int64_t size = a.experts / a.groups;
    for (int64_t group = 0; group < a.groups; ++group) {
        float first = LEAST, second = LEAST;
        for (int64_t i = group * size; i < (group + 1) * size; ++i) {
            second = most(second, least(first, choice[i]));
            first = most(first, choice[i]);
        }
        group_scores[group] = ranked(a.bias == nullptr || size == 1 ? first : first + second);
    }
    take_largest(group_scores, a.groups, a.top_groups, [](int64_t, int64_t) {});
    for (int64_t i = 0; i < a.experts; ++i) {
        bool kept = group_scores[i / size] != group_scores[i / size];
        if (!kept) choice[i] = __builtin_nanf("");
    }
}

void route(const RouteExperts& a, int64_t row, float* memory) {
    float *scores = memory, *choice = scores + a.experts;
    find_scores(a.logits + row * a.experts, a.experts, a.scoring, scores);
    for (int64_t i = 0; i < a.experts; ++i) choice[i] = ranked(a.bias == nullptr ? scores[i] : scores[i] + a.bias[i]);
    if (a.top_groups < a.groups) keep_groups(a, choice, choice + a.experts);
    int32_t* ids = a.ids + row * a.top_k;
    float *weights = a.weights + row * a.top_k, total = 0;
    take_largest(choice, a.experts, a.top_k, [&](int64_t n, int64_t expert) {
        ids[n] = (int32_t)expert;
        weights[n] = scores[expert];
        total += scores[expert];
    });
    for (int64_t n = 0; n < a.top_k; ++n) {
        if (a.renormalize) weights[n] /= total < 1e-20f ? 1e-20f : total;
        weights[n] *= a.scale;
    }
}

}  // namespace

CMODEL_EXPORT(route_experts)(const RouteExperts& a) {
    if (a.groups < 1 || a.experts % a.groups != 0 || a.top_groups < 1 || a.top_groups > a.groups) return BAD_ARGUMENT;
    if (a.top_k < 1 || a.top_k > a.experts / a.groups * a.top_groups) return BAD_ARGUMENT;
    int64_t floats = round_up(2 * a.experts + a.groups, 16);
    float* memory = (float*)cmodel::scratch(floats * sizeof(float) * cmodel::thread_count());
    if (memory == nullptr) return NO_MEMORY;
    cmodel::parallel_for(ceil_div(a.rows, ROWS_OF_ITEM), [&](int64_t item, int worker) {
        for (int64_t row = item * ROWS_OF_ITEM; row < least(a.rows, (item + 1) * ROWS_OF_ITEM); ++row) {
            route(a, row, memory + worker * floats);
        }
    });
    return DONE;
}

}  // namespace CMODEL_ISA
