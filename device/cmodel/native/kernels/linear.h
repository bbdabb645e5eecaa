// Products of rows with packed weights of any kind, and what becomes of their sums.
#pragma once

#include "gemm.h"

namespace CMODEL_ISA {

// What a packed weight consists of: one of Dtype in the layout of gemm.h, or codes in that of codes.h. The numbers are
// those of device/cmodel/weights.py.
enum WeightType { INT4 = 3, FLOAT8 = 4, INT8 = 5 };

// How rows meet whole numbers: as they are, or rounded to int8 in blocks of 32 inputs or all with one scale. The numbers,
// too, are those of device/cmodel/weights.py.
enum Activations { AS_FLOATS = 0, IN_BLOCKS = 1, IN_ROWS = 2 };

// A packed weight, or several of one shape whose panels stand one after the other.
struct Weight {
    const void* values;
    int64_t type;
    int64_t activations;
    int64_t in;              // inputs of a packed row
    const int32_t* order;    // [weights][in]: the channel of x that each input multiplies, or -1; null: as they come
    int64_t group;           // of codes: inputs of a group, a multiple of 32
    const void* scales;      // [panels][groups][32]
    int64_t scales_dtype;
    const int8_t* shifts;    // the zero point minus 8 or 128, [panels][groups][32]; null if all are 0
};

// The numbers are those of device/cmodel/kernels.py.
enum Activation { NONE = 0, SILU = 1, GELU = 2, GELU_TANH = 3, QUICK_GELU = 4 };

// Rows of x times packed weights.
struct Multiplication {
    int64_t dtype;           // of x and of the bias
    const void* x;           // rows x_stride elements apart
    int64_t x_stride;
    const int32_t* x_rows;   // where each row is in x; null: in order
    Weight weight;
    int64_t width;           // elements of a row of y
    int64_t gated;           // a weight is two halves of whole panels: y = activation(the first's product) * the second's
    int64_t activation;
    const void* bias;        // of each output of the weight, added before the activation; or null
    void* y;
    int64_t y_dtype;
    const int32_t* y_rows;   // where each row goes in y; null: in order
};

// Rows [first, first + rows), at least one, that are multiplied by the weight of this number.
struct Job {
    int64_t weight, first, rows;
};

// Every job's rows. An output of y is the same whatever is computed with it.
int multiply_dense(const Multiplication& a, const Job* jobs, int64_t count);      // linear.cpp
int multiply_quantized(const Multiplication& a, const Job* jobs, int64_t count);  // quantized.cpp
int multiply_rounded(const Multiplication& a, const Job* jobs, int64_t count);    // int8.cpp

inline int multiply(const Multiplication& a, const Job* jobs, int64_t count) {
    if (a.weight.type < INT4) return multiply_dense(a, jobs, count);
    return a.weight.activations == AS_FLOATS ? multiply_quantized(a, jobs, count) : multiply_rounded(a, jobs, count);
}

namespace {

// Rows of one pass over the weights, and panels that are computed together: so many that a piece of the rows and the
// sums stay in the second cache. One block of rows may take more panels of weights that are small.
constexpr int64_t CHUNK = 512, GROUP = 4, MOST_PANELS = 8;

// No block has more rows.
constexpr int64_t BLOCK_ROWS = 32;

CMODEL_INLINE Vec sigmoid(Vec x) {
    Vec low = x < -88.f ? set1(-88.f) : x;
    return 1 / (1 + exp(-low));
}

// The complementary error function for x >= 0 (Abramowitz and Stegun, 7.1.26).
CMODEL_INLINE Vec erfc(Vec x) {
    Vec t = 1 / fma(x, set1(0.3275911f), set1(1.f));
    Vec y = set1(1.061405429f);
    y = fma(y, t, set1(-1.453152027f));
    y = fma(y, t, set1(1.421413741f));
    y = fma(y, t, set1(-0.284496736f));
    y = fma(y, t, set1(0.254829592f));
    return y * t * exp(-x * x);
}

CMODEL_INLINE Vec activate(Vec x, Activation activation) {
    if (activation == NONE) return x;
    if (activation == SILU) return x * sigmoid(x);
    if (activation == QUICK_GELU) return x * sigmoid(1.702f * x);
    if (activation == GELU_TANH) return x * sigmoid(1.5957691216f * fma(x * x * x, set1(0.044715f), x));
    Vec magnitude = x < 0.f ? -x : x;
    Vec beyond = 0.5f * x * erfc(magnitude * 0.70710678f);
    return x < 0.f ? beyond : x - beyond;
}

// The bias of some outputs as float32; without one, `to` stays as it is.
inline void read_bias(const Multiplication& a, int64_t first, int64_t count, float* to) {
    if (a.bias == nullptr) return;
    with_type(a.dtype, [&](auto t) {
        convert((const decltype(t)*)a.bias + first, to, count);
        return DONE;
    });
}

// Finish the sums of some panels, [panel][half, when gated][padded rows][32], row by row.
template <class T, class Blocks>
void write(const Multiplication& a, const float* c, const Blocks& blocks, int64_t first_row, int64_t panel,
           int64_t panels) {
    int64_t halves = a.gated ? 2 : 1, size = blocks.padded() * PANEL;
    int64_t column = panel * PANEL, count = least(panels * PANEL, a.width - column);
    float bias[MOST_PANELS * PANEL] = {}, *up_bias = bias + MOST_PANELS * PANEL / 2;
    read_bias(a, column, count, bias);
    if (a.gated) read_bias(a, a.width + column, count, up_bias);
    for (int64_t r = 0; r < blocks.rows; ++r, c += PANEL) {
        int64_t row = a.y_rows == nullptr ? first_row + r : a.y_rows[first_row + r];
        T* y = (T*)a.y + row * a.width + column;
        for (int64_t i = 0; i < count; i += LANES) {
            const float* sums = c + i / PANEL * halves * size + i % PANEL;
            Vec v = activate(load(sums) + load(bias + i), (Activation)a.activation);
            if (a.gated) v *= load(sums + size) + load(up_bias + i);
            store_some(y + i, v, count - i);
        }
    }
}

// Some rows of x with the channels that a weight takes: where they are, or a copy in `to`. stride: elements between them.
template <class T>
const T* find_rows(const Multiplication& a, int64_t weight, int64_t first, int64_t count, T* to, int64_t& stride) {
    auto row = [&](int64_t r) { return (const T*)a.x + (a.x_rows == nullptr ? r : a.x_rows[r]) * a.x_stride; };
    stride = a.x_stride;
    if (a.weight.order == nullptr && (a.x_rows == nullptr || count == 1)) return row(first);
    stride = a.weight.in;
    for (int64_t r = 0; r < count; ++r) {
        const T* from = row(first + r);
        T* copy = to + r * stride;
        if (a.weight.order == nullptr) {
            std::memcpy(copy, from, stride * sizeof(T));
        } else {
            const int32_t* order = a.weight.order + weight * stride;
            for (int64_t i = 0; i < stride; ++i) copy[i] = order[i] < 0 ? T{} : from[order[i]];
        }
    }
    return to;
}

// Parts of jobs that are computed together, of at most CHUNK padded rows.
template <class Blocks>
struct Wave {
    struct Part {
        int64_t weight, first;
        Blocks blocks;
        int64_t padded, block;  // padded rows and blocks of the parts before it
    };
    static constexpr int64_t MOST_PARTS = 256;

