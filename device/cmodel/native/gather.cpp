// Channels of rows in another order.

#include <cstdint>
#include <cstring>

#include "threads.h"

namespace {

constexpr int64_t ROWS_OF_ITEM = 16;

struct Gather {
    const char* x;  // [rows], x_stride elements apart
    int64_t x_stride, rows, element_bytes;
    const int32_t* order;  // [columns]: a channel of x, or -1
    int64_t columns;
    char* out;  // [rows, columns]; 0 where there is no channel
};

template <class T>
void gather(const Gather& a, int64_t row) {
    const T* x = (const T*)a.x + row * a.x_stride;
    T* out = (T*)a.out + row * a.columns;
    for (int64_t i = 0; i < a.columns; ++i) out[i] = a.order[i] < 0 ? T{0} : x[a.order[i]];
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int cmodel_gather(const Gather& a) {
    cmodel::parallel_for((a.rows + ROWS_OF_ITEM - 1) / ROWS_OF_ITEM, [&](int64_t item, int) {
        for (int64_t row = item * ROWS_OF_ITEM; row < a.rows && row < (item + 1) * ROWS_OF_ITEM; ++row) {
            if (a.element_bytes == 2) {
                gather<uint16_t>(a, row);
            } else {
                gather<uint32_t>(a, row);
            }
        }
    });
    return 0;
}
