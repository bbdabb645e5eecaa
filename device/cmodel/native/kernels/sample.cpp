// One token for each row of logits: device/sampling.py in C++, where the rules are documented. Choices are made in
// float64, without fused operations, so every instruction set makes the same.

#include "../simd.h"
#include "../threads.h"

namespace CMODEL_ISA {
namespace {

using cmodel::parallel_for;
using cmodel::scratch;
using cmodel::thread_count;

constexpr float INFINITE = __builtin_huge_valf();
constexpr int64_t SMALL = 64;  // so many largest are found by insertion, more by a search for the boundary

// As many bytes as Vec: half as many lanes.
constexpr int WIDE_LANES = LANES / 2;
typedef double Wide __attribute__((vector_size(LANES * 4)));
typedef uint64_t WideBits __attribute__((vector_size(LANES * 4)));
typedef float Narrow __attribute__((vector_size(LANES * 2)));

CMODEL_INLINE Wide widen(const float* from) {
    Narrow x;
    std::memcpy(&x, from, sizeof x);
    return __builtin_convertvector(x, Wide);
}

// e^x for x <= 0 with a relative error of 1e-14, 0 below -708.
CMODEL_INLINE Wide exp_wide(Wide x) {
    constexpr double MAGIC = 0x1.8p52;  // adding it rounds to an integer, which is then in the low bits
    Wide low = x < -708.0 ? Wide{} - 708.0 : x;
    Wide shifted = low * 1.4426950408889634 + MAGIC;
    Wide n = shifted - MAGIC;
    Wide r = (low - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    Wide y = Wide{} + 1.0 / 39916800;
    constexpr double INVERSES[] = {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
                                   1.0 / 24,      1.0 / 6,      0.5,         1.0,        1.0};
    for (double inverse : INVERSES) y = y * r + inverse;
    WideBits power = ((WideBits)shifted + 1023) << 52;
    return x < -708.0 ? Wide{} : y * (Wide)power;
}

// Parameters and results are those of SampleParams and SampleResult in device/sample_params.py.
struct Sample {
    int64_t dtype;
    const void* logits;  // [rows, vocab], rows stride elements apart
    int64_t stride, rows, vocab;
    const float* temperature;
    const int32_t* top_k;
    const float *top_p, *min_p;
    const int64_t *seeds, *positions;
    const float *repetition, *presence, *frequency;
    const int64_t *penalty_rows, *penalty_ids;
    const int32_t* output_counts;
    int64_t penalties;
    const int64_t *bias_rows, *bias_ids;
    const float* bias_values;
    int64_t biases;
    const uint32_t* mask;
    int64_t num_logprobs;  // -1 = report nothing
    int64_t* token_ids;
    float* logprobs;
    int64_t *ranks, *top_ids;
    float* top_logprobs;
};

// Tokens that may still be chosen, in the order of their ids.
struct Candidates {
    int32_t* ids;
    float* logits;
    double* weights;  // e^((logit - largest) / temperature)
    int64_t count;
};

uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

double uniform(uint64_t seed, uint64_t position) {
    constexpr uint64_t GAMMA = 0x9E3779B97F4A7C15;
    return (double)(mix(mix(seed + GAMMA) + position * GAMMA) >> 11) * 0x1p-53;
}

// Integers in the order of the floats; -0 counts as 0.
CMODEL_INLINE uint32_t order(float x) {
    x += 0.f;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits ^ ((bits >> 31) != 0 ? 0xffffffff : 0x80000000);
}

// Where the largest candidates end: with those above key, and so many of those at it.
struct Boundary {
    uint32_t key;
    int64_t ties;
};

// Taking candidates from the largest logit down, lower ids before higher among equals, keep each that the sum of the
// weights before it leaves below target. Without weights each weighs 1. A search by the digits of the logits' order.
Boundary find_boundary(const Candidates& c, const double* weights, double target) {
    constexpr int BITS = 11, BINS = 1 << BITS;
    uint32_t key = 0, fixed = 0;
    double above = 0;
    for (int shift = 21; shift >= 0; shift -= shift == 21 ? 11 : 10) {
        int bits = shift == 0 ? 10 : BITS;
        uint32_t digit = (1u << bits) - 1;
        double mass[BINS] = {};
        for (int64_t i = 0; i < c.count; ++i) {
            uint32_t at = order(c.logits[i]);
            if ((at & fixed) == key) mass[at >> shift & digit] += weights == nullptr ? 1 : weights[i];
        }
        int bin = (int)digit, lowest = -1;
        for (; bin >= 0; --bin) {
            if (mass[bin] == 0) continue;
            lowest = bin;
            if (above + mass[bin] >= target) break;
            above += mass[bin];
        }
        if (bin < 0) {
            // All weights together, as rounded, do not reach the target. The last that weighs anything ends the set.
            if (lowest < 0) return {0, c.count};
            bin = lowest;
            above -= mass[bin];
        }
        key |= (uint32_t)bin << shift;
        fixed |= digit << shift;
    }
    int64_t ties = 0;
    for (int64_t i = 0; i < c.count && above < target; ++i) {
        if (order(c.logits[i]) != key) continue;
        above += weights == nullptr ? 1 : weights[i];
        ++ties;
    }
    return {key, ties};
}

template <class Keep>
void filter(Candidates& c, const Keep& keep) {
    int64_t kept = 0;
    for (int64_t i = 0; i < c.count; ++i) {
        if (!keep(i)) continue;
        c.ids[kept] = c.ids[i];
        c.logits[kept] = c.logits[i];
        c.weights[kept++] = c.weights[i];
    }
    c.count = kept;
}

void cut(Candidates& c, const double* weights, double target) {
    Boundary boundary = find_boundary(c, weights, target);
    filter(c, [&](int64_t i) {
        uint32_t key = order(c.logits[i]);
        return key > boundary.key || (key == boundary.key && boundary.ties-- > 0);
    });
}

// The ids of the count largest logits in falling order, lower ids before higher among equals. For a small count.
void top(const float* logits, int64_t vocab, int64_t count, int64_t* ids) {
    int64_t filled = 0;
    for (int64_t start = 0; start < vocab; start += LANES) {
        int64_t end = least(vocab, start + LANES);
        if (filled == count && end - start == LANES && !any(load(logits + start) > logits[ids[count - 1]])) continue;
        for (int64_t i = start; i < end; ++i) {
            if (filled == count && !(logits[i] > logits[ids[count - 1]])) continue;
            int64_t at = filled < count ? filled++ : count - 1;
            for (; at > 0 && logits[ids[at - 1]] < logits[i]; --at) ids[at] = ids[at - 1];
            ids[at] = i;
        }
    }
}

// The candidates that top_k leaves.
void choose(const float* logits, int64_t vocab, int64_t top_k, Candidates& c) {
    if (top_k > 0 && top_k <= least(vocab, SMALL)) {
        int64_t best[SMALL];
        top(logits, vocab, top_k, best);
        for (c.count = 0; c.count < top_k; ++c.count) {
            int64_t at = c.count, id = best[c.count];
            for (; at > 0 && c.ids[at - 1] > id; --at) c.ids[at] = c.ids[at - 1];
            c.ids[at] = (int32_t)id;
        }
        for (int64_t i = 0; i < c.count; ++i) c.logits[i] = logits[c.ids[i]];
        return;
    }
    c.count = 0;
    for (int64_t i = 0; i < vocab; ++i) {
        c.ids[c.count] = (int32_t)i;
        c.logits[c.count] = logits[i];
        c.count += logits[i] > -INFINITE;
    }
    if (top_k > 0 && top_k < c.count) cut(c, nullptr, (double)top_k);
}

void weigh(Candidates& c, float peak, float temperature) {
    double inverse = 1 / (double)temperature;
    // Arrays are padded to whole vectors.
    for (int64_t i = 0; i < c.count; i += WIDE_LANES) {
        Wide weight = exp_wide((widen(c.logits + i) - (double)peak) * inverse);
        std::memcpy(c.weights + i, &weight, sizeof weight);
    }
}

// Draw one of the row's tokens. logits [vocab] are adjusted.
int64_t draw(const Sample& p, int64_t row, const float* logits, int64_t vocab, Candidates c) {
    int64_t first;
    top(logits, vocab, 1, &first);
    if (!(p.temperature[row] > 0)) return first;
    choose(logits, vocab, p.top_k[row], c);
    weigh(c, logits[first], p.temperature[row]);
    if (p.top_p[row] < 1) {
        double total = 0;
        for (int64_t i = 0; i < c.count; ++i) total += c.weights[i];
        cut(c, c.weights, p.top_p[row] * total);
    }
    if (p.min_p[row] > 0) filter(c, [&](int64_t i) { return c.weights[i] >= p.min_p[row]; });
    if (c.count == 0) return first;

    double running = 0;
    for (int64_t i = 0; i < c.count; ++i) c.weights[i] = running += c.weights[i];
    double target = uniform((uint64_t)p.seeds[row], (uint64_t)p.positions[row]) * running;
    for (int64_t i = 0; i < c.count; ++i) {
        // Rounding may lift the target to the sum itself, which the last token of any weight reaches first.
        if (c.weights[i] > target || c.weights[i] == running) return c.ids[i];
    }
    return first;
}

// The entries of each row: entry[start[row]] to entry[start[row + 1] - 1], in their given order.
struct ByRow {
    int64_t *start, *entry;

    static int64_t bytes(int64_t rows, int64_t count) { return (rows + 2 + count) * int64_t{sizeof(int64_t)}; }
    ByRow(void* memory, int64_t rows, const int64_t* row_of, int64_t count)
        : start((int64_t*)memory), entry(start + rows + 2) {
        std::memset(memory, 0, bytes(rows, count));
        for (int64_t i = 0; i < count; ++i) ++start[row_of[i] + 2];
        for (int64_t row = 2; row < rows + 2; ++row) start[row] += start[row - 1];
        for (int64_t i = 0; i < count; ++i) entry[start[row_of[i] + 1]++] = i;
    }
};

void adjust(const Sample& p, int64_t row, const ByRow& penalties, const ByRow& biases, float* logits, int64_t vocab) {
    if (p.mask != nullptr) {
        const uint32_t* words = p.mask + row * ceil_div(vocab, 32);
        for (int64_t start = 0; start < vocab; start += 32) {
            uint32_t word = words[start / 32];
            if (word == ~0u) continue;  // as all are in a row without a mask, beside one that has one
            int64_t end = least(vocab, start + 32);
            for (int64_t i = start; i < end; ++i) logits[i] = (word >> (i - start) & 1) != 0 ? logits[i] : -INFINITE;
        }
    }
    for (int64_t at = biases.start[row]; at < biases.start[row + 1]; ++at) {
        logits[p.bias_ids[biases.entry[at]]] += p.bias_values[biases.entry[at]];
    }
    for (int64_t at = penalties.start[row]; at < penalties.start[row + 1]; ++at) {
        int64_t i = penalties.entry[at];
        float x = logits[p.penalty_ids[i]];
        if (p.repetition != nullptr) x = x > 0 ? x / p.repetition[row] : x * p.repetition[row];
        if (p.frequency != nullptr) x -= p.frequency[row] * p.output_counts[i];
        if (p.presence != nullptr) x -= p.presence[row] * (p.output_counts[i] > 0);
        logits[p.penalty_ids[i]] = x;
    }
}

// Logprobs under the logits as the model gave them.
void report(const Sample& p, int64_t row, const float* logits) {
    int64_t vocab = p.vocab;
    int64_t first;
    top(logits, vocab, 1, &first);
    float peak = logits[first];
    Wide totals = {};
    for (int64_t i = 0; i < vocab; i += LANES) {
        float weights[LANES];
        store(weights, exp(load_some(logits + i, vocab - i) - peak));
        for (int64_t j = vocab - i; j < LANES; ++j) weights[j] = 0;
        totals += widen(weights) + widen(weights + WIDE_LANES);
    }
    double total = 0;
    for (int i = 0; i < WIDE_LANES; ++i) total += totals[i];
    double shift = peak + __builtin_log(total);
    float chosen = logits[p.token_ids[row]];
    p.logprobs[row] = (float)(chosen - shift);
    int64_t rank = 1;
    for (int64_t i = 0; i < vocab; ++i) rank += logits[i] > chosen;
    p.ranks[row] = rank;
    if (p.num_logprobs == 0) return;

    int64_t* ids = p.top_ids + row * p.num_logprobs;
    float* values = p.top_logprobs + row * p.num_logprobs;
    top(logits, vocab, p.num_logprobs, ids);
    for (int64_t i = 0; i < p.num_logprobs; ++i) values[i] = (float)(logits[ids[i]] - shift);
}

template <class T>
int run(const Sample& p) {
    int64_t rows = p.rows, vocab = p.vocab, padded = round_up(vocab, 16);
    int64_t bytes = padded * int64_t{sizeof(double) + 3 * sizeof(float) + sizeof(int32_t)};
    int64_t penalty_bytes = ByRow::bytes(rows, p.penalties), bias_bytes = ByRow::bytes(rows, p.biases);
    int64_t lists = round_up(penalty_bytes + bias_bytes, 64);
    char* memory = (char*)scratch(lists + bytes * thread_count());
    if (memory == nullptr) return NO_MEMORY;
    ByRow penalties(memory, rows, p.penalty_rows, p.penalties);
    ByRow biases(memory + penalty_bytes, rows, p.bias_rows, p.biases);
    parallel_for(rows, [&](int64_t row, int worker) {
        double* weights = (double*)(memory + lists + bytes * worker);
        float *raw = (float*)(weights + padded), *adjusted = raw + padded;
        Candidates candidates{(int32_t*)(adjusted + 2 * padded), adjusted + padded, weights, 0};
        const T* logits = (const T*)p.logits + row * p.stride;
        for (int64_t i = 0; i < vocab; i += LANES) store_some(raw + i, load_some(logits + i, vocab - i), vocab - i);
        std::memcpy(adjusted, raw, vocab * sizeof(float));
        adjust(p, row, penalties, biases, adjusted, vocab);
        p.token_ids[row] = draw(p, row, adjusted, vocab, candidates);
        if (p.num_logprobs >= 0) report(p, row, raw);
    });
    return DONE;
}

bool inside(const int64_t* rows, const int64_t* ids, int64_t count, int64_t row_limit, int64_t vocab) {
    for (int64_t i = 0; i < count; ++i) {
        if (rows[i] < 0 || rows[i] >= row_limit || ids[i] < 0 || ids[i] >= vocab) return false;
    }
    return true;
}

}  // namespace

CMODEL_EXPORT(sample)(const Sample& p) {
    if (!inside(p.penalty_rows, p.penalty_ids, p.penalties, p.rows, p.vocab)) return BAD_ARGUMENT;
    if (!inside(p.bias_rows, p.bias_ids, p.biases, p.rows, p.vocab) || p.num_logprobs > p.vocab) return BAD_ARGUMENT;
    return with_type(p.dtype, [&](auto t) { return run<decltype(t)>(p); });
}

}  // namespace CMODEL_ISA
