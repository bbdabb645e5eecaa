// Linear layers over packed weights, and the gated MLP made of two of them.

#include "gemm.h"

namespace CMODEL_ISA {
namespace {

// Rows of one pass over the weights: their float32 sums for a panel stay in the second cache.
constexpr int64_t CHUNK = 1024;

struct Linear {
    Dtype dtype;            // of x and of the weight
    const void* x;          // [rows, in], rows x_stride elements apart
    int64_t x_stride;
    int64_t rows, in, out;  // out: outputs of the weight
    const void* weight;
    const void* bias;       // [out] in x's dtype, or null
    void* y;                // [rows, out], or [rows, out / 2] when gated
    Dtype y_dtype;
    bool gated;             // y = silu(first half of the outputs) * second half; a half is whole panels
};

template <class T>
void read_bias(const T* bias, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i += LANES) store_some(to + i, load_some(bias + i, count - i), count - i);
}

// y[rows][count] = c + bias, or the gated form of c and the sums behind it.
template <class T>
void write_panel(const float* c, const float* up, const float* bias, int64_t rows, int64_t count, T* y, int64_t stride) {
    for (int64_t r = 0; r < rows; ++r, c += PANEL, y += stride) {
        for (int64_t i = 0; i < count; i += LANES) {
            Vec v = load(c + i);
            if (up != nullptr) {
                Vec limited = v < -88.f ? set1(-88.f) : v;
                v = v / (1 + exp(-limited)) * load(up + r * PANEL + i);
            } else {
                v = v + load(bias + i);
            }
            store_some(y + i, v, count - i);
        }
    }
}

template <class T, class Blocks>
void write_panel(const Linear& a, const float* c, const Blocks& blocks, int64_t first_row, int64_t panel) {
    float bias[PANEL] = {};
    int64_t width = a.gated ? a.out / 2 : a.out, column = panel * PANEL, count = least<int64_t>(PANEL, width - column);
    if (a.bias != nullptr) {
        if (a.dtype == BFLOAT16) read_bias((const BFloat16*)a.bias + column, count, bias);
        if (a.dtype == FLOAT16) read_bias((const Float16*)a.bias + column, count, bias);
        if (a.dtype == FLOAT32) read_bias((const float*)a.bias + column, count, bias);
    }
    write_panel(c, a.gated ? c + blocks.padded() * PANEL : nullptr, bias, blocks.rows, count,
                (T*)a.y + first_row * width + column, width);
}

template <class Kind, class T>
int run(const Linear& a) {
    using X = typename Kind::X;
    using W = typename Kind::W;
    using Blocks = typename Kind::Blocks;
    int64_t steps = steps_of<Kind>(a.in), halves = a.gated ? 2 : 1;
    int64_t panels = ceil_div(a.out / halves, PANEL), most_rows = Blocks(least(a.rows, CHUNK)).padded();
    int64_t x_bytes = round_up(most_rows * steps * Kind::X_STEP * int64_t{sizeof(X)}, 64);
    int64_t c_bytes = most_rows * halves * PANEL * int64_t{sizeof(float)};
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
        parallel_for(panels, [&](int64_t panel, int worker) {
            float* c = (float*)(memory + x_bytes + c_bytes * worker);
            for (int64_t half = 0; half < halves; ++half) {
                const W* w = (const W*)a.weight + (half * panels + panel) * steps * PANEL;
                panel_product<Kind>(blocks, packed, w, steps, c + half * blocks.padded() * PANEL);
            }
            if (a.y_dtype == BFLOAT16) write_panel<BFloat16>(a, c, blocks, first, panel);
            if (a.y_dtype == FLOAT16) write_panel<Float16>(a, c, blocks, first, panel);
            if (a.y_dtype == FLOAT32) write_panel<float>(a, c, blocks, first, panel);
        });
    }
    return DONE;
}

int run(const Linear& a) {
    if (a.rows == 0) return DONE;
    switch (a.dtype) {
        case BFLOAT16: return run<BFloat16Product, BFloat16>(a);
        case FLOAT16: return run<Product<Float16>, Float16>(a);
        case FLOAT32: return run<Product<float>, float>(a);
    }
    return BAD_ARGUMENT;
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
void pack(const T* w, int64_t out, int64_t in, int64_t depth, int64_t group, T* to) {
    parallel_for(ceil_div(out, PANEL), [=](int64_t panel, int) {
        pack_panel(w, out, in, panel, depth, group, to + panel * depth * PANEL);
    });
}

}  // namespace

// Pack a weight [out, in], contiguous, into the layout of gemm.h.
CMODEL_EXPORT(pack_linear)(int dtype, const void* w, int64_t out, int64_t in, void* packed) {
    switch (dtype) {
        case BFLOAT16: pack((const BFloat16*)w, out, in, round_up(in, 32), 2, (BFloat16*)packed); return DONE;
        case FLOAT16: pack((const Float16*)w, out, in, in, 1, (Float16*)packed); return DONE;
        case FLOAT32: pack((const float*)w, out, in, in, 1, (float*)packed); return DONE;
    }
    return BAD_ARGUMENT;
}

// y [rows, out] = x [rows, in] times the packed weight, plus bias unless it is null; y in y_dtype.
CMODEL_EXPORT(linear)(int dtype, const void* x, int64_t x_stride, int64_t rows, int64_t in, const void* weight,
                      int64_t out, const void* bias, void* y, int y_dtype) {
    return run({(Dtype)dtype, x, x_stride, rows, in, out, weight, bias, y, (Dtype)y_dtype, false});
}

// inner [rows, intermediate] = silu(gate) * up, where gate and up are the halves of x times the packed weight
// [2 * intermediate, in]. intermediate is a multiple of 32.
CMODEL_EXPORT(silu_gate)(int dtype, const void* x, int64_t x_stride, int64_t rows, int64_t in, const void* gate_up,
                         int64_t intermediate, void* inner) {
    if (intermediate % PANEL != 0) return BAD_ARGUMENT;
    return run({(Dtype)dtype, x, x_stride, rows, in, 2 * intermediate, gate_up, nullptr, inner, (Dtype)dtype, true});
}

}  // namespace CMODEL_ISA
