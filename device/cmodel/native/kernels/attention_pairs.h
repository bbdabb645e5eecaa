// Tiles of bfloat16 for processors that multiply pairs of them. Probabilities are rounded to bfloat16.
#pragma once

#include "attention_tile.h"

#if defined(__AVX512BF16__)
namespace CMODEL_ISA {

// Keys in pairs of channels, [depth / 2][TILE][2], and values in pairs of positions, [TILE / 2][v_pad][2]. A paired
// cache holds each block like that: then v_dim and block_size are multiples of LANES, and head_dim is even.
class PairTile {
public:
    static constexpr bool READS_PAIRS = true;

    static int64_t bytes(int64_t rows, int64_t head_dim, int64_t v_dim) {
        int64_t depth = round_up(head_dim, 32), tall = round_up(rows, 16), v_pad = round_up(v_dim, LANES);
        return tall * TILE * int64_t{sizeof(float)} +
               (TILE * (depth + v_pad) + tall * (depth + TILE)) * int64_t{sizeof(BFloat16)};
    }

    PairTile(void* memory, int64_t rows, int64_t head_dim, int64_t v_dim)
        : rows_(rows),
          tall_(round_up(rows, 16)),
          head_dim_(head_dim),
          depth_(round_up(head_dim, 32)),
          v_dim_(v_dim),
          v_pad_(round_up(v_dim, LANES)),
          scores_((float*)memory),
          keys_((uint32_t*)(scores_ + tall_ * TILE)),
          values_(keys_ + TILE * depth_ / 2),
          queries_((BFloat16*)(values_ + TILE * v_pad_ / 2)),
          probabilities_(queries_ + tall_ * depth_) {
        std::memset(memory, 0, bytes(rows, head_dim, v_dim));
    }

    void set_query(int64_t row, const BFloat16* q) { std::memcpy(queries_ + row * depth_, q, head_dim_ * sizeof *q); }

    void set_keys(int64_t start, const BFloat16* keys, int64_t stride, int64_t run) {
        for (int64_t d = 0; d < head_dim_; d += 2) {
            const BFloat16* even = keys + d * stride;
            pair(even, d + 1 < head_dim_ ? even + stride : nullptr, run, keys_ + d / 2 * TILE + start);
        }
    }

    void set_values(const BFloat16* const* rows, int64_t count) {
        count_ = count;
        for (int64_t i = 0; i < TILE; i += 2) {
            uint32_t* to = values_ + i / 2 * v_pad_;
            if (i < count) {
                pair(rows[i], i + 1 < count ? rows[i + 1] : nullptr, v_dim_, to);
            } else {
                std::memset(to, 0, v_pad_ * sizeof *to);
            }
        }
    }

    float* scores(int64_t row) { return scores_ + row * TILE; }

    Vec keep(int64_t row, int64_t i, Vec p) {
        Half half = (Half)_mm512_cvtneps_pbh((__m512)p);
        std::memcpy(probabilities_ + row * TILE + i, &half, sizeof half);
        return widen_bfloat16(half);
    }

protected:
    int64_t rows_, tall_, head_dim_, depth_, v_dim_, v_pad_, count_ = 0;
    float* scores_;
    uint32_t *keys_, *values_;
    BFloat16 *queries_, *probabilities_;

    // Puts 0 for the second of each pair of values.
    void drop_odd(uint32_t* values) const {
        for (int64_t d = 0; d < v_dim_; ++d) values[d] &= 0xffff;
    }

private:
    static CMODEL_INLINE void pair(const BFloat16* even, const BFloat16* odd, int64_t count, uint32_t* to) {
        alignas(64) static constexpr uint16_t LOW[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                         8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
        __m512i low = _mm512_load_si512(LOW), high = _mm512_or_si512(low, _mm512_set1_epi16(16));
        int64_t i = 0;
        for (; odd != nullptr && i + 2 * LANES <= count; i += 2 * LANES) {
            __m512i evens = _mm512_loadu_si512(even + i), odds = _mm512_loadu_si512(odd + i);
            _mm512_storeu_si512(to + i, _mm512_permutex2var_epi16(evens, low, odds));
            _mm512_storeu_si512(to + i + LANES, _mm512_permutex2var_epi16(evens, high, odds));
        }
        for (; i + LANES <= count; i += LANES) {
            Bits pairs = widen(load_half(even + i));
            if (odd != nullptr) pairs |= widen(load_half(odd + i)) << 16;
            std::memcpy(to + i, &pairs, sizeof pairs);
        }
        for (; i < count; ++i) to[i] = even[i].bits | (odd == nullptr ? 0u : (uint32_t)odd[i].bits << 16);
    }
};

#if defined(__AMX_BF16__)
// The products in tile registers.
class BFloat16Tile : public PairTile {
public:
    using PairTile::PairTile;

    static int64_t rows_in_memory(int64_t rows) { return round_up(rows, 16); }
    static void begin() { configure_tiles(); }
    static void end() { _tile_release(); }

