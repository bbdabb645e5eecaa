// The routed experts of a layer: the gated MLPs that each token chose, weighted and added.
//
// Rows are sorted by their expert once, so that the weights of an expert are read once, and those of experts without rows
// never. A row's result is written by its place among the choices and all are added in their order: neither the other
// rows nor the order of experts are in its bits.

#include "linear.h"

namespace CMODEL_ISA {
namespace {

// What is kept between the products, at most: rows of more tokens are computed in turns.
constexpr int64_t MOST_BYTES = 64 << 20;
constexpr int64_t COLUMNS_OF_ITEM = 1024;

struct FusedExperts {
    int64_t dtype;              // of x, shared, shared_logits and out
    const void* x;              // [rows, hidden], rows x_stride elements apart
    int64_t x_stride;
    int64_t rows, hidden, intermediate, experts, top_k;
    const int32_t* ids;         // [rows, top_k]
    const float* scales;        // [rows, top_k]
    Weight gate_up;             // of each expert two halves of whole panels
    Weight down;
    int64_t activation;
    const void* shared;         // [rows, hidden], added; or null
    const void* shared_logits;  // [rows], whose sigmoids scale shared; or null
    void* out;                  // [rows, hidden]
};

// The choices (a token's place among some, times top_k, plus its own) sorted by expert.
struct Sorted {
    int32_t *choices, *tokens;
    Job* jobs;
    int64_t count;  // of jobs
};

Sorted sort_by_expert(const FusedExperts& a, const int32_t* ids, int64_t tokens, int64_t* starts, Sorted to) {
    int64_t total = tokens * a.top_k, start = 0;
    std::memset(starts, 0, a.experts * sizeof *starts);
    for (int64_t i = 0; i < total; ++i) ++starts[ids[i]];
    to.count = 0;
    for (int64_t expert = 0; expert < a.experts; ++expert) {
        int64_t rows = starts[expert];
        if (rows > 0) to.jobs[to.count++] = {expert, start, rows};
        starts[expert] = start;
        start += rows;
    }
    for (int64_t i = 0; i < total; ++i) {
        int64_t at = starts[ids[i]]++;
        to.choices[at] = (int32_t)i;
        to.tokens[at] = (int32_t)(i / a.top_k);
    }
    return to;
}

// out = the sum of a token's results, each times its scale, plus the shared one's.
template <class T>
void add_results(const FusedExperts& a, int64_t token, int64_t column, const T* results, const float* scales) {
    int64_t end = least(a.hidden, column + COLUMNS_OF_ITEM);
    Vec share = set1(1.f);
    if (a.shared_logits != nullptr) share = sigmoid(set1(load_part((const T*)a.shared_logits + token, 1)[0]));
    for (int64_t i = column; i < end; i += LANES) {
        Vec total{};
        for (int64_t k = 0; k < a.top_k; ++k) total += scales[k] * load_some(results + k * a.hidden + i, end - i);
        if (a.shared != nullptr) total += share * load_some((const T*)a.shared + token * a.hidden + i, end - i);
        store_some((T*)a.out + token * a.hidden + i, total, end - i);
    }
}

// Memory that is cut into pieces, each aligned like it.
struct Pieces {
    char* next;
    template <class T>
    T* take(int64_t count) {
        T* piece = (T*)next;
        next += bytes<T>(count);
        return piece;
    }
    template <class T>
    static int64_t bytes(int64_t count) {
        return round_up(count * int64_t{sizeof(T)}, 64);
    }
};

template <class T>
int run_tokens(const FusedExperts& a, int64_t first, int64_t tokens) {
    int64_t total = tokens * a.top_k, active = least(total, a.experts);
    Pieces memory{(char*)scratch(2 * Pieces::bytes<int32_t>(total) + Pieces::bytes<int64_t>(a.experts) +
                                     Pieces::bytes<Job>(active) + Pieces::bytes<T>(total * a.intermediate) +
                                     Pieces::bytes<T>(total * a.hidden),
                                 1)};
    if (memory.next == nullptr) return NO_MEMORY;
    Sorted rows{memory.take<int32_t>(total), memory.take<int32_t>(total), memory.take<Job>(active), 0};
    rows = sort_by_expert(a, a.ids + first * a.top_k, tokens, memory.take<int64_t>(a.experts), rows);
    T *inner = memory.take<T>(total * a.intermediate), *results = memory.take<T>(total * a.hidden);

    const T* x = (const T*)a.x + first * a.x_stride;
    int status = multiply({a.dtype, x, a.x_stride, rows.tokens, a.gate_up, a.intermediate, 1, a.activation, nullptr,
                           inner, a.dtype, nullptr}, rows.jobs, rows.count);
    if (status != DONE) return status;
    status = multiply({a.dtype, inner, a.intermediate, nullptr, a.down, a.hidden, 0, 0, nullptr, results, a.dtype,
                       rows.choices}, rows.jobs, rows.count);
    if (status != DONE) return status;

    int64_t items = ceil_div(a.hidden, COLUMNS_OF_ITEM);
    parallel_for(tokens * items, [&](int64_t item, int) {
        int64_t token = item / items, choice = token * a.top_k;
        const float* scales = a.scales + (first * a.top_k + choice);
        add_results(a, first + token, item % items * COLUMNS_OF_ITEM, results + choice * a.hidden, scales);
    });
    return DONE;
}

template <class T>
int run(const FusedExperts& a) {
    int64_t row_bytes = a.top_k * (a.hidden + a.intermediate) * int64_t{sizeof(T)};
    int64_t turns = ceil_div(a.rows, most<int64_t>(1, MOST_BYTES / row_bytes));
    for (int64_t turn = 0; turn < turns; ++turn) {
        int64_t first = turn * a.rows / turns, end = (turn + 1) * a.rows / turns;
        if (int status = run_tokens<T>(a, first, end - first)) return status;
    }
    return DONE;
}

}  // namespace

// Each token's sum of scale * down(activation(gate) * up) over the experts that it chose, plus the shared one's result.
CMODEL_EXPORT(fused_experts)(const FusedExperts& a) {
    if (a.hidden < 1 || a.intermediate < 1 || a.top_k < 1) return BAD_ARGUMENT;
    for (int64_t i = 0; i < a.rows * a.top_k; ++i) {
        if (a.ids[i] < 0 || a.ids[i] >= a.experts) return BAD_ARGUMENT;
    }
    return with_type(a.dtype, [&](auto t) { return run<decltype(t)>(a); });
}

}  // namespace CMODEL_ISA
