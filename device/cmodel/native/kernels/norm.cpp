// Root-mean-square normalisation with an optional residual.

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

template <class T, class W>
int run(const RMSNorm& a) {
    cmodel::parallel_for(ceil_div(a.rows, ROWS_OF_ITEM), [&](int64_t item, int) {
        for (int64_t r = item * ROWS_OF_ITEM; r < least(a.rows, (item + 1) * ROWS_OF_ITEM); ++r) {
            const T* residual = a.residual == nullptr ? nullptr : (const T*)a.residual + r * a.size;
            const T* x = (const T*)a.x + r / a.heads * a.x_stride + r % a.heads * a.head_stride;
            normalise(x, residual, (const W*)a.weight, a.size, a.eps,
                      (T*)a.y + r * a.size, (T*)a.total + r * a.size);
        }
    });
    return DONE;
}

}  // namespace

CMODEL_EXPORT(rms_norm)(const RMSNorm& a) {
    return with_type(a.dtype, [&](auto t) {
        return with_type(a.weight_dtype, [&](auto w) { return run<decltype(t), decltype(w)>(a); });
    });
}

}  // namespace CMODEL_ISA
