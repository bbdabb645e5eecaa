// The products of attention: rows of queries with a tile of keys, and rows of probabilities with a tile of values.
//
// A tile holds TILE consecutive positions of one kv head in the form that the products want; positions that do not
// exist are 0. A product's bits for one row do not depend on the other rows.
//
//   bytes(rows, head_dim, v_dim)    memory that a tile needs for so many rows of queries
//   rows_in_memory(rows)            how many rows of scores and sums its products touch
//   begin(), end()                  surround a thread's products
//   set_query(row, q)               takes the row's query, [head_dim]
//   set_keys(start, keys, run)      takes channels of positions [start, start + run): channel d at keys + d * stride
//   set_values(rows)                takes a pointer to the values of each position, null where there is none
//   score(scores)                   scores[row][TILE] = queries times keys
//   add(scores, sums)               sums[row][v_pad] += probabilities[row][TILE] times values
#pragma once

#include "../simd.h"

namespace CMODEL_ISA {

constexpr int64_t TILE = 64;

// C[m][n] (+)= A[m][k] B[k][n] in float32, a chain of fused additions over k; n a multiple of LANES.
struct FloatProduct {
    int64_t k;
    const float* a;
    int64_t a_stride;
    const float* b;
    int64_t b_stride;
    float* c;
    int64_t c_stride;
    bool add;

#if defined(__AVX512F__)
    static constexpr int MAX_M = 7, MAX_V = 4;
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
        const float *left = a + row * a_stride, *right = b + column;
        float* to = c + row * c_stride + column;
        Vec sum[M][V];
        for (int m = 0; m < M; ++m) {
            for (int v = 0; v < V; ++v) sum[m][v] = add ? load(to + m * c_stride + v * LANES) : Vec{};
        }
        for (int64_t i = 0; i < k; ++i, right += b_stride) {
            for (int v = 0; v < V; ++v) {
                Vec vector = load(right + v * LANES);
                for (int m = 0; m < M; ++m) sum[m][v] = fma(set1(left[m * a_stride + i]), vector, sum[m][v]);
            }
        }
        for (int m = 0; m < M; ++m) {
            for (int v = 0; v < V; ++v) store(to + m * c_stride + v * LANES, sum[m][v]);
        }
    }
};

// Everything as float32.
template <class T>
class FloatTile {
public:
    static int64_t bytes(int64_t rows, int64_t head_dim, int64_t v_dim) {
        return (TILE * (head_dim + round_up(v_dim, LANES)) + rows * head_dim) * int64_t{sizeof(float)};
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
          queries_(values_ + TILE * v_pad_) {}

    void set_query(int64_t row, const T* q) { convert(q, queries_ + row * head_dim_, head_dim_); }

    void set_keys(int64_t start, const T* keys, int64_t stride, int64_t run) {
        for (int64_t d = 0; d < head_dim_; ++d) convert(keys + d * stride, keys_ + d * TILE + start, run);
    }

    void set_values(const T* const* rows, int64_t count) {
        count_ = count;
        if (count < TILE) clear_keys(count);
        for (int64_t i = 0; i < count; ++i) {
            float* to = values_ + i * v_pad_;
            for (int64_t d = 0; d < v_pad_; d += LANES) store(to + d, load_some(rows[i] + d, v_dim_ - d));
        }
    }

    void score(float* scores) const {
        FloatProduct{head_dim_, queries_, head_dim_, keys_, TILE, scores, TILE, false}.run(rows_, TILE);
    }

    void add(const float* scores, float* sums) const {
        FloatProduct{count_, scores, TILE, values_, v_pad_, sums, v_pad_, true}.run(rows_, v_pad_);
    }

private:
    void clear_keys(int64_t count) {
        for (int64_t d = 0; d < head_dim_; ++d) std::memset(keys_ + d * TILE + count, 0, (TILE - count) * sizeof(float));
    }

    int64_t rows_, head_dim_, v_dim_, v_pad_, count_ = 0;
    float *keys_, *values_, *queries_;
};

#if defined(__AMX_BF16__)
// bfloat16 as it is, in tile registers. A probability is the sum of two bfloat16, which keeps 16 of its bits.
class MatrixTile {
public:
    static int64_t bytes(int64_t rows, int64_t head_dim, int64_t v_dim) {
        int64_t depth = round_up(head_dim, 32), tall = round_up(rows, 16);
        return (TILE * (depth + round_up(v_dim, LANES)) + tall * (depth + 2 * TILE)) * int64_t{sizeof(BFloat16)};
    }
    static int64_t rows_in_memory(int64_t rows) { return round_up(rows, 16); }
    static void begin() { configure_tiles(); }
    static void end() { _tile_release(); }

    MatrixTile(void* memory, int64_t rows, int64_t head_dim, int64_t v_dim)
        : rows_(rows),
          tall_(round_up(rows, 16)),
          head_dim_(head_dim),
          depth_(round_up(head_dim, 32)),
          v_dim_(v_dim),
          v_pad_(round_up(v_dim, LANES)),
          keys_((uint32_t*)memory),
          values_(keys_ + TILE * depth_ / 2),
          queries_((BFloat16*)(values_ + TILE * v_pad_ / 2)),
          high_(queries_ + tall_ * depth_),
          low_(high_ + tall_ * TILE) {
        std::memset(memory, 0, bytes(rows, head_dim, v_dim));
    }

