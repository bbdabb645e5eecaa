// Linear layers, products with dense packed weights, and the gate of an MLP.

#include "linear.h"

namespace CMODEL_ISA {
namespace {

struct PackLinear {
    int64_t dtype;
    const void* values;  // [out, in]
    int64_t out, in;
    void* packed;
};

struct Linear {
    int64_t dtype;     // of x
    const void* x;     // [rows, channels], rows x_stride elements apart
    int64_t x_stride;
    int64_t rows, out;
    Weight weight;     // dense ones in x's dtype or float32
    const void* bias;  // [out] in x's dtype, or null; added before the activation
    void* y;           // [rows, out], or [rows, out / 2] when gated
    int64_t y_dtype;
    int64_t gated;     // y = activation(first half of the outputs) * second half; a half is whole panels
    int64_t activation;
};

struct Gate {
    int64_t dtype;         // of inner
    const float* gate_up;  // [rows, 2 * intermediate]
    int64_t rows, intermediate, activation;
    void* inner;           // [rows, intermediate]
};

template <class Kind>
struct DenseWeights {
    using W = typename Kind::W;
    static constexpr int64_t FEW = GROUP;
    const W* weight;
    int64_t in, steps, row_bytes = 0, worker_bytes = 0;

    template <class T>
    void pack(const T* x, int64_t stride, int64_t count, typename Kind::X* to, char*) const {
        Kind::pack(x, stride, count, in, steps, to);
    }

    void multiply(const typename Kind::Blocks& blocks, const typename Kind::X* x, const char*, const int64_t* panels,
                  int64_t count, float* c, char*) const {
        const W* weights[MOST_PANELS];
        for (int64_t i = 0; i < count; ++i) weights[i] = weight + panels[i] * steps * PANEL;
        panel_products<Kind>(blocks, x, weights, count, steps, c);
    }
};

template <class Kind, class T>
int run_dense(const Multiplication& a, const Job* jobs, int64_t count) {
    DenseWeights<Kind> weights{(const typename Kind::W*)a.weight.values, a.weight.in, steps_of<Kind>(a.weight.in)};
    return run<Kind, T>(a, weights, jobs, count);
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

// A panel's inputs lie in groups of GROUP. A cache line of each output's row is read at a time.
template <int64_t GROUP, class T>
void pack_panel(const T* w, int64_t out, int64_t in, int64_t panel, int64_t depth, T* to) {
    constexpr int64_t LINE = 64 / sizeof(T);
    for (int64_t start = 0; start < depth; start += LINE) {
        int64_t end = least(depth, start + LINE);
        for (int64_t j = 0; j < PANEL; ++j) {
            int64_t row = panel * PANEL + j, known = row < out ? least(end, in) : start, k = start;
            const T* from = w + row * in;
            T* place = to + j * GROUP;
            for (; k + GROUP <= known; k += GROUP) std::memcpy(place + k * PANEL, from + k, GROUP * sizeof(T));
            for (; k < end; ++k) place[k / GROUP * GROUP * PANEL + k % GROUP] = k < known ? from[k] : T{};
        }
    }
}

template <int64_t GROUP, class T>
int pack(const PackLinear& a, int64_t depth) {
    parallel_for(ceil_div(a.out, PANEL), [&](int64_t panel, int) {
        pack_panel<GROUP>((const T*)a.values, a.out, a.in, panel, depth, (T*)a.packed + panel * depth * PANEL);
    });
    return DONE;
}

}  // namespace

int multiply_dense(const Multiplication& a, const Job* jobs, int64_t count) {
    if (a.weight.type == FLOAT32) {
        return with_type(a.dtype, [&](auto t) { return run_dense<Product<float>, decltype(t)>(a, jobs, count); });
    }
    if (a.weight.type != a.dtype) return BAD_ARGUMENT;
    if (a.dtype == FLOAT16) return run_dense<Product<Float16>, Float16>(a, jobs, count);
    return run_dense<BFloat16Product, BFloat16>(a, jobs, count);
}

// Pack a weight into the layout of gemm.h.
CMODEL_EXPORT(pack_linear)(const PackLinear& a) {
    switch (a.dtype) {
        case BFLOAT16: return pack<2, BFloat16>(a, round_up(a.in, 32));
        case FLOAT16: return pack<1, Float16>(a, a.in);
        case FLOAT32: return pack<1, float>(a, a.in);
    }
    return BAD_ARGUMENT;
}

// y = activation(x times the packed weight, plus bias).
CMODEL_EXPORT(linear)(const Linear& a) {
    if (a.gated != 0 && a.out % (2 * PANEL) != 0) return BAD_ARGUMENT;
    if (a.rows == 0) return DONE;
    int64_t width = a.gated ? a.out / 2 : a.out;
    Job all{0, 0, a.rows};
    return multiply({a.dtype, a.x, a.x_stride, nullptr, a.weight, width, a.gated, a.activation, a.bias, a.y, a.y_dtype,
                     nullptr}, &all, 1);
}

// inner = activation(gate) * up, for halves that are not whole panels.
CMODEL_EXPORT(gate)(const Gate& a) {
    return with_type(a.dtype, [&](auto t) { return gate<decltype(t)>(a); });
}

}  // namespace CMODEL_ISA
