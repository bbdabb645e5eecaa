// The linear layer and the gate of an MLP around a product with packed weights of any kind.
#pragma once

#include "gemm.h"

namespace CMODEL_ISA {
namespace {

// Rows of one pass over the weights, and panels that are computed together: so many that a piece of the rows and the
// sums stay in the second cache. One block of rows may take more panels of weights that are small.
constexpr int64_t CHUNK = 512, GROUP = 4, MOST_PANELS = 8;

// The numbers are those of device/cmodel/kernels.py.
enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2 };

struct Linear {
    int64_t dtype;          // of x and of the weight
    const void* x;          // [rows, in], rows x_stride elements apart
    int64_t x_stride;
    int64_t rows, in, out;  // out: outputs of the weight
    const void* weight;
    const void* bias;       // [out] in x's dtype, or null
    void* y;                // [rows, out], or [rows, out / 2] when gated
    int64_t y_dtype;
    int64_t gated;          // y = activation(first half of the outputs) * second half; a half is whole panels
    int64_t activation;
};

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
    if (activation == SILU) return x * sigmoid(x);
    if (activation == GELU_TANH) return x * sigmoid(1.5957691216f * fma(x * x * x, set1(0.044715f), x));
    Vec magnitude = x < 0.f ? -x : x;
    Vec beyond = 0.5f * x * erfc(magnitude * 0.70710678f);
    return x < 0.f ? beyond : x - beyond;
}

// Finish the sums of some panels, [panel][half, when gated][padded rows][32], row by row.
template <class T, class Blocks>
void write(const Linear& a, const float* c, const Blocks& blocks, int64_t first_row, int64_t panel, int64_t panels) {
    int64_t halves = a.gated ? 2 : 1, width = a.out / halves, size = blocks.padded() * PANEL;
    int64_t column = panel * PANEL, count = least(panels * PANEL, width - column);
    float bias[MOST_PANELS * PANEL] = {};
    if (a.bias != nullptr) {
        if (a.dtype == BFLOAT16) convert((const BFloat16*)a.bias + column, bias, count);
        if (a.dtype == FLOAT16) convert((const Float16*)a.bias + column, bias, count);
        if (a.dtype == FLOAT32) convert((const float*)a.bias + column, bias, count);
    }
    for (int64_t r = 0; r < blocks.rows; ++r, c += PANEL) {
        T* y = (T*)a.y + (first_row + r) * width + column;
        for (int64_t i = 0; i < count; i += LANES) {
            const float* sums = c + i / PANEL * halves * size + i % PANEL;
            Vec v = load(sums);
            v = a.gated ? activate(v, (Activation)a.activation) * load(sums + size) : v + load(bias + i);
            store_some(y + i, v, count - i);
        }
    }
}

// So many panels, at most `most`, that the threads' shares of them differ least.
inline int64_t even_group(int64_t panels, int64_t most) {
    int64_t best = 1, least_work = ceil_div(panels, thread_count());
    for (int64_t group = 2; group <= most; ++group) {
        int64_t work = ceil_div(ceil_div(panels, group), thread_count()) * group;
        if (work <= least_work) best = group, least_work = work;
    }
    return best;
}

// The product with weights of any kind. They know:
//   FEW               panels that one block of rows takes together
//   steps             steps over k of a packed row, padding included
//   row_bytes         what they keep of a row beside its packed inputs
//   worker_bytes      memory for each thread
//   prepare(...)      finds what is kept of some rows
//   multiply(...)     C[panel][padded rows][32] of some panels: the packed rows times each of them
template <class Kind, class T, class Weights>
int run(const Linear& a, const Weights& weights) {
    using X = typename Kind::X;
    using Blocks = typename Kind::Blocks;
    int64_t steps = weights.steps, halves = a.gated ? 2 : 1, panels = ceil_div(a.out / halves, PANEL);
    Blocks largest(least(a.rows, CHUNK));
    int64_t together = largest.blocks == 1 ? Weights::FEW : GROUP;
    // A thread reads faster where the next panel follows; but with few items a thread may wait for the last one.
    int64_t items_of_thread = largest.blocks == 1 ? 16 : 4;
    int64_t group = even_group(panels, clamp(panels / (items_of_thread * thread_count()), 1, together / halves));
    int64_t x_bytes = round_up(largest.padded() * steps * Kind::X_STEP * int64_t{sizeof(X)}, 64);
    int64_t kept_bytes = round_up(largest.padded() * weights.row_bytes, 64);
    int64_t c_bytes = largest.padded() * halves * group * PANEL * int64_t{sizeof(float)};
    int64_t worker_bytes = c_bytes + weights.worker_bytes;
    char* memory = (char*)scratch(x_bytes + kept_bytes + worker_bytes * thread_count());
    if (memory == nullptr) return NO_MEMORY;
    X* packed = (X*)memory;
    char *kept = memory + x_bytes, *workers = kept + kept_bytes;

    for (int64_t first = 0; first < a.rows; first += CHUNK) {
        Blocks blocks(least(CHUNK, a.rows - first));
        parallel_for(blocks.blocks, [&](int64_t block, int) {
            int64_t row = blocks.first(block), count = least(blocks.count(block), blocks.rows - row);
            const T* x = (const T*)a.x + (first + row) * a.x_stride;
            Kind::pack(x, a.x_stride, count, a.in, steps, packed + row * steps * Kind::X_STEP);
            weights.prepare(x, a.x_stride, count, kept + row * weights.row_bytes);
        });
        parallel_for(ceil_div(panels, group), [&](int64_t item, int worker) {
            float* c = (float*)(workers + worker_bytes * worker);
            int64_t panel = item * group, count = least(group, panels - panel), each[MOST_PANELS];
            for (int64_t i = 0; i < count * halves; ++i) each[i] = i % halves * panels + panel + i / halves;
            weights.multiply(blocks, packed, kept, each, count * halves, c, (char*)c + c_bytes);
            if (a.y_dtype == BFLOAT16) write<BFloat16>(a, c, blocks, first, panel, count);
            if (a.y_dtype == FLOAT16) write<Float16>(a, c, blocks, first, panel, count);
            if (a.y_dtype == FLOAT32) write<float>(a, c, blocks, first, panel, count);
        });
    }
    return DONE;
}

}  // namespace
}  // namespace CMODEL_ISA
