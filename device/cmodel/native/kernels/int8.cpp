// Products of rows rounded to int8 with whole numbers of 4 and 8 bits, as device/int8_products.py defines them.
//
// Sums within a block are exact, and those of floats are multiplied and added one by one, never fused: so the bits are
// the same on every instruction set.

#include "int8_rows.h"

namespace CMODEL_ISA {
namespace {

// No block has more rows: so many leave their sums and totals in registers.
constexpr int MOST_ROWS = LANES == 16 ? 6 : 4;

// A kind for run_wave: packed are for each block of inputs the scales of all rows, then what RoundedRows put.
template <class Code>
struct RoundedKind {
    using X = uint32_t;
    using Blocks = EvenBlocks<MOST_ROWS, MOST_ROWS>;
    static constexpr int64_t X_STEP = 1 + RoundedRows<Code>::WORDS;
};

template <class Code>
struct RoundedProducts {
    using Rows = RoundedRows<Code>;
    using Kind = RoundedKind<Code>;
    using X = typename Kind::X;
    // Panels are short: with some together fewer of the bytes that are fetched ahead are another thread's.
    static constexpr int64_t FEW = 8;
    // So many inputs of a panel that their codes leave room for more in the first cache.
    static constexpr int64_t MOST_INPUTS = 16384 / PANEL * Code::INPUTS / 4;

    const Weight& a;
    int64_t depth, groups, piece;  // piece: inputs that blocks of rows take by turns
    int64_t steps, row_bytes, worker_bytes = 0;

    explicit RoundedProducts(const Weight& a)
        : a(a),
          depth(round_up(a.in, BLOCK)),
          groups(ceil_div(a.in, a.group)),
          piece(most<int64_t>(1, MOST_INPUTS / a.group) * a.group),
          steps(depth / BLOCK),
          row_bytes(groups * int64_t{sizeof(float)}) {}

    // Kept is of each row and group the negative sum of what its codes mean.
    template <class T>
    void pack(const T* x, int64_t stride, int64_t count, X* to, char* kept) const {
        float* sums = (float*)kept;
        for (int64_t r = 0; r < count; ++r, x += stride, sums += groups) {
            round_row(x, a.in, a.activations, [&](int64_t block, const RoundedBlock& rounded) {
                X* at = to + block * Kind::X_STEP * count + r;
                std::memcpy(at, &rounded.scale, sizeof rounded.scale);
                Rows::put(rounded, at + count, count);
                int64_t k = block * BLOCK;
                float &sum = sums[k / a.group], meant = rounded.scale * rounded.sum;
                sum = k % a.group == 0 ? -meant : sum - meant;
            });
        }
    }

    void multiply(const typename Kind::Blocks& blocks, const X* x, const char* kept, const int64_t* panels,
                  int64_t count, float* c, char*) const {
        auto add = [&](int64_t panel, int64_t block, int64_t start, int64_t length) {
            int64_t first = blocks.first(block);
            add_rows<MOST_ROWS>(blocks.count(block), x + first * steps * Kind::X_STEP, (const float*)(kept + first * row_bytes),
                        panels[panel], start, length, c + (panel * blocks.padded() + first) * PANEL, block == 0);
        };
        for (int64_t start = 0; start < depth; start += blocks.blocks == 1 ? depth : piece) {
            int64_t length = blocks.blocks == 1 ? depth : least(piece, depth - start);
            for (int64_t panel = 0; panel < count; ++panel) {
                for (int64_t block = 0; block < blocks.blocks; ++block) add(panel, block, start, length);
            }
        }
    }

private:
    // What lies AHEAD of COLUMNS outputs of a block.
    template <int COLUMNS>
    static CMODEL_INLINE void prefetch(const uint32_t* words) {
        for (int k = 0; k < BLOCK; k += Code::INPUTS, words += PANEL) {
            for (int i = 0; i < COLUMNS; i += 16) __builtin_prefetch((const char*)(words + i) + AHEAD);
        }
    }

    template <int R>
    void add_rows(int64_t rows, const X* x, const float* sums, int64_t panel, int64_t start, int64_t length, float* c,
                  bool fetch) const {
        if (rows == R) return add_block<R>(x, sums, panel, start, length, c, fetch);
        if constexpr (R > 1) add_rows<R - 1>(rows, x, sums, panel, start, length, c, fetch);
    }

    // C[R][32] += R rows times `length` inputs of a panel from `start` on; from 0 on, = instead of +=.
    template <int R>
    void add_block(const X* x, const float* sums, int64_t panel, int64_t start, int64_t length, float* c,
                   bool fetch) const {
        for (int64_t k = start; k < start + length; k += a.group) {
            int64_t group = k / a.group, blocks = least(a.group, start + length - k) / BLOCK;
            const uint32_t* words = (const uint32_t*)a.values + (panel * depth + k) / Code::INPUTS * PANEL;
            const X* at = x + k / BLOCK * Kind::X_STEP * R;
            add_group<R>(at, sums + group, words, blocks, (panel * groups + group) * PANEL, c, group == 0, fetch);
        }
    }

    template <int R>
    CMODEL_INLINE void add_group(const X* x, const float* sums, const uint32_t* words, int64_t blocks, int64_t at,
                                 float* c, bool first, bool fetch) const {
        constexpr int NV = Rows::template VECTORS_FOR<R>;
        for (int column = 0; column < PANEL; column += NV * LANES) {
            Vec total[R][NV];
            for (int v = 0; v < NV; ++v) {
                Vec zero = set1(Code::MIDDLE);
                if (a.shifts != nullptr) zero += load_shifts(a.shifts + at + column + v * LANES);
                for (int r = 0; r < R; ++r) total[r][v] = zero * sums[r * groups];
            }
            const uint32_t* here = words + column;
            const X* at_x = x;
            for (int64_t block = 0; block < blocks; ++block, here += BLOCK / Code::INPUTS * PANEL) {
                if (fetch) prefetch<NV * LANES>(here);
                Int dots[R][NV];
                Rows::template multiply<R, NV>(at_x + R, here, dots);
                for (int r = 0; r < R; ++r) {
                    float scale;
                    std::memcpy(&scale, at_x + r, sizeof scale);
                    for (int v = 0; v < NV; ++v) total[r][v] += scale * __builtin_convertvector(dots[r][v], Vec);
                }
                at_x += Kind::X_STEP * R;
            }
            for (int v = 0; v < NV; ++v) {
                Vec scales = load_scales(a, at + column + v * LANES);
                for (int r = 0; r < R; ++r) {
                    float* to = c + r * PANEL + column + v * LANES;
                    store(to, first ? scales * total[r][v] : load(to) + scales * total[r][v]);
                }
            }
        }
    }
};

template <class Code, class T>
int run_rounded(const Multiplication& a, const Job* jobs, int64_t count) {
    return run<RoundedKind<Code>, T>(a, RoundedProducts<Code>(a.weight), jobs, count);
}

}  // namespace

int multiply_rounded(const Multiplication& a, const Job* jobs, int64_t count) {
    if (a.weight.group <= 0 || a.weight.group % BLOCK != 0) return BAD_ARGUMENT;
    return with_type(a.dtype, [&](auto t) {
        using T = decltype(t);
        if (a.weight.type == INT4) return run_rounded<Int4, T>(a, jobs, count);
        return a.weight.type == INT8 ? run_rounded<Int8, T>(a, jobs, count) : BAD_ARGUMENT;
    });
}

}  // namespace CMODEL_ISA
