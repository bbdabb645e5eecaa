// The products of attention: rows of queries with a tile of keys, and rows of probabilities with a tile of values.
//
// A tile holds TILE consecutive positions of one kv head in the form that the products want. A product's bits for one
// row do not depend on the other rows.
//
//   READS_PAIRS                                whether it knows paired caches
//   bytes(rows, head_dim, v_dim)               memory that a tile needs for so many rows of queries
//   rows_in_memory(rows)                       how many rows of sums its products touch
//   begin(), end()                             surround a thread's products
//   set_query(row, q)                          takes the row's query, [head_dim]
//   set_keys(start, keys, stride, run)         takes channels of positions [start, start + run): channel d is at
//                                              keys + d * stride
//   set_values(rows, count)                    takes a pointer to the values of each position
//   set_paired_keys, set_paired_values(...)    the same from a paired cache
//   score()                                    scores = queries times keys
//   scores(row)                                [TILE]; where there is no position they may be anything
//   keep(row, i, p)                            takes probabilities i to i + LANES of a row; answers what is kept of them
//   add(sums)                                  sums[row][v_pad] += probabilities times values
#pragma once

#include "attention_cache.h"

namespace CMODEL_ISA {

// A product takes a number of each row and a vector of numbers, one for each column, at a time.
struct FloatStep {
    using Element = float;
    static CMODEL_INLINE Vec add(Vec sum, const float* number, const float* vector) {
        return fma(set1(*number), load(vector), sum);
    }
};

// A matrix whose row i begins at from + i * stride.
template <class Element>
struct Dense {
    const Element* from;
    int64_t stride;
    CMODEL_INLINE const Element* at(int64_t row, int64_t column) const { return from + row * stride + column; }
};

// C[m][n] = A[m][k] B[k][n] in float32, or C += A B, one chain of additions over k; n a multiple of LANES.
template <class Step, bool ADD, class Matrix>
struct TileProduct {
    using Element = typename Step::Element;
    int64_t k;
    const Element* a;
    int64_t a_stride;
    Matrix b;
    float* c;
    int64_t c_stride;

#if defined(__AVX512F__)
    static constexpr int MAX_M = 6, MAX_V = 4;
#else
    static constexpr int MAX_M = 6, MAX_V = 2;
#endif

    void run(int64_t m, int64_t n) const {
        int64_t parts = ceil_div(m, MAX_M), row = 0;
        for (int64_t part = 0; part < parts; ++part) {
            int64_t count = m / parts + (part < m % parts);
            run_rows<MAX_M>(count, row, n);
            row += count;
        }
    }

private:
    template <int M>
    void run_rows(int64_t count, int64_t row, int64_t n) const {
        if (count != M) {
            if constexpr (M > 1) run_rows<M - 1>(count, row, n);
            return;
        }
        int64_t column = 0;
        for (; n - column >= MAX_V * LANES; column += MAX_V * LANES) run_block<M, MAX_V>(row, column);
        for (; column < n; column += LANES) run_block<M, 1>(row, column);
    }

    template <int M, int V>
    void run_block(int64_t row, int64_t column) const {
        // Copies, for the stores below might change *this.
        const int64_t steps = k, left_stride = a_stride, to_stride = c_stride;
        const Matrix right = b;
        const Element* left = a + row * left_stride;
        float* to = c + row * to_stride + column;
        Vec sum[M][V];
        for (int m = 0; m < M; ++m) {
            for (int v = 0; v < V; ++v) sum[m][v] = ADD ? load(to + m * to_stride + v * LANES) : Vec{};
        }
        for (int64_t i = 0; i < steps; ++i) {
            for (int m = 0; m < M; ++m) {
                const Element* number = left + m * left_stride + i;
                for (int v = 0; v < V; ++v) sum[m][v] = Step::add(sum[m][v], number, right.at(i, column + v * LANES));
            }
        }
        for (int m = 0; m < M; ++m) {
            for (int v = 0; v < V; ++v) store(to + m * to_stride + v * LANES, sum[m][v]);
        }
    }
};

// Everything as float32.
template <class T>
class FloatTile {
public:
    static constexpr bool READS_PAIRS = false;

    static int64_t bytes(int64_t rows, int64_t head_dim, int64_t v_dim) {
        return (TILE * (head_dim + round_up(v_dim, LANES) + rows) + rows * head_dim) * int64_t{sizeof(float)};
    }
    static int64_t rows_in_memory(int64_t rows) { return rows; }
    static void begin() {}
    static void end() {}

    FloatTile(void* memory, int64_t rows, int64_t head_dim, int64_t v_dim)
        : rows_(rows),
          head_dim_(head_dim),
          v_dim_(v_dim),
          v_pad_(round_up(v_dim, LANES)),
          keys_((float*)memory),
          values_(keys_ + TILE * head_dim),
          scores_(values_ + TILE * v_pad_),
          queries_(scores_ + TILE * rows) {}

    void set_query(int64_t row, const T* q) { convert(q, queries_ + row * head_dim_, head_dim_); }

    void set_keys(int64_t start, const T* keys, int64_t stride, int64_t run) {
        for (int64_t d = 0; d < head_dim_; ++d) convert(keys + d * stride, keys_ + d * TILE + start, run);
    }

    void set_values(const T* const* rows, int64_t count) {
        count_ = count;
        for (int64_t i = 0; i < count; ++i) {
            float* to = values_ + i * v_pad_;
            for (int64_t d = 0; d < v_pad_; d += LANES) store(to + d, load_some(rows[i] + d, v_dim_ - d));
        }
    }

    void score() {
        using Product = TileProduct<FloatStep, false, Dense<float>>;
        Product{head_dim_, queries_, head_dim_, {keys_, TILE}, scores_, TILE}.run(rows_, round_up(count_, LANES));
    }

    float* scores(int64_t row) { return scores_ + row * TILE; }

    Vec keep(int64_t row, int64_t i, Vec p) {
        store(scores(row) + i, p);
        return p;
    }

    void add(float* sums) const {
        using Product = TileProduct<FloatStep, true, Dense<float>>;
        Product{count_, scores_, TILE, {values_, v_pad_}, sums, v_pad_}.run(rows_, v_pad_);
    }

private:
    int64_t rows_, head_dim_, v_dim_, v_pad_, count_ = 0;
    float *keys_, *values_, *scores_, *queries_;
};

}  // namespace CMODEL_ISA
