// The cache of latent attention: the latent of a token is key and value of all heads, the rotated key stands beside it.
//
// Of Attention, v_dim is the size of a latent and head_dim that of latent and rotated key together; k are latents
// [tokens, v_dim], v keys to be rotated, [tokens, head_dim - v_dim]; keys and values are arrays of blocks of them,
// [blocks, block_size, ...]. kv_heads is into how many groups the heads are cut; all groups see the same.
#pragma once

#include "attention_cache.h"

namespace CMODEL_ISA {
namespace {

template <class T>
struct LatentCache {
    using Element = T;
    static constexpr bool CAUSAL = true;
    const Attention& a;
    int64_t nope_dim;  // of q [tokens, heads, nope_dim + rope_dim]
    T* latents;        // [tokens, heads, v_dim]: queries in latent space, which results take the place of
    int64_t first;     // the first token of those
    int64_t rope_dim = a.head_dim - a.v_dim;
    int64_t lines = ceil_div(a.head_dim * int64_t{sizeof(T)}, 64);

    void write(int64_t token, float* row, T* turned) const {
        const T *latent = (const T*)a.k + token * a.k_stride, *key = (const T*)a.v + token * a.v_stride;
        std::memcpy((T*)a.keys + a.slots[token] * a.v_dim, latent, a.v_dim * sizeof(T));
        rotate(a, key, rope_dim, token, row, turned);
        std::memcpy((T*)a.values + a.slots[token] * rope_dim, turned, rope_dim * sizeof(T));
    }

    template <class Tile>
    void set_query(Tile& tile, int64_t r, int64_t token, int64_t head, float* row, T* turned) const {
        const T* q = (const T*)a.q + token * a.q_stride + head * (nope_dim + rope_dim);
        rotate(a, q + nope_dim, rope_dim, token, row, turned);
        tile.set_query(r, result(token, head), turned);
    }

    T* result(int64_t token, int64_t head) const { return latents + ((token - first) * a.heads + head) * a.v_dim; }

    LineFetch fetch(const int32_t* table, int64_t, int64_t start, int64_t end) const {
        int64_t size = a.block_size * int64_t{sizeof(T)}, last = ceil_div(least(end, start + TILE), a.block_size);
        LineFetch::Source source{a.keys, a.values, size * a.v_dim, size * rope_dim};
        return LineFetch(source, table, 1, 0, start / a.block_size, last);
    }

    template <class Tile>
    void load_tile(const int32_t* table, int64_t, int64_t start, int64_t count, Tile& tile, LineFetch& next) const {
        for (int64_t done = 0; done < count;) {
            int64_t offset = (start + done) % a.block_size, run = least(a.block_size - offset, count - done);
            int64_t slot = int64_t{table[(start + done) / a.block_size]} * a.block_size + offset;
            for (int64_t i = 0; i < run; ++i, ++slot, ++done) {
                next.some(ceil_div(lines, 2));
                tile.set_row(done, (const T*)a.keys + slot * a.v_dim, (const T*)a.values + slot * rope_dim);
            }
        }
        tile.end_rows(count);
    }
};

}  // namespace
}  // namespace CMODEL_ISA