    Part part[MOST_PARTS];
    int64_t parts, padded, blocks, largest;  // largest: the most padded rows of a part
    bool single;                             // every part is one block

    // Take what comes at `row` of `job`, and move both on.
    void take(const Job* jobs, int64_t count, int64_t& job, int64_t& row) {
        parts = padded = blocks = largest = 0;
        single = true;
        while (job < count && parts < MOST_PARTS) {
            Blocks next(least(CHUNK, jobs[job].rows - row));
            if (parts > 0 && padded + next.padded() > CHUNK) return;
            part[parts++] = {jobs[job].weight, jobs[job].first + row, next, padded, blocks};
            padded += next.padded();
            blocks += next.blocks;
            largest = most(largest, next.padded());
            single = single && next.blocks == 1;
            row += next.rows;
            if (row == jobs[job].rows) ++job, row = 0;
        }
    }

    const Part& with_block(int64_t block) const {
        int64_t i = 0;
        while (i + 1 < parts && part[i + 1].block <= block) ++i;
        return part[i];
    }
};

// So many panels, at most `most`, that the threads' shares of those of all parts differ least.
inline int64_t even_group(int64_t parts, int64_t panels, int64_t most) {
    int64_t best = 1, least_work = ceil_div(parts * panels, thread_count());
    for (int64_t group = 2; group <= most; ++group) {
        int64_t work = ceil_div(parts * ceil_div(panels, group), thread_count()) * group;
        if (work <= least_work) best = group, least_work = work;
    }
    return best;
}

// The products of a wave with weights of any kind. They know:
//   FEW               panels that one block of rows takes together
//   steps             steps over k of a packed row, padding included
//   row_bytes         what they keep of a row beside its packed inputs
//   worker_bytes      memory for each thread
//   pack(...)         puts one block's rows into place, and finds what is kept of them
//   multiply(...)     C[panel][padded rows][32] of some panels: the packed rows times each of them
template <class Kind, class T, class Weights>
int run_wave(const Multiplication& a, const Weights& weights, const Wave<typename Kind::Blocks>& wave) {
    using X = typename Kind::X;
    int64_t steps = weights.steps, halves = a.gated ? 2 : 1, panels = ceil_div(a.width, PANEL);
    int64_t together = wave.single ? Weights::FEW : GROUP;
    // A thread reads faster where the next panel follows; but with few items a thread may wait for the last one.
    int64_t items_of_thread = wave.single ? 16 : 4;
    int64_t few = clamp(wave.parts * panels / (items_of_thread * thread_count()), 1, together / halves);
    int64_t group = even_group(wave.parts, panels, few), items = ceil_div(panels, group);
    int64_t x_bytes = round_up(wave.padded * steps * Kind::X_STEP * int64_t{sizeof(X)}, 64);
    int64_t kept_bytes = round_up(wave.padded * weights.row_bytes, 64);
    int64_t c_bytes = wave.largest * halves * group * PANEL * int64_t{sizeof(float)};
    bool copies = a.x_rows != nullptr || a.weight.order != nullptr;
    int64_t copy_bytes = copies ? BLOCK_ROWS * a.weight.in * int64_t{sizeof(T)} : 0;
    int64_t worker_bytes = round_up(most(c_bytes + weights.worker_bytes, copy_bytes), 64);
    char* memory = (char*)scratch(x_bytes + kept_bytes + worker_bytes * thread_count());
    if (memory == nullptr) return NO_MEMORY;
    X* packed = (X*)memory;
    char *kept = memory + x_bytes, *workers = kept + kept_bytes;

    parallel_for(wave.blocks, [&](int64_t item, int worker) {
        const auto& part = wave.with_block(item);
        int64_t row = part.blocks.first(item - part.block), at = part.padded + row, stride;
        int64_t count = least(part.blocks.count(item - part.block), part.blocks.rows - row);
        T* copy = (T*)(workers + worker_bytes * worker);
        const T* x = find_rows(a, part.weight, part.first + row, count, copy, stride);
        weights.pack(x, stride, count, packed + at * steps * Kind::X_STEP, kept + at * weights.row_bytes);
    });
    parallel_for(wave.parts * items, [&](int64_t item, int worker) {
        const auto& part = wave.part[item / items];
        float* c = (float*)(workers + worker_bytes * worker);
        int64_t panel = item % items * group, count = least(group, panels - panel), each[MOST_PANELS];
        for (int64_t i = 0; i < count * halves; ++i) {
            each[i] = (part.weight * halves + i % halves) * panels + panel + i / halves;
        }
        weights.multiply(part.blocks, packed + part.padded * steps * Kind::X_STEP,
                         kept + part.padded * weights.row_bytes, each, count * halves, c, (char*)c + c_bytes);
        if (a.y_dtype == BFLOAT16) write<BFloat16>(a, c, part.blocks, part.first, panel, count);
        if (a.y_dtype == FLOAT16) write<Float16>(a, c, part.blocks, part.first, panel, count);
        if (a.y_dtype == FLOAT32) write<float>(a, c, part.blocks, part.first, panel, count);
    });
    return DONE;
}

template <class Kind, class T, class Weights>
int run(const Multiplication& a, const Weights& weights, const Job* jobs, int64_t count) {
    Wave<typename Kind::Blocks> wave;
    for (int64_t job = 0, row = 0; job < count;) {
        wave.take(jobs, count, job, row);
        if (int status = run_wave<Kind, T>(a, weights, wave)) return status;
    }
    return DONE;
}

}  // namespace
}  // namespace CMODEL_ISA
