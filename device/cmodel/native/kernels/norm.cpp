// Root-mean-square normalisation with an optional residual.

#include "../simd.h"
#include "../threads.h"

namespace CMODEL_ISA {
namespace {

constexpr int64_t ROWS_OF_ITEM = 16;

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
int run(const T* x, int64_t stride, const T* residual, const W* weight, int64_t rows, int64_t size, float eps, T* y,
        T* total) {
    cmodel::parallel_for(ceil_div(rows, ROWS_OF_ITEM), [=](int64_t item, int) {
        for (int64_t r = item * ROWS_OF_ITEM; r < least(rows, (item + 1) * ROWS_OF_ITEM); ++r) {
            normalise(x + r * stride, residual == nullptr ? nullptr : residual + r * size, weight, size, eps,
                      y + r * size, total + r * size);
        }
    });
    return DONE;
}

template <class T>
int run(const void* x, int64_t stride, const void* residual, const void* weight, int weight_dtype, int64_t rows,
        int64_t size, float eps, void* y, void* total) {
    const T *input = (const T*)x, *raise = (const T*)residual;
    switch (weight_dtype) {
        case BFLOAT16:
            return run(input, stride, raise, (const BFloat16*)weight, rows, size, eps, (T*)y, (T*)total);
        case FLOAT16:
            return run(input, stride, raise, (const Float16*)weight, rows, size, eps, (T*)y, (T*)total);
        case FLOAT32:
            return run(input, stride, raise, (const float*)weight, rows, size, eps, (T*)y, (T*)total);
    }
    return BAD_ARGUMENT;
}

}  // namespace

// x [rows, size], rows stride elements apart; residual and total [rows, size], or both null; weight [size] of any type.
CMODEL_EXPORT(rms_norm)(int dtype, const void* x, int64_t stride, const void* residual, const void* weight,
                        int weight_dtype, int64_t rows, int64_t size, float eps, void* y, void* total) {
    switch (dtype) {
        case BFLOAT16: return run<BFloat16>(x, stride, residual, weight, weight_dtype, rows, size, eps, y, total);
        case FLOAT16: return run<Float16>(x, stride, residual, weight, weight_dtype, rows, size, eps, y, total);
        case FLOAT32: return run<float>(x, stride, residual, weight, weight_dtype, rows, size, eps, y, total);
    }
    return BAD_ARGUMENT;
}

}  // namespace CMODEL_ISA
