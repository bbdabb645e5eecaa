// Rows of packed weights of 4 and 8 bits, as an embedding reads them.
//
// A value is what codes.h says, less its shift, times its scale: float32, rounded once to the type of the rows.

#include "codes.h"
#include "linear.h"

namespace CMODEL_ISA {
namespace {

struct CodeRows {
    const int32_t* ids;  // [rows]
    int64_t rows, outputs;
    Weight weight;
    int64_t first;    // the id of the weight's first output
    int64_t partial;  // whether ids beyond its outputs are allowed; their rows are 0
    int64_t dtype;
    void* out;        // [rows][width]
    int64_t width;
};

constexpr int64_t ROWS_OF_ITEM = 16, MOST_GROUP = 128;

// The values of `count` inputs of one output, whose words stand a panel's width apart.
template <class Code>
void unpack_row(const uint32_t* words, int64_t count, float* to) {
    for (int64_t k = 0; k < count; k += LANES * Code::INPUTS) {
        int64_t here = least<int64_t>(LANES, ceil_div(count - k, Code::INPUTS));
        Bits bits{};
        for (int64_t lane = 0; lane < here; ++lane) bits[lane] = words[(k / Code::INPUTS + lane) * PANEL];
        for (int i = 0; i < Code::INPUTS; ++i) {
            Vec values = Code::value(bits, i);
            for (int64_t lane = 0; lane < here; ++lane) to[k + lane * Code::INPUTS + i] = values[lane];
        }
    }
}

float scale_at(const Weight& a, int64_t at) {
    float scale = 0;
    with_type(a.scales_dtype, [&](auto t) {
        convert((const decltype(t)*)a.scales + at, &scale, 1);
        return DONE;
    });
    return scale;
}

template <class Code, class T>
void read_row(const CodeRows& a, int64_t row, T* out) {
    const Weight& w = a.weight;
    int64_t panel = row / PANEL, depth = round_up(w.in, 32), groups = ceil_div(w.in, w.group);
    const uint32_t* words = (const uint32_t*)w.values + panel * depth / Code::INPUTS * PANEL + row % PANEL;
    for (int64_t group = 0; group < groups; ++group) {
        float values[MOST_GROUP];
        T rounded[MOST_GROUP];
        int64_t start = group * w.group, count = least(w.group, w.in - start);
        int64_t at = (panel * groups + group) * PANEL + row % PANEL;
        unpack_row<Code>(words + start / Code::INPUTS * PANEL, count, values);
        float scale = scale_at(w, at), shift = w.shifts == nullptr ? 0 : w.shifts[at];
        for (int64_t k = 0; k < count; k += LANES) {
            Vec v = (load_some(values + k, count - k) - shift) * scale;
            store_some(rounded + k, v, count - k);
        }
        if (w.order == nullptr) {
            std::memcpy(out + start, rounded, count * sizeof(T));
        } else {
            for (int64_t k = 0; k < count; ++k) {
                if (w.order[start + k] >= 0) out[w.order[start + k]] = rounded[k];
            }
        }
    }
}

template <class Code>
int read_rows(const CodeRows& a) {
    return with_type(a.dtype, [&](auto t) {
        using T = decltype(t);
        parallel_for(ceil_div(a.rows, ROWS_OF_ITEM), [&](int64_t item, int) {
            for (int64_t r = item * ROWS_OF_ITEM; r < least(a.rows, (item + 1) * ROWS_OF_ITEM); ++r) {
                T* out = (T*)a.out + r * a.width;
                int64_t row = a.ids[r] - a.first;
                if (row >= 0 && row < a.outputs) {
                    read_row<Code>(a, row, out);
                } else {
                    std::memset(out, 0, a.width * sizeof(T));
                }
            }
        });
        return DONE;
    });
}

}  // namespace

CMODEL_EXPORT(code_rows)(const CodeRows& a) {
    if (a.weight.group <= 0 || a.weight.group > MOST_GROUP || a.weight.group % 32 != 0) return BAD_ARGUMENT;
    for (int64_t r = 0; r < a.rows; ++r) {
        int64_t row = a.ids[r] - a.first;
        if (!a.partial && (row < 0 || row >= a.outputs)) return BAD_ARGUMENT;
    }
    switch (a.weight.type) {
        case INT4: return read_rows<Int4>(a);
        case INT8: return read_rows<Int8>(a);
        case FLOAT8: return read_rows<Float8>(a);
    }
    return BAD_ARGUMENT;
}

}  // namespace CMODEL_ISA
