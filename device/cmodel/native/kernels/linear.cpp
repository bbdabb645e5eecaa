// Linear layers over packed weights, and the gated MLP made of two of them.

#include "gemm.h"

namespace CMODEL_ISA {
namespace {

// Rows of one pass over the weights, and panels that are computed together: so many that a piece of the rows and the
// sums stay in the second cache.
constexpr int64_t CHUNK = 512, GROUP = 4;

// The numbers are those of device/cmodel/kernels.py.
enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2 };

struct PackLinear {
    int64_t dtype;
    const void* values;  // [out, in]
    int64_t out, in;
    void* packed;
};

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

struct Gate {
    int64_t dtype;         // of inner
    const float* gate_up;  // [rows, 2 * intermediate]
    int64_t rows, intermediate, activation;
    void* inner;           // [rows, intermediate]
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
    float bias[GROUP * PANEL] = {};
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

template <class Kind, class T>
int run(const Linear& a) {
    using X = typename Kind::X;
    using W = typename Kind::W;
    using Blocks = typename Kind::Blocks;
    int64_t steps = steps_of<Kind>(a.in), halves = a.gated ? 2 : 1, panels = ceil_div(a.out / halves, PANEL);
    Blocks most(least(a.rows, CHUNK));
    // A thread reads faster where the next panel follows; but with few items a thread may wait for the last one.
    int64_t items_of_thread = most.blocks == 1 ? 16 : 4;
    int64_t group = clamp(panels / (items_of_thread * thread_count()), 1, GROUP / halves);
    int64_t x_bytes = round_up(most.padded() * steps * Kind::X_STEP * int64_t{sizeof(X)}, 64);
    int64_t c_bytes = most.padded() * halves * group * PANEL * int64_t{sizeof(float)};
    char* memory = (char*)scratch(x_bytes + c_bytes * thread_count());
    if (memory == nullptr) return NO_MEMORY;
    X* packed = (X*)memory;

    for (int64_t first = 0; first < a.rows; first += CHUNK) {
        Blocks blocks(least(CHUNK, a.rows - first));
        parallel_for(blocks.blocks, [&](int64_t block, int) {
            int64_t row = blocks.first(block), count = least(blocks.count(block), blocks.rows - row);
            Kind::pack((const T*)a.x + (first + row) * a.x_stride, a.x_stride, count, a.in, steps,
                       packed + row * steps * Kind::X_STEP);
        });
        parallel_for(ceil_div(panels, group), [&](int64_t item, int worker) {
            float* c = (float*)(memory + x_bytes + c_bytes * worker);
            int64_t panel = item * group, count = least(group, panels - panel);
            const W* weights[GROUP];
            for (int64_t i = 0; i < count * halves; ++i) {
                weights[i] = (const W*)a.weight + (i % halves * panels + panel + i / halves) * steps * PANEL;
            }
            panel_products<Kind>(blocks, packed, weights, count * halves, steps, c);
            if (a.y_dtype == BFLOAT16) write<BFloat16>(a, c, blocks, first, panel, count);
            if (a.y_dtype == FLOAT16) write<Float16>(a, c, blocks, first, panel, count);
            if (a.y_dtype == FLOAT32) write<float>(a, c, blocks, first, panel, count);
        });
    }
    return DONE;
}

template <class T>
int gate(const Gate& a) {
    parallel_for(a.rows, [&](int64_t row, int) {
        const float *gate = a.gate_up + row * 2 * a.intermediate, *up = gate + a.intermediate;
        for (int64_t i = 0; i < a.intermediate; i += LANES) {
            int64_t count = a.intermediate - i;
            Vec product = activate(load_some(gate + i, count), (Activation)a.activation) * load_some(up + i, count);
            store_some((T*)a.inner + row * a.intermediate + i, product, count);
        }
    });
    return DONE;
}

template <class T>
void pack_panel(const T* w, int64_t out, int64_t in, int64_t panel, int64_t depth, int64_t group, T* to) {
    for (int64_t k = 0; k < depth; ++k) {
        for (int64_t j = 0; j < PANEL; ++j) {
            int64_t row = panel * PANEL + j;
            to[k / group * group * PANEL + j * group + k % group] = row < out && k < in ? w[row * in + k] : T{};
        }
    }
}

template <class T>
int pack(const PackLinear& a, int64_t depth, int64_t group) {
    parallel_for(ceil_div(a.out, PANEL), [&](int64_t panel, int) {
        T* to = (T*)a.packed + panel * depth * PANEL;
        pack_panel((const T*)a.values, a.out, a.in, panel, depth, group, to);
    });
    return DONE;
}

}  // namespace

// Pack a weight into the layout of gemm.h.
CMODEL_EXPORT(pack_linear)(const PackLinear& a) {
    switch (a.dtype) {
        case BFLOAT16: return pack<BFloat16>(a, round_up(a.in, 32), 2);
        case FLOAT16: return pack<Float16>(a, a.in, 1);
        case FLOAT32: return pack<float>(a, a.in, 1);
    }
    return BAD_ARGUMENT;
}

// y = x times the packed weight, plus bias.
CMODEL_EXPORT(linear)(const Linear& a) {
    if (a.gated != 0 && a.out % (2 * PANEL) != 0) return BAD_ARGUMENT;
    if (a.rows == 0) return DONE;
    switch (a.dtype) {
        case BFLOAT16: return run<BFloat16Product, BFloat16>(a);
        case FLOAT16: return run<Product<Float16>, Float16>(a);
        case FLOAT32: return run<Product<float>, float>(a);
    }
    return BAD_ARGUMENT;
}

// inner = activation(gate) * up, for halves that are not whole panels.
CMODEL_EXPORT(gate)(const Gate& a) {
    switch (a.dtype) {
        case BFLOAT16: return gate<BFloat16>(a);
        case FLOAT16: return gate<Float16>(a);
        case FLOAT32: return gate<float>(a);
    }
    return BAD_ARGUMENT;
}

}  // namespace CMODEL_ISA