    // Copies, for tile registers want rows of all blocks one distance apart.
    void set_paired_keys(int64_t start, const uint32_t* keys, int64_t stride, int64_t run) {
        for (int64_t d = 0; d < head_dim_ / 2; ++d) {
            std::memcpy(keys_ + d * TILE + start, keys + d * stride, round_up(run, LANES) * sizeof *keys);
        }
    }

    void set_paired_values(const BFloat16* const* pairs, int64_t count) {
        count_ = count;
        for (int64_t i = 0; i < TILE / 2; ++i) {
            if (2 * i < count) {
                std::memcpy(values_ + i * v_pad_, pairs[i], v_pad_ * sizeof *values_);
            } else {
                std::memset(values_ + i * v_pad_, 0, v_pad_ * sizeof *values_);
            }
        }
        if (count % 2 == 1) drop_odd(values_ + count / 2 * v_pad_);
    }

    void score() {
        asm volatile("" ::: "memory");  // the tile loads below do not tell the compiler what they read
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
            float* to = scores(row);
            _tile_stored(0, to, TILE * 4);
            _tile_stored(1, to + 16, TILE * 4);
            _tile_stored(2, to + 32, TILE * 4);
            _tile_stored(3, to + 48, TILE * 4);
        }
        asm volatile("" ::: "memory");
    }

    void add(float* sums) const {
        asm volatile("" ::: "memory");
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
            _tile_loadd(4, probabilities_ + row * TILE + at, TILE * 2);
            _tile_loadd(6, values, v_pad_ * 4);
            _tile_dpbf16ps(0, 4, 6);
            if (TWO) _tile_loadd(7, values + 16, v_pad_ * 4);
            if (TWO) _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, to, v_pad_ * 4);
        if (TWO) _tile_stored(1, to + 16, v_pad_ * 4);
    }
};
#else
struct PairStep {
    using Element = uint32_t;
    static CMODEL_INLINE Vec add(Vec sum, const uint32_t* number, const uint32_t* vector) {
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(vector),
                                     (__m512bh)_mm512_set1_epi32((int)*number));
    }
};

// The products in vector registers. A paired cache is read where it stands.
class BFloat16Tile : public PairTile {
public:
    using PairTile::PairTile;

    static int64_t rows_in_memory(int64_t rows) { return rows; }
    static void begin() {}
    static void end() {}

    void set_keys(int64_t start, const BFloat16* keys, int64_t stride, int64_t run) {
        PairTile::set_keys(start, keys, stride, run);
        columns_.stride = TILE;
        for (int64_t v = 0; v < TILE / LANES; ++v) columns_.from[v] = keys_ + v * LANES;
    }

    void set_values(const BFloat16* const* rows, int64_t count) {
        PairTile::set_values(rows, count);
        for (int64_t i = 0; i < TILE / 2; ++i) pairs_[i] = values_ + i * v_pad_;
    }

    void set_paired_keys(int64_t start, const uint32_t* keys, int64_t stride, int64_t run) {
        columns_.stride = stride;
        int64_t end = start + run < TILE ? ceil_div(start + run, LANES) : TILE / LANES;
        for (int64_t v = start / LANES; v < end; ++v) columns_.from[v] = keys + v * LANES - start;
        for (int64_t v = end; v < TILE / LANES; ++v) columns_.from[v] = keys;  // of positions that nobody sees
    }

    void set_paired_values(const BFloat16* const* pairs, int64_t count) {
        count_ = count;
        for (int64_t i = 0; i < ceil_div(count, 2); ++i) pairs_[i] = (const uint32_t*)pairs[i];
        if (count % 2 == 0) return;
        std::memcpy(values_, pairs[count / 2], v_pad_ * sizeof *values_);
        drop_odd(values_);
        pairs_[count / 2] = values_;
    }

    void score() {
        using Product = TileProduct<PairStep, false, Columns>;
        const uint32_t* queries = (const uint32_t*)queries_;
        Product{ceil_div(head_dim_, 2), queries, depth_ / 2, columns_, scores_, TILE}.run(rows_, TILE);
    }

    void add(float* sums) const {
        using Product = TileProduct<PairStep, true, Rows>;
        Product{ceil_div(count_, 2), (const uint32_t*)probabilities_, TILE / 2, {pairs_}, sums, v_pad_}
            .run(rows_, v_pad_);
    }

private:
    // Every LANES columns stand elsewhere.
    struct Columns {
        const uint32_t* from[TILE / LANES];
        int64_t stride;
        CMODEL_INLINE const uint32_t* at(int64_t row, int64_t column) const {
            return from[column / LANES] + row * stride + column % LANES;
        }
    };
    // Every row stands elsewhere.
    struct Rows {
        const uint32_t* const* row;
        CMODEL_INLINE const uint32_t* at(int64_t i, int64_t column) const { return row[i] + column; }
    };

    Columns columns_;
    const uint32_t* pairs_[TILE / 2];
};
#endif

}  // namespace CMODEL_ISA
#endif
