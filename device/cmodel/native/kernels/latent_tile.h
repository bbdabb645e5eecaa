// The products of latent attention. A tile of latents stands in rows, [TILE][head_dim], the latent before the rotated key,
// for scores and values alike: see attention_tile.h for what tiles do.
//
//   set_query(row, latent, rope)     takes the two parts of a row's query
//   set_row(i, latent, rope)         takes those of a position
//   end_rows(count)                  so many positions have been given
#pragma once

#include "attention_pairs.h"
#include "attention_tile.h"

namespace CMODEL_ISA {
namespace {

// The sums of four vectors' lanes. Neighbours are added first.
CMODEL_INLINE void store_sums(float* to, Vec a, Vec b, Vec c, Vec d) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    auto fold = [](Vec v) {
        return _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
    };
#else
    auto fold = [](Vec v) { return (__m256)v; };
#endif
    __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
#else
    static_assert(LANES == 4, "");
    const Vec all[4] = {a, b, c, d};
    for (Vec v : all) *to++ = (v[0] + v[1]) + (v[2] + v[3]);
#endif
}

struct FloatDot {
    using Element = float;
    static CMODEL_INLINE Vec add(Vec sum, Vec x, Vec y) { return fma(x, y, sum); }
};

#if defined(__AVX512BF16__)
struct PairDot {
    using Element = uint32_t;
    static CMODEL_INLINE Vec add(Vec sum, Vec x, Vec y) {
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
    }
};
#endif

// C[rows][TILE] = A[rows][k] B[positions][k]^T: each lane adds up every LANES-th product, then lanes are added up. k is a
// multiple of LANES. B has memory for whole sets of POSITIONS, and C gets numbers for those.
template <class Step>
struct RowProduct {
    using Element = typename Step::Element;
    int64_t k;
    const Element *a, *b;
    int64_t stride;  // of both
    float* c;

    static constexpr int POSITIONS = 4;
    // Positions that stay in the first cache while rows take turns.
    static constexpr int64_t NEAR = 2 * POSITIONS;
#if defined(__AVX512F__)
    static constexpr int MAX_ROWS = 6;
#else
    static constexpr int MAX_ROWS = 3;
#endif

    void run(int64_t rows, int64_t positions) const {
        int64_t parts = ceil_div(rows, MAX_ROWS);
        for (int64_t near = 0; near < positions; near += NEAR) {
            int64_t row = 0, end = least(positions, near + NEAR);
            for (int64_t part = 0; part < parts; ++part) {
                int64_t count = rows / parts + (part < rows % parts);
                run_rows<MAX_ROWS>(count, row, near, end);
                row += count;
            }
        }
    }

private:
    template <int R>
    void run_rows(int64_t count, int64_t row, int64_t position, int64_t end) const {
        if (count != R) {
            if constexpr (R > 1) run_rows<R - 1>(count, row, position, end);
            return;
        }
        for (; position < end; position += POSITIONS) run_block<R>(row, position);
    }

    static CMODEL_INLINE Vec vector(const Element* from) {
        Vec v;
        std::memcpy(&v, from, sizeof v);
        return v;
    }

    template <int R>
    void run_block(int64_t row, int64_t position) const {
        const int64_t steps = k, apart = stride;
        const Element *left = a + row * apart, *right = b + position * apart;
        Vec sum[R][POSITIONS] = {};
        for (int64_t i = 0; i < steps; i += LANES) {
            Vec queries[R];
            for (int r = 0; r < R; ++r) queries[r] = vector(left + r * apart + i);
            for (int p = 0; p < POSITIONS; ++p) {
                Vec key = vector(right + p * apart + i);
                for (int r = 0; r < R; ++r) sum[r][p] = Step::add(sum[r][p], queries[r], key);
            }
        }
        for (int r = 0; r < R; ++r) {
            store_sums(c + (row + r) * TILE + position, sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
        }
    }
};

// Everything as float32.
template <class T>
class FloatLatentTile {
public:
    static int64_t bytes(int64_t rows, int64_t head_dim, int64_t) {
        return ((TILE + rows) * stride_of(head_dim) + TILE * rows) * int64_t{sizeof(float)};
    }
    static int64_t rows_in_memory(int64_t rows) { return rows; }
    static void begin() {}
    static void end() {}

    FloatLatentTile(void* memory, int64_t rows, int64_t head_dim, int64_t v_dim)
        : rows_(rows),
          head_dim_(head_dim),
          v_dim_(v_dim),
          stride_(stride_of(head_dim)),
          scores_((float*)memory),
          keys_(scores_ + TILE * rows),
          queries_(keys_ + TILE * stride_) {
        std::memset(keys_, 0, (TILE + rows) * stride_ * sizeof(float));
    }

    void set_query(int64_t row, const T* latent, const T* rope) { set(queries_ + row * stride_, latent, rope); }
    void set_row(int64_t i, const T* latent, const T* rope) { set(keys_ + i * stride_, latent, rope); }
    void end_rows(int64_t count) { count_ = count; }

    void score() {
        RowProduct<FloatDot>{round_up(head_dim_, LANES), queries_, keys_, stride_, scores_}.run(rows_, count_);
    }

    float* scores(int64_t row) { return scores_ + row * TILE; }

    Vec keep(int64_t row, int64_t i, Vec p) {
        store(scores(row) + i, p);
        return p;
    }

    void add(float* sums) const {
        using Product = TileProduct<FloatStep, true, Dense<float>>;
        int64_t v_pad = round_up(v_dim_, LANES);
        Product{count_, scores_, TILE, {keys_, stride_}, sums, v_pad}.run(rows_, v_pad);
    }

private:
    // An odd number of cache lines: rows whose distance is a power of 2 would share a few places of the cache.
    static int64_t stride_of(int64_t head_dim) { return (ceil_div(head_dim, 16) | 1) * 16; }

    void set(float* to, const T* latent, const T* rope) {
        convert(latent, to, v_dim_);
        convert(rope, to + v_dim_, head_dim_ - v_dim_);
    }

    int64_t rows_, head_dim_, v_dim_, stride_, count_ = 0;
    float *scores_, *keys_, *queries_;
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16. What attention_pairs.h keeps as pairs of channels stands in rows here.
class PairLatentTile : public BFloat16Tile {
public:
    using BFloat16Tile::BFloat16Tile;

    void set_query(int64_t row, const BFloat16* latent, const BFloat16* rope) {
        set(queries_ + row * depth_, latent, rope);
    }
    void set_row(int64_t i, const BFloat16* latent, const BFloat16* rope) {
        BFloat16* to = (BFloat16*)keys_ + i * depth_;
        set(to, latent, rope);
        at_[i] = to;
    }
    void end_rows(int64_t count) { set_values(at_, count); }

    void score() {
        RowProduct<PairDot>{depth_ / 2, (const uint32_t*)queries_, keys_, depth_ / 2, scores_}.run(rows_, count_);
    }

private:
    void set(BFloat16* to, const BFloat16* latent, const BFloat16* rope) {
        std::memcpy(to, latent, v_dim_ * sizeof *to);
        std::memcpy(to + v_dim_, rope, (head_dim_ - v_dim_) * sizeof *to);
    }

    const BFloat16* at_[TILE];
};
#endif

}  // namespace
}  // namespace CMODEL_ISA
