// Products with weights of 4 and 8 bits that have a scale for every group of inputs.
//
// A group's products with the codes' exact values are summed in float32 from 0 as in gemm.h, then go to the output's sum
// by one multiplication with the scale, group after group: that order, too, is the same for any number of rows.

#include "codes.h"
#include "linear.h"

namespace CMODEL_ISA {
namespace {

struct PackCodes {
    int64_t type;
    const void* values;  // int4: [out, in / 2], the even input in the low half of a byte; others: [out, in]
    int64_t out, in;
    void* packed;
    int64_t group;
    float* scales;  // float8: [panels][groups][32], made NaN where a group holds NaN
};

template <class Kind, class Code>
struct QuantizedWeights {
    using W = typename Kind::W;
    // Panels are short: with some together fewer of the bytes that are fetched ahead are another thread's.
    static constexpr int64_t FEW = 8;
    static constexpr int64_t MOST_INPUTS = Kind::FIRST_CACHE * Kind::K_STEP;

    const Weight& a;
    int64_t depth, groups, piece;  // piece: inputs whose values are at hand together
    int64_t steps, row_bytes, worker_bytes;

    explicit QuantizedWeights(const Weight& a)
        : a(a),
          depth(round_up(a.in, 32)),
          groups(ceil_div(a.in, a.group)),
          piece(most<int64_t>(1, MOST_INPUTS / a.group) * a.group),
          steps(depth / Kind::K_STEP),
          row_bytes(a.shifts == nullptr ? 0 : groups * int64_t{sizeof(float)}),
          worker_bytes(round_up((piece / Kind::K_STEP * sizeof(W) + BLOCK_ROWS * sizeof(float)) * PANEL, 64)) {}

    // Kept are the sums of each row's groups.
    template <class T>
    void pack(const T* x, int64_t stride, int64_t count, typename Kind::X* to, char* kept) const {
        Kind::pack(x, stride, count, a.in, steps, to);
        if (a.shifts == nullptr) return;
        for (int64_t r = 0; r < count; ++r, x += stride, kept += row_bytes) {
            for (int64_t group = 0; group < groups; ++group) {
                int64_t first = group * a.group, end = least(first + a.group, a.in);
                Vec total{};
                for (int64_t k = first; k < end; k += LANES) total += load_some(x + k, end - k);
                ((float*)kept)[group] = sum(total);
            }
        }
    }

    void multiply(const typename Kind::Blocks& blocks, const typename Kind::X* x, const char* kept,
                  const int64_t* panels, int64_t count, float* c, char* memory) const {
        float* sums = (float*)memory;
        W* values = (W*)(sums + BLOCK_ROWS * PANEL);
        if (blocks.blocks <= 2 && blocks.count(0) <= FusedProduct<Kind, Code>::MOST_ROWS) {
            for (int64_t i = 0; i < count * blocks.blocks; ++i) {
                int64_t block = i % blocks.blocks, panel = i / blocks.blocks, first = blocks.first(block);
                const float* row_sums = (const float*)(kept + first * row_bytes);
                add_fused(blocks.count(block), x + first * steps * Kind::X_STEP, row_sums, panels[panel], sums,
                          c + (panel * blocks.padded() + first) * PANEL);
            }
            return;
        }
        Kind::begin();
        for (int64_t start = 0; start < depth; start += piece) {
            int64_t length = least(piece, depth - start);
            for (int64_t i = 0; i < count; ++i) {
                unpack<Code>(words(panels[i], start), length, values);
                for (int64_t block = 0; block < blocks.blocks; ++block) {
                    int64_t first = blocks.first(block), rows = blocks.count(block);
                    add_piece(rows, x + first * steps * Kind::X_STEP, (const float*)kept + first * (row_bytes / 4),
                              values, panels[i], start, length, sums, c + (i * blocks.padded() + first) * PANEL);
                }
            }
        }
        Kind::end();
    }

private:
    const uint32_t* words(int64_t panel, int64_t k) const {
        return (const uint32_t*)a.values + (panel * depth + k) / Code::INPUTS * PANEL;
    }

    void add_fused(int64_t rows, const typename Kind::X* x, const float* row_sums, int64_t panel, float* sums,
                   float* c) const {
        for (int64_t k = 0; k < depth; k += a.group) {
            FusedProduct<Kind, Code>::run(rows, x + k / Kind::K_STEP * rows * Kind::X_STEP, words(panel, k),
                                          least(a.group, depth - k), sums);
            scale(rows, row_sums, panel, k / a.group, sums, c);
        }
    }