    void set_query(int64_t row, const BFloat16* q) { std::memcpy(queries_ + row * depth_, q, head_dim_ * sizeof *q); }

    // Pairs of channels: [depth / 2][TILE][2].
    void set_keys(int64_t start, const BFloat16* keys, int64_t stride, int64_t run) {
        for (int64_t d = 0; d < head_dim_; d += 2) {
            const BFloat16* even = keys + d * stride;
            pair(even, d + 1 < head_dim_ ? even + stride : nullptr, run, keys_ + d / 2 * TILE + start);
        }
    }

    // Pairs of positions: [TILE / 2][v_pad][2].
    void set_values(const BFloat16* const* rows, int64_t count) {
        for (int64_t d = 0; count < TILE && d < depth_ / 2; ++d) {
            std::memset(keys_ + d * TILE + count, 0, (TILE - count) * sizeof *keys_);
        }
        for (int64_t i = 0; i < TILE; i += 2) {
            uint32_t* to = values_ + i / 2 * v_pad_;
            if (i < count) {
                pair(rows[i], i + 1 < count ? rows[i + 1] : nullptr, v_dim_, to);
            } else {
                std::memset(to, 0, v_pad_ * sizeof *to);
            }
        }
    }

    void score(float* scores) const {
        for (int64_t row = 0; row < tall_; row += 16) {
            // Four products side by side, for each takes long to finish.
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t d = 0; d < depth_; d += 32) {
                const uint32_t* keys = keys_ + d / 2 * TILE;
                _tile_loadd(4, queries_ + row * depth_ + d, depth_ * 2);
                _tile_loadd(5, keys, TILE * 4);
                _tile_dpbf16ps(0, 4, 5);
                _tile_loadd(6, keys + 16, TILE * 4);
                _tile_dpbf16ps(1, 4, 6);
                _tile_loadd(5, keys + 32, TILE * 4);
                _tile_dpbf16ps(2, 4, 5);
                _tile_loadd(6, keys + 48, TILE * 4);
                _tile_dpbf16ps(3, 4, 6);
            }
            float* to = scores + row * TILE;
            _tile_stored(0, to, TILE * 4);
            _tile_stored(1, to + 16, TILE * 4);
            _tile_stored(2, to + 32, TILE * 4);
            _tile_stored(3, to + 48, TILE * 4);
        }
        asm volatile("" ::: "memory");
    }

    void add(const float* scores, float* sums) const {
        for (int64_t i = 0; i < rows_ * TILE; i += LANES) {
            Vec p = load(scores + i);
            Half high = (Half)_mm512_cvtneps_pbh((__m512)p);
            Half low = (Half)_mm512_cvtneps_pbh((__m512)(p - widen_bfloat16(high)));
            std::memcpy(high_ + i, &high, sizeof high);
            std::memcpy(low_ + i, &low, sizeof low);
        }
        asm volatile("" ::: "memory");  // the tile loads below do not tell the compiler what they read
        for (int64_t row = 0; row < tall_; row += 16) {
            int64_t d = 0;
            for (; d + 32 <= v_pad_; d += 32) add_tiles<true>(row, d, sums);
            if (d < v_pad_) add_tiles<false>(row, d, sums);
        }
        asm volatile("" ::: "memory");
    }

private:
    template <bool TWO>
    void add_tiles(int64_t row, int64_t d, float* sums) const {
        float* to = sums + row * v_pad_ + d;
        _tile_loadd(0, to, v_pad_ * 4);
        if (TWO) _tile_loadd(1, to + 16, v_pad_ * 4);
        for (int64_t at = 0; at < TILE; at += 32) {
            const uint32_t* values = values_ + at / 2 * v_pad_ + d;
            _tile_loadd(4, high_ + row * TILE + at, TILE * 2);
            _tile_loadd(5, low_ + row * TILE + at, TILE * 2);
            _tile_loadd(6, values, v_pad_ * 4);
            _tile_dpbf16ps(0, 4, 6);
            if (TWO) _tile_loadd(7, values + 16, v_pad_ * 4);
            if (TWO) _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(0, 5, 6);
            if (TWO) _tile_dpbf16ps(1, 5, 7);
        }
        _tile_stored(0, to, v_pad_ * 4);
        if (TWO) _tile_stored(1, to + 16, v_pad_ * 4);
    }

    static CMODEL_INLINE void pair(const BFloat16* even, const BFloat16* odd, int64_t count, uint32_t* to) {
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) {
            Bits pairs = widen(load_half(even + i));
            if (odd != nullptr) pairs |= widen(load_half(odd + i)) << 16;
            std::memcpy(to + i, &pairs, sizeof pairs);
        }
        for (; i < count; ++i) to[i] = even[i].bits | (odd == nullptr ? 0u : (uint32_t)odd[i].bits << 16);
    }

    int64_t rows_, tall_, head_dim_, depth_, v_dim_, v_pad_;
    uint32_t *keys_, *values_;
    BFloat16 *queries_, *high_, *low_;
};
#endif

}  // namespace CMODEL_ISA
