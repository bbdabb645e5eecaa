// What attention over a paged cache is asked for, and that cache.
#pragma once

#include "../simd.h"

namespace CMODEL_ISA {
namespace {

constexpr int64_t TILE = 64;  // positions that are computed with together

#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;
#else
constexpr bool PAIRS = false;
#endif

struct Attention {
    int64_t dtype;
    const void *q, *k, *v;                     // [tokens, heads, head_dim], [tokens, kv_heads, head_dim or v_dim]
    int64_t q_stride, k_stride, v_stride;      // elements between tokens
    int64_t tokens, heads, kv_heads, head_dim, v_dim;
    void* keys;                                // [blocks, kv_heads, head_dim, block_size]
    void* values;                              // [blocks, kv_heads, block_size, v_dim]
    int64_t paired;                            // or pairs of channels, [..., head_dim / 2, block_size, 2], and pairs of
                                               // positions, [..., block_size / 2, v_dim, 2]; see attention_pairs.h
    int64_t blocks, block_size, sequences;
    const int32_t *input_lengths, *cached_lengths, *block_tables;  // [sequences], and [sequences, table_width]
    int64_t table_width;
    const int32_t* slots;                      // [tokens]
    const float *cos, *sin;                    // [tokens, rope_half], or null
    int64_t rope_half, interleaved;
    int64_t window;                            // 0 = none
    float scale;
    void* out;                                 // [tokens, heads, v_dim]
};

inline bool valid(const Attention& a) {
    int64_t tokens = 0;
    for (int64_t s = 0; s < a.sequences; ++s) {
        int64_t length = int64_t{a.input_lengths[s]} + a.cached_lengths[s];
        if (a.input_lengths[s] < 1 || a.cached_lengths[s] < 0) return false;
        if (length > a.table_width * a.block_size) return false;
        for (int64_t b = 0; b < ceil_div(length, a.block_size); ++b) {
            int32_t block = a.block_tables[s * a.table_width + b];
            if (block < 0 || block >= a.blocks) return false;
        }
        tokens += a.input_lengths[s];
    }
    for (int64_t t = 0; t < a.tokens; ++t) {
        if (a.slots[t] < 0 || a.slots[t] >= a.blocks * a.block_size) return false;
    }
    bool whole = a.head_dim % 2 == 0 && a.v_dim % LANES == 0 && a.block_size % LANES == 0;
    if (a.paired && (!PAIRS || a.dtype != BFLOAT16 || !whole)) return false;
    return tokens == a.tokens;
}

// x [dim] turned as a token is: from and into the storage type; floats: [dim] of scratch.
template <class T>
void rotate(const Attention& a, const T* x, int64_t dim, int64_t token, float* floats, T* turned) {
    const float *cos = a.cos + token * a.rope_half, *sin = a.sin + token * a.rope_half;
    int64_t half = a.rope_half;
    if (!a.interleaved) {
        for (int64_t i = 0; i < half; i += LANES) {
            int64_t count = half - i;
            Vec first = load_some(x + i, count), second = load_some(x + half + i, count);
            Vec c = load_some(cos + i, count), s = load_some(sin + i, count);
            store_some(turned + i, first * c - second * s, count);
            store_some(turned + half + i, second * c + first * s, count);
        }
        std::memcpy(turned + 2 * half, x + 2 * half, (dim - 2 * half) * sizeof(T));
        return;
    }
    convert(x, floats, dim);
    for (int64_t i = 0; i < half; ++i) {
        float first = floats[2 * i], second = floats[2 * i + 1];
        floats[2 * i] = first * cos[i] - second * sin[i];
        floats[2 * i + 1] = second * cos[i] + first * sin[i];
    }
    convert(floats, turned, dim);
}

// Asks for the cache lines of a tile before they are needed, a few at a time: a burst of them would stall.
class LineFetch {
public:
    // What a cache keeps of one head in one of its blocks: so many bytes of keys and of values, block after block.
    struct Source {
        const void *keys, *values;
        int64_t key_bytes, value_bytes;
    };

    // Of blocks [block, end) of a sequence with this table; a cache of so many heads, of which this one.
    LineFetch(const Source& source, const int32_t* table, int64_t heads, int64_t head, int64_t block, int64_t end)
        : source_(source), table_(table), heads_(heads), head_(head), block_(block), end_(end) {
        enter();
    }

