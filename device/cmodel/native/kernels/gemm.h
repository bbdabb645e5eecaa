// Products of a few rows with a packed weight: C[rows][32] += X[rows][k] * W[k][32], a panel of 32 outputs at a time.
//
// Every output is one chain of additions over k, from 0 up, in float32. Blocks of k and of rows only decide when a chain
// goes on; they never change its order, so a row's bits do not depend on the rows beside it.
//
// Packed weights. bfloat16: [panels][round_up(k, 32) / 2][32][2]. float16 and float32: [panels][k][32]. What is beyond
// the last output or the last input is 0.
#pragma once

#include "../simd.h"
#include "../threads.h"

namespace CMODEL_ISA {

using cmodel::parallel_for;
using cmodel::scratch;
using cmodel::thread_count;

constexpr int PANEL = 32;
constexpr int VECTORS = PANEL / LANES;

// How many bytes of a panel to fetch ahead. The processor's own prefetch stops at every page.
constexpr int AHEAD = 4096;

// What a product fetches of weights that are to come: for each 128 bytes that it reads, the first line, the second or
// both of the 128 that stand `ahead` bytes later.
struct Fetch {
    bool first, second;
    int64_t ahead;
};

// Rows that one pass over a panel takes where there are many, rows that are not worth two passes, up to how many blocks of
// rows take turns with a short piece of a panel, and how many vectors of outputs fit the registers beside r rows.
#if defined(__AVX512F__)
constexpr int MAX_ROWS = 14, LONE_ROWS = 16, FETCHED_BLOCKS = 2;
constexpr int vectors_for(int rows) { return rows <= MAX_ROWS ? 2 : 1; }
#elif defined(__AVX2__)
constexpr int MAX_ROWS = 6, LONE_ROWS = 6, FETCHED_BLOCKS = 6;
constexpr int vectors_for(int rows) { return rows <= 2 ? 4 : 2; }
#else
constexpr int MAX_ROWS = 6, LONE_ROWS = 6, FETCHED_BLOCKS = 6;
constexpr int vectors_for(int rows) { return rows <= 1 ? 8 : rows <= 3 ? 4 : 2; }
#endif

// A kind of product says how rows are packed, cut into blocks, and multiplied with a piece of a panel:
//   X, W                 the elements of packed rows and weights
//   X_STEP, K_STEP       elements of X, and inputs, that one step over k takes of a row
//   PIECE                steps over a panel whose weights stay in the second cache while blocks of rows take turns;
//                        the rows' pieces stay there, too, while panels take turns
//   FIRST_CACHE          steps whose weights leave room for more in the first cache
//   Blocks               the rows of a call, cut
//   begin(), end()       surround a thread's products
//   pack(...)            puts one block's rows into place; a block of packed rows has its steps in memory order
//   MOST_FETCHED         up to how many blocks of rows take turns with a piece so short that it stays in the first cache,
//                        while the first two fetch half of the next one each
//   add(...)             C[rows][32] += the block's packed rows times steps of a panel; to start, = instead of +=

// Rows cut into blocks of nearly equal size, of at most MOST rows each, but LONE that are alone.
template <int64_t MOST, int64_t LONE>
struct EvenBlocks {
    int64_t rows, blocks;
    EvenBlocks() = default;
    explicit EvenBlocks(int64_t rows) : rows(rows), blocks(rows <= LONE ? 1 : ceil_div(rows, MOST)) {}
    int64_t first(int64_t block) const { return block * (rows / blocks) + least(block, rows % blocks); }
    int64_t count(int64_t block) const { return rows / blocks + (block < rows % blocks); }
    int64_t padded() const { return rows; }
};

// A kind whose one step is Kind::step on vectors of outputs held in registers.
template <class Kind, class XElement, class WElement>
struct VectorKind {
    using X = XElement;
    using W = WElement;
    using Blocks = EvenBlocks<MAX_ROWS, LONE_ROWS>;
    static constexpr int64_t PIECE = 65536 / (PANEL * sizeof(W)), FIRST_CACHE = PIECE / 4;
    static constexpr int64_t MOST_FETCHED = FETCHED_BLOCKS;

