// Root-mean-square normalisation with an optional residual, and layer normalisation.

#include "../simd.h"
#include "../threads.h"

namespace CMODEL_ISA {
namespace {

constexpr int64_t ROWS_OF_ITEM = 16;

struct RMSNorm {
    int64_t dtype;         // of x, residual, y and total
    const void* x;         // [rows, size]: heads rows, head_stride elements apart, each x_stride elements
    int64_t x_stride, heads, head_stride;
    const void* residual;  // [rows, size], or null
    const void* weight;    // [size] in weight_dtype
    int64_t weight_dtype, rows, size;
    float eps;
    void *y, *total;       // [rows, size]; without a residual there is no total
};

struct LayerNorm {
    int64_t dtype;              // of x and y
    const void* x;              // [rows, size], rows x_stride elements apart
    int64_t x_stride;
    const void *weight, *bias;  // [size] in weight_dtype
    int64_t weight_dtype, rows, size;
    float eps;
    void* y;                    // [rows, size]
};

// y = x / sqrt(mean(x^2) + eps) * weight, where x is first raised by the residual, if any, and kept in total.
template <class T, class W>
void normalise(const T* x, const T* residual, const W* weight, int64_t size, float eps, T* y, T* total) {
    Vec squares = {};
    for (int64_t i = 0; i < size; i += LANES) {
        Vec v = load_some(x + i, size - i);
        if (residual != nullptr) {
            store_some(total + i, v + load_some(residual + i, size - i), size - i);
            v = load_some(total + i, size - i);
        }
        squares = fma(v, v, squares);
    }
    float scale = 1.f / __builtin_sqrtf(sum(squares) / size + eps);
    const T* from = residual == nullptr ? x : total;
    for (int64_t i = 0; i < size; i += LANES) {
        store_some(y + i, load_some(from + i, size - i) * scale * load_some(weight + i, size - i), size - i);
    }
}

// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias.
template <class T, class W>
void normalise_layer(const T* x, const W* weight, const W* bias, int64_t size, float eps, T* y) {
    Vec total = {}, squares = {};
    for (int64_t i = 0; i < size; i += LANES) total += load_some(x + i, size - i);
    float mean = sum(total) / size;
    for (int64_t i = 0; i < size; i += LANES) {
        Vec v = lanes_between(load_some(x + i, size - i) - mean, 0, size - i, 0.f);
        squares = fma(v, v, squares);
    }
    float scale = 1.f / __builtin_sqrtf(sum(squares) / size + eps);
    for (int64_t i = 0; i < size; i += LANES) {
        int64_t left = size - i;
        Vec v = (load_some(x + i, left) - mean) * scale;
        store_some(y + i, v * load_some(weight + i, left) + load_some(bias + i, left), left);
    }
}

// body(row) of each.
template <class Body>
void for_rows(int64_t rows, const Body& body) {
    cmodel::parallel_for(ceil_div(rows, ROWS_OF_ITEM), [&](int64_t item, int) {
        for (int64_t r = item * ROWS_OF_ITEM; r < least(rows, (item + 1) * ROWS_OF_ITEM); ++r) body(r);
    });
}

template <class T, class W>
int run(const RMSNorm& a) {
    for_rows(a.rows, [&](int64_t r) {
        const T* residual = a.residual == nullptr ? nullptr : (const T*)a.residual + r * a.size;
        const T* x = (const T*)a.x + r / a.heads * a.x_stride + r % a.heads * a.head_stride;
        normalise(x, residual, (const W*)a.weight, a.size, a.eps, (T*)a.y + r * a.size, (T*)a.total + r * a.size);
    });
    return DONE;
}

template <class T, class W>
int run(const LayerNorm& a) {
    for_rows(a.rows, [&](int64_t r) {
        normalise_layer((const T*)a.x + r * a.x_stride, (const W*)a.weight, (const W*)a.bias, a.size, a.eps,
                        (T*)a.y + r * a.size);
    });
    return DONE;
}

template <class Norm>
int run_typed(const Norm& a) {
    return with_type(a.dtype, [&](auto t) {
        return with_type(a.weight_dtype, [&](auto w) { return run<decltype(t), decltype(w)>(a); });
    });
}

}  // namespace

CMODEL_EXPORT(rms_norm)(const RMSNorm& a) { return run_typed(a); }

CMODEL_EXPORT(layer_norm)(const LayerNorm& a) { return run_typed(a); }

}  // namespace CMODEL_ISA