    void add_piece(int64_t rows, const typename Kind::X* x, const float* row_sums, const W* values, int64_t panel,
                   int64_t start, int64_t length, float* sums, float* c) const {
        for (int64_t k = 0; k < length; k += a.group) {
            int64_t from = (start + k) / Kind::K_STEP, count = least(a.group, length - k) / Kind::K_STEP;
            Kind::add(rows, x + from * rows * Kind::X_STEP, values + k / Kind::K_STEP * PANEL, count, sums, true, {});
            scale(rows, row_sums, panel, (start + k) / a.group, sums, c);
        }
    }

    void scale(int64_t rows, const float* row_sums, int64_t panel, int64_t group, const float* sums, float* c) const {
        for (int v = 0; v < PANEL; v += LANES) {
            int64_t at = (panel * groups + group) * PANEL + v;
            Vec scales = load_scales(a, at), shifts = a.shifts == nullptr ? Vec{} : load_shifts(a.shifts + at);
            for (int64_t r = 0; r < rows; ++r) {
                Vec total = load(sums + r * PANEL + v);
                if (a.shifts != nullptr) total = fma(shifts, set1(-row_sums[r * groups + group]), total);
                float* to = c + r * PANEL + v;
                store(to, group == 0 ? scales * total : fma(scales, total, load(to)));
            }
        }
    }
};

template <class Kind, class T>
int run_quantized(const Multiplication& a, const Job* jobs, int64_t count) {
    switch (a.weight.type) {
        case INT4: return run<Kind, T>(a, QuantizedWeights<Kind, Int4>(a.weight), jobs, count);
        case INT8: return run<Kind, T>(a, QuantizedWeights<Kind, Int8>(a.weight), jobs, count);
        case FLOAT8: return run<Kind, T>(a, QuantizedWeights<Kind, Float8>(a.weight), jobs, count);
    }
    return BAD_ARGUMENT;
}

template <class Code>
void pack_panel(const PackCodes& a, int64_t panel) {
    constexpr int64_t BYTES = 4;
    int64_t words = round_up(a.in, 32) / Code::INPUTS, row_bytes = a.in * BYTES / Code::INPUTS;
    int64_t groups = ceil_div(a.in, a.group), rows = least<int64_t>(PANEL, a.out - panel * PANEL);
    const char* from = (const char*)a.values + panel * PANEL * row_bytes;
    uint32_t* to = (uint32_t*)a.packed + panel * words * PANEL;
    for (int64_t word = 0; word < words; ++word) {
        int64_t bytes = clamp(row_bytes - word * BYTES, 0, BYTES);
        for (int64_t j = 0; j < PANEL; ++j) {
            uint32_t inputs = 0;
            if (j < rows) std::memcpy(&inputs, from + j * row_bytes + word * BYTES, bytes);
            uint32_t missing = j < rows && bytes == BYTES ? 0 : ~0u << (j < rows ? 8 * bytes : 0);
            to[word * PANEL + j] = Code::arrange((inputs & ~missing) | (Code::ZERO & missing));
            if constexpr (Code::HAS_NAN) {
                int64_t group = word * Code::INPUTS / a.group;
                if (Code::any_nan(inputs)) a.scales[(panel * groups + group) * PANEL + j] = __builtin_nanf("");
            }
        }
    }
}

}  // namespace

// Pack a weight's codes into the layout of codes.h.
CMODEL_EXPORT(pack_codes)(const PackCodes& a) {
    parallel_for(ceil_div(a.out, PANEL), [&](int64_t panel, int) {
        if (a.type == INT4) pack_panel<Int4>(a, panel);
        if (a.type == INT8) pack_panel<Int8>(a, panel);
        if (a.type == FLOAT8) pack_panel<Float8>(a, panel);
    });
    return DONE;
}

int multiply_quantized(const Multiplication& a, const Job* jobs, int64_t count) {
    if (a.weight.group <= 0 || a.weight.group % 32 != 0) return BAD_ARGUMENT;
    switch (a.dtype) {
#if defined(__AVX512BF16__)
        case BFLOAT16: return run_quantized<BFloat16Product, BFloat16>(a, jobs, count);
#else
        case BFLOAT16: return run_quantized<Product<float>, BFloat16>(a, jobs, count);
#endif
        case FLOAT16: return run_quantized<Product<float>, Float16>(a, jobs, count);
        case FLOAT32: return run_quantized<Product<float>, float>(a, jobs, count);
    }
    return BAD_ARGUMENT;
}

}  // namespace CMODEL_ISA