    static void begin() {}
    static void end() {}

    static void add(int64_t rows, const X* x, const W* w, int64_t steps, float* c, bool start, Fetch fetch) {
        add_rows<LONE_ROWS>(rows, x, w, steps, c, start, fetch);
    }

private:
    template <int R>
    static void add_rows(int64_t rows, const X* x, const W* w, int64_t steps, float* c, bool start, Fetch fetch) {
        if (rows == R) return add_block<R>(x, w, steps, c, start, fetch);
        if constexpr (R > 1) add_rows<R - 1>(rows, x, w, steps, c, start, fetch);
    }

    template <int R>
    static void add_block(const X* x, const W* w, int64_t steps, float* c, bool start, Fetch fetch) {
        constexpr int NV = vectors_for(R);
        for (int column = 0; column < PANEL; column += NV * LANES) {
            Vec sum[R][NV];
            for (int r = 0; r < R; ++r) {
                for (int v = 0; v < NV; ++v) sum[r][v] = start ? Vec{} : load(c + r * PANEL + column + v * LANES);
            }
            const X* at_x = x;
            const W* at_w = w + column;
            for (int64_t s = 0; s < steps; ++s, at_x += Kind::X_STEP * R, at_w += PANEL) {
                if (fetch.first) __builtin_prefetch((const char*)at_w + fetch.ahead);
                if (fetch.second) __builtin_prefetch((const char*)at_w + fetch.ahead + 64);
                Kind::template step<R, NV>(sum, at_x, at_w);
            }
            for (int r = 0; r < R; ++r) {
                for (int v = 0; v < NV; ++v) store(c + r * PANEL + column + v * LANES, sum[r][v]);
            }
        }
    }
};

// Rows as float32, [steps * X_STEP][count].
template <class T>
void pack_floats(const T* x, int64_t stride, int64_t count, int64_t k, int64_t padded_k, float* to) {
    for (int64_t r = 0; r < count; ++r, x += stride) {
        for (int64_t i = 0; i < padded_k; i += LANES) {
            float values[LANES];
            store(values, i < k ? load_some(x + i, k - i) : Vec{});
            for (int64_t j = 0; j < least<int64_t>(LANES, padded_k - i); ++j) to[(i + j) * count + r] = values[j];
        }
    }
}

template <class T>
struct Product : VectorKind<Product<T>, float, T> {
    static constexpr int K_STEP = 1, X_STEP = 1;

    template <int R, int NV>
    static CMODEL_INLINE void step(Vec (&sum)[R][NV], const float* x, const T* w) {
        Vec weights[NV];
        for (int v = 0; v < NV; ++v) weights[v] = load(w + v * LANES);
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < NV; ++v) sum[r][v] = fma(set1(x[r]), weights[v], sum[r][v]);
        }
    }

    template <class From>
    static void pack(const From* x, int64_t stride, int64_t count, int64_t k, int64_t steps, float* to) {
        pack_floats(x, stride, count, k, steps, to);
    }
};

#if !defined(__AVX512BF16__)
struct BFloat16Product : VectorKind<BFloat16Product, float, uint32_t> {
    static constexpr int K_STEP = 2, X_STEP = 2;

    // First the even inputs and then the odd ones, with a barrier between: the compiler would load all of them before it
    // multiplies, which leaves too few registers for the sums.
    template <int R, int NV>
    static CMODEL_INLINE void step(Vec (&sum)[R][NV], const float* x, const uint32_t* w) {
        half_step(sum, x, w, [](Bits pairs) { return pairs << 16; });
        asm volatile("" ::: "memory");
        half_step(sum, x + R, w, upper_half);
        asm volatile("" ::: "memory");
    }

    static void pack(const BFloat16* x, int64_t stride, int64_t count, int64_t k, int64_t steps, float* to) {
        pack_floats(x, stride, count, k, 2 * steps, to);
    }

private:
    template <int R, int NV, class Half>
    static CMODEL_INLINE void half_step(Vec (&sum)[R][NV], const float* x, const uint32_t* w, const Half& half) {
        Vec weights[NV];
        for (int v = 0; v < NV; ++v) {
            Bits pairs;
            std::memcpy(&pairs, w + v * LANES, sizeof pairs);
            weights[v] = (Vec)half(pairs);
        }
        for (int r = 0; r < R; ++r) {
            Vec input = set1(x[r]);
            for (int v = 0; v < NV; ++v) sum[r][v] = fma(input, weights[v], sum[r][v]);
        }
    }