    void some(int64_t lines) {
        for (; lines > 0 && block_ < end_; --lines) {
            __builtin_prefetch(from_, 0, 2);
            from_ += 64;
            if (from_ < until_) continue;
            block_ += in_values_;
            in_values_ = !in_values_;
            enter();
        }
    }

private:
    void enter() {
        if (block_ >= end_) return;
        int64_t at = int64_t{table_[block_]} * heads_ + head_;
        int64_t bytes = in_values_ ? source_.value_bytes : source_.key_bytes;
        from_ = (const char*)(in_values_ ? source_.values : source_.keys) + at * bytes;
        until_ = from_ + bytes;
    }

    Source source_;
    const int32_t* table_;
    int64_t heads_, head_, block_, end_;
    bool in_values_ = false;
    const char *from_ = nullptr, *until_ = nullptr;
};

template <class T>
struct PagedCache {
    using Element = T;
    static constexpr bool CAUSAL = true;
    const Attention& a;
    int64_t lines = ceil_div((a.head_dim + a.v_dim) * int64_t{sizeof(T)}, 64);  // cache lines of one position

    // The keys and values of a token; row and turned: [head_dim] of scratch.
    void write(int64_t token, float* row, T* turned) const {
        int64_t block = a.slots[token] / a.block_size, offset = a.slots[token] % a.block_size;
        for (int64_t h = 0; h < a.kv_heads; ++h) {
            const T* k = (const T*)a.k + token * a.k_stride + h * a.head_dim;
            if (a.cos != nullptr) {
                rotate(a, k, a.head_dim, token, row, turned);
                k = turned;
            }
            const T* v = (const T*)a.v + token * a.v_stride + h * a.v_dim;
            T* keys = (T*)a.keys + (block * a.kv_heads + h) * a.head_dim * a.block_size;
            T* values = (T*)a.values + (block * a.kv_heads + h) * a.block_size * a.v_dim;
            if (a.paired) {
                for (int64_t d = 0; d < a.head_dim; ++d) keys[(d / 2 * a.block_size + offset) * 2 + d % 2] = k[d];
                for (int64_t d = 0; d < a.v_dim; ++d) values[(offset / 2 * a.v_dim + d) * 2 + offset % 2] = v[d];
            } else {
                for (int64_t d = 0; d < a.head_dim; ++d) keys[d * a.block_size + offset] = k[d];
                std::memcpy(values + offset * a.v_dim, v, a.v_dim * sizeof(T));
            }
        }
    }

    template <class Tile>
    void set_query(Tile& tile, int64_t r, int64_t token, int64_t head, float* row, T* turned) const {
        const T* q = (const T*)a.q + token * a.q_stride + head * a.head_dim;
        if (a.cos != nullptr) {
            rotate(a, q, a.head_dim, token, row, turned);
            q = turned;
        }
        tile.set_query(r, q);
    }

    T* result(int64_t token, int64_t head) const { return (T*)a.out + (token * a.heads + head) * a.v_dim; }

    // Of the tile that begins at start, in a sequence of so many positions.
    LineFetch fetch(const int32_t* table, int64_t kv_head, int64_t start, int64_t end) const {
        int64_t size = a.block_size * int64_t{sizeof(T)}, last = ceil_div(least(end, start + TILE), a.block_size);
        LineFetch::Source source{a.keys, a.values, size * a.head_dim, size * a.v_dim};
        return LineFetch(source, table, a.kv_heads, kv_head, start / a.block_size, last);
    }

    // Positions [start, start + count) of a sequence.
    template <class Tile>
    void load_tile(const int32_t* table, int64_t kv_head, int64_t start, int64_t count, Tile& tile,
                   LineFetch& next) const {
        const T* rows[TILE];
        for (int64_t done = 0; done < count;) {
            int64_t offset = (start + done) % a.block_size, run = least(a.block_size - offset, count - done);
            int64_t at = int64_t{table[(start + done) / a.block_size]} * a.kv_heads + kv_head;
            next.some(ceil_div(run * lines, 2));
            const T* keys = (const T*)a.keys + at * a.head_dim * a.block_size;
            const T* values = (const T*)a.values + at * a.v_dim * a.block_size;
            if constexpr (Tile::READS_PAIRS) {
                if (a.paired) {
                    tile.set_paired_keys(done, (const uint32_t*)keys + offset, a.block_size, run);
                    for (int64_t i = 0; i < run; i += 2) rows[(done + i) / 2] = values + (offset + i) * a.v_dim;
                    done += run;
                    continue;
                }
            }
            tile.set_keys(done, keys + offset, a.block_size, run);
            for (int64_t i = 0; i < run; ++i, ++done) rows[done] = values + (offset + i) * a.v_dim;
        }
        if constexpr (Tile::READS_PAIRS) {
            if (a.paired) return tile.set_paired_values(rows, count);
        }
        tile.set_values(rows, count);
    }
};

}  // namespace
}  // namespace CMODEL_ISA