    static CMODEL_INLINE Bits upper_half(Bits pairs) {
#if defined(__AVX2__) && !defined(__AVX512F__)
        // The mask stays in memory, for the sums take the registers.
        alignas(Bits) static constexpr uint32_t MASK[LANES] = {0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000,
                                                               0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000};
        asm("vpand %1, %0, %0" : "+x"(pairs) : "m"(MASK));
        return pairs;
#else
        return pairs & 0xffff0000;
#endif
    }
};
#elif !defined(__AMX_BF16__)
struct BFloat16Product : VectorKind<BFloat16Product, uint32_t, uint32_t> {
    static constexpr int K_STEP = 2, X_STEP = 1;

    template <int R, int NV>
    static CMODEL_INLINE void step(Vec (&sum)[R][NV], const uint32_t* x, const uint32_t* w) {
        // All weights first and a row at a time: with the rows inside, their inputs would take the registers of the sums.
        __m512bh weights[NV];
        for (int v = 0; v < NV; ++v) weights[v] = (__m512bh)_mm512_loadu_si512(w + v * LANES);
        for (int r = 0; r < R; ++r) {
            __m512bh input = (__m512bh)_mm512_set1_epi32((int)x[r]);
            for (int v = 0; v < NV; ++v) sum[r][v] = (Vec)_mm512_dpbf16_ps((__m512)sum[r][v], input, weights[v]);
        }
    }

    static void pack(const BFloat16* x, int64_t stride, int64_t count, int64_t k, int64_t steps, uint32_t* to) {
        for (int64_t s = 0; s < k / 2; ++s, to += count) {
            for (int64_t r = 0; r < count; ++r) std::memcpy(to + r, x + r * stride + 2 * s, 4);
        }
        for (int64_t s = k / 2; s < steps; ++s, to += count) {
            for (int64_t r = 0; r < count; ++r) to[r] = 2 * s < k ? x[r * stride + k - 1].bits : 0;
        }
    }
};
#else
// Tile registers: 16 rows of 32 inputs times 32 inputs of 16 outputs. Blocks are two tiles tall, missing rows are 0.
struct TileBlocks {
    int64_t rows, blocks;
    TileBlocks() = default;
    explicit TileBlocks(int64_t rows) : rows(rows), blocks(ceil_div(rows, 32)) {}
    int64_t first(int64_t block) const { return block * 32; }
    int64_t count(int64_t block) const { return least<int64_t>(32, padded() - block * 32); }
    int64_t padded() const { return round_up(rows, 16); }
};

struct BFloat16Product {
    using X = uint32_t;
    using W = uint32_t;
    using Blocks = TileBlocks;
    static constexpr int K_STEP = 2, X_STEP = 1;
    static constexpr int64_t PIECE = 256, FIRST_CACHE = 256;
    static constexpr int64_t MOST_FETCHED = 1;

    static void begin() { configure_tiles(); }
    static void end() { _tile_release(); }

    // [steps / 16][count, padded][16 pairs]
    static void pack(const BFloat16* x, int64_t stride, int64_t count, int64_t k, int64_t steps, uint32_t* to) {
        int64_t padded = round_up(count, 16);
        for (int64_t i = 0; i < 2 * steps; i += 32, to += padded * 16) {
            int64_t bytes = clamp(k - i, 0, 32) * int64_t{sizeof *x};
            if (count < padded || bytes < 64) std::memset(to, 0, padded * 64);
            for (int64_t r = 0; r < count; ++r) {
                if (bytes == 64) {
                    std::memcpy(to + r * 16, x + r * stride + i, 64);
                } else {
                    std::memcpy(to + r * 16, x + r * stride + i, bytes);
                }
            }
        }
    }

    static void add(int64_t rows, const X* x, const W* w, int64_t steps, float* c, bool start, Fetch fetch) {
        if (rows > 16) {
            add_tiles<true>(x, w, steps, c, start, fetch);
        } else {
            add_tiles<false>(x, w, steps, c, start, fetch);
        }
    }

private:
    template <bool TWO>
    static void add_tiles(const X* x, const W* w, int64_t steps, float* c, bool start, Fetch fetch) {
        constexpr int ROW = PANEL * sizeof(float), HIGH = 16 * PANEL;
        constexpr int64_t TILE_ROWS = TWO ? 32 : 16;
        asm volatile("" ::: "memory");  // the tile loads below do not tell the compiler what they read
        if (start) {
            _tile_zero(0);
            _tile_zero(1);
            if (TWO) _tile_zero(2);
            if (TWO) _tile_zero(3);
        } else {
            _tile_loadd(0, c, ROW);
            _tile_loadd(1, c + 16, ROW);
            if (TWO) _tile_loadd(2, c + HIGH, ROW);
            if (TWO) _tile_loadd(3, c + HIGH + 16, ROW);
        }
        for (int64_t s = 0; s < steps; s += 16, x += TILE_ROWS * 16, w += 16 * PANEL) {
            const char* next = (const char*)w + fetch.ahead;
            for (int line = 0; fetch.first && line < 32; ++line) __builtin_prefetch(next + line * 64);
            _tile_loadd(4, x, 64);
            _tile_loadd(6, w, ROW);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, w + 16, ROW);
            _tile_dpbf16ps(1, 4, 7);
            if (TWO) _tile_loadd(5, x + 256, 64);
            if (TWO) _tile_dpbf16ps(2, 5, 6);
            if (TWO) _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, ROW);
        _tile_stored(1, c + 16, ROW);
        if (TWO) _tile_stored(2, c + HIGH, ROW);
        if (TWO) _tile_stored(3, c + HIGH + 16, ROW);
        asm volatile("" ::: "memory");
    }
};
#endif

// Steps over k of one packed row.
template <class Kind>
int64_t steps_of(int64_t k) {
    return Kind::K_STEP == 2 ? round_up(k, 32) / 2 : k;
}

// C[panel][padded rows][32] of some panels: the packed rows x times each of them.
template <class Kind>
void panel_products(const typename Kind::Blocks& blocks, const typename Kind::X* x, const typename Kind::W* const* panels,
                    int64_t count, int64_t steps, float* c) {
    auto add = [&](int64_t start, int64_t length, int64_t panel, int64_t block, Fetch fetch) {
        int64_t first = blocks.first(block), rows = blocks.count(block);
        Kind::add(rows, x + (first * steps + start * rows) * Kind::X_STEP, panels[panel] + start * PANEL, length,
                  c + (panel * blocks.padded() + first) * PANEL, start == 0, fetch);
    };
    Kind::begin();
    if (blocks.blocks == 1) {
        for (int64_t panel = 0; panel < count; ++panel) add(0, steps, panel, 0, {true, true, AHEAD});
    } else if (blocks.blocks <= Kind::MOST_FETCHED) {
        // With few blocks the memory is as busy as the products, so two of them fetch the piece after theirs.
        constexpr int64_t piece = Kind::FIRST_CACHE / 2, ahead = piece * PANEL * int64_t{sizeof(typename Kind::W)};
        for (int64_t panel = 0; panel < count; ++panel) {
            for (int64_t start = 0; start < steps; start += piece) {
                for (int64_t block = 0; block < blocks.blocks; ++block) {
                    add(start, least(piece, steps - start), panel, block, {block == 0, block == 1, ahead});
                }
            }
        }
    } else {
        for (int64_t start = 0; start < steps; start += Kind::PIECE) {
            for (int64_t panel = 0; panel < count; ++panel) {
                for (int64_t block = 0; block < blocks.blocks; ++block) {
                    int64_t length = least<int64_t>(Kind::PIECE, steps - start);
                    add(start, length, panel, block, {block == 0, block == 0, AHEAD});
                }
            }
        }
    }
    Kind::end();
}

}  // namespace CMODEL_ISA
