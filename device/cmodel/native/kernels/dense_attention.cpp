// Attention in both directions within segments, as vision towers compute it.
//
// First q, k and v are rotated and put where they are read in order; then segments are sequences whose rows see all of
// theirs. Where every segment is one tile, both are done for some heads of one at a time, which the caches then hold. A
// row's bits depend on its segment alone.

#include "attention_kernel.h"
#include "attention_pairs.h"
#include "attention_tile.h"

namespace CMODEL_ISA {
namespace {

constexpr int64_t HEADS_OF_ITEM = 8;  // that are prepared together

struct DenseAttention {
    int64_t dtype;
    const void *q, *k, *v;                 // [tokens, heads, head_dim]
    int64_t q_stride, k_stride, v_stride;  // elements between tokens
    int64_t tokens, heads, head_dim, segments;
    const int32_t* lengths;                // [segments]
    const float *cos, *sin;                // [tokens, rope_half], or null
    int64_t rope_half;
    float scale;
    void* out;                             // [tokens, heads, head_dim]
};

// Positions of a segment that are computed with together: tokens [first, first + count).
struct Span {
    int64_t segment, first, count;
};

// Of Attention, keys are [heads][tiles][head_dim][positions of the tile] and values [heads][tokens][head_dim]; queries stand
// where their results will; the block table of a sequence holds its first token.
template <class T>
struct DenseCache {
    using Element = T;
    static constexpr bool CAUSAL = false;
    const Attention& a;
    int64_t lines = 0;

    struct NoFetch {
        void some(int64_t) const {}
    };
    NoFetch fetch(const int32_t*, int64_t, int64_t, int64_t) const { return {}; }

    T* keys(int64_t head, int64_t token) const { return (T*)a.keys + (head * a.tokens + token) * a.head_dim; }
    T* values(int64_t head, int64_t token) const { return (T*)a.values + (head * a.tokens + token) * a.head_dim; }

    // Of heads [head, end); floats [head_dim] and turned [HEADS_OF_ITEM][TILE][head_dim] are scratch. Rows of q, k and v
    // are read as they stand in memory, for their heads are far from each other's.
    void write(const Span& span, int64_t head, int64_t end, float* floats, T* turned) const {
        int64_t dim = a.head_dim, bytes = dim * int64_t{sizeof(T)};
        for (int64_t i = 0; i < span.count; ++i) {
            int64_t token = span.first + i;
            const T *q = (const T*)a.q + token * a.q_stride, *k = (const T*)a.k + token * a.k_stride;
            const T* v = (const T*)a.v + token * a.v_stride;
            for (int64_t h = head; h < end; ++h) put(q + h * dim, token, floats, result(token, h));
            for (int64_t h = head; h < end; ++h) put(k + h * dim, token, floats, turned + ((h - head) * TILE + i) * dim);
            for (int64_t h = head; h < end; ++h) std::memcpy(values(h, token), v + h * dim, bytes);
        }
        for (int64_t h = head; h < end; ++h) {
            transpose_rows(turned + (h - head) * TILE * dim, span.count, keys(h, span.first));
        }
    }

    template <class Tile>
    void set_query(Tile& tile, int64_t r, int64_t token, int64_t head, float*, T*) const {
        tile.set_query(r, result(token, head));
    }

    T* result(int64_t token, int64_t head) const { return (T*)a.out + (token * a.heads + head) * a.head_dim; }

    template <class Tile>
    void load_tile(const int32_t* table, int64_t head, int64_t start, int64_t count, Tile& tile, NoFetch) const {
        const T* rows[TILE];
        for (int64_t i = 0; i < count; ++i) rows[i] = values(head, table[0] + start + i);
        tile.set_keys(0, keys(head, table[0] + start), count, count);
        tile.set_values(rows, count);
    }

private:
    void put(const T* x, int64_t token, float* floats, T* to) const {
        if (a.cos == nullptr) {
            std::memcpy(to, x, a.head_dim * sizeof(T));
        } else {
            rotate(a, x, a.head_dim, token, floats, to);
        }
    }

    // [head_dim][count] of [count][head_dim].
    void transpose_rows(const T* rows, int64_t count, T* to) const {
        typedef decltype(bits_of(T{})) Square __attribute__((vector_size(EDGE * sizeof(T))));
        int64_t dim = a.head_dim, whole_rows = count / EDGE * EDGE, whole = dim / EDGE * EDGE;
        for (int64_t i = 0; i < whole_rows; i += EDGE) {
            for (int64_t d = 0; d < whole; d += EDGE) {
                Square square[EDGE];
                for (int r = 0; r < EDGE; ++r) std::memcpy(&square[r], rows + (i + r) * dim + d, sizeof square[r]);
                transpose(square);
                for (int r = 0; r < EDGE; ++r) std::memcpy(to + (d + r) * count + i, &square[r], sizeof square[r]);
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t d = i < whole_rows ? whole : 0; d < dim; ++d) to[d * count + i] = rows[i * dim + d];
        }
    }

    static uint16_t bits_of(BFloat16);
    static uint16_t bits_of(Float16);
    static uint32_t bits_of(float);
};

// Lists that describe the segments.
struct Segments {
    int32_t *starts, *zeros;  // [segments]: the first token of each, and how many tokens of it are cached
    Span* spans;              // all tiles
    int64_t count, longest;   // of spans, and tokens of the longest segment

    static int64_t bytes(const DenseAttention& d) {
        int64_t spans = d.tokens / TILE + d.segments;
        return round_up(2 * d.segments * int64_t{sizeof(int32_t)}, 64) + spans * int64_t{sizeof(Span)};
    }

    Segments(const DenseAttention& d, char* memory)
        : starts((int32_t*)memory),
          zeros(starts + d.segments),
          spans((Span*)(memory + round_up(2 * d.segments * int64_t{sizeof(int32_t)}, 64))),
          count(0),
          longest(0) {
        int64_t token = 0;
        for (int64_t s = 0; s < d.segments; ++s) {
            int64_t end = token + d.lengths[s];
            longest = most<int64_t>(longest, d.lengths[s]);
            starts[s] = (int32_t)token;
            zeros[s] = 0;
            for (; token < end; token += spans[count++].count) spans[count] = {s, token, least(TILE, end - token)};
        }
    }
};

template <class T, class Tile>
int attend(const DenseAttention& d) {
    char* lists = (char*)cmodel::scratch(Segments::bytes(d), 1);
    if (lists == nullptr) return NO_MEMORY;
    Segments segments(d, lists);
    Attention a{};
    a.q = d.q, a.k = d.k, a.v = d.v;
    a.q_stride = d.q_stride, a.k_stride = d.k_stride, a.v_stride = d.v_stride;
    a.tokens = d.tokens, a.heads = a.kv_heads = d.heads, a.head_dim = a.v_dim = d.head_dim;
    a.sequences = d.segments, a.input_lengths = d.lengths, a.cached_lengths = segments.zeros;
    a.block_tables = segments.starts, a.table_width = 1;
    a.cos = d.cos, a.sin = d.sin, a.rope_half = d.rope_half, a.scale = d.scale, a.out = d.out;

    AttentionKernel<DenseCache<T>, Tile> kernel{a, {a}};
    auto layout = kernel.layout();
    int64_t kept = round_up(d.tokens * d.heads * d.head_dim * int64_t{sizeof(T)}, 64);
    int64_t floats = round_up(d.head_dim * int64_t{sizeof(float)}, 64);
    int64_t worker = floats + round_up(HEADS_OF_ITEM * TILE * d.head_dim * int64_t{sizeof(T)}, 64);
    char* memory = (char*)cmodel::scratch(2 * kept + worker * thread_count() + layout.bytes);
    if (memory == nullptr) return NO_MEMORY;
    a.keys = memory, a.values = memory + kept;
    char *writers = memory + 2 * kept, *rest = writers + worker * thread_count();

    bool one_tile = segments.longest <= TILE;
    int64_t groups = ceil_div(d.heads, HEADS_OF_ITEM);
    parallel_for(segments.count * groups, [&](int64_t item, int index) {
        const Span& span = segments.spans[item / groups];
        char* mine = writers + worker * index;
        int64_t head = item % groups * HEADS_OF_ITEM, end = least(d.heads, head + HEADS_OF_ITEM);
        kernel.cache.write(span, head, end, (float*)mine, (T*)(mine + floats));
        for (; one_tile && head < end; ++head) {
            auto workspace = kernel.workspace(rest + layout.lists + layout.worker * index);
            kernel.attend_piece({span.segment, head, span.first, 0, span.count, 0, span.count}, workspace);
        }
    });
    if (!one_tile) kernel.attend_tokens(layout, 0, d.tokens, rest);
    return DONE;
}

bool valid(const DenseAttention& d) {
    int64_t tokens = 0;
    for (int64_t s = 0; s < d.segments; ++s) {
        if (d.lengths[s] < 0) return false;
        tokens += d.lengths[s];
    }
    return tokens == d.tokens && 2 * d.rope_half <= d.head_dim;
}

}  // namespace

// BAD_ARGUMENT: lengths that do not sum to tokens, or a rotation of more channels than there are.
CMODEL_EXPORT(dense_attention)(const DenseAttention& d) {
    if (!valid(d)) return BAD_ARGUMENT;
    if (d.tokens == 0) return DONE;
    switch (d.dtype) {
#if defined(__AVX512BF16__)
        case BFLOAT16: return attend<BFloat16, BFloat16Tile>(d);
#else
        case BFLOAT16: return attend<BFloat16, FloatTile<BFloat16>>(d);
#endif
        case FLOAT16: return attend<Float16, FloatTile<Float16>>(d);
        case FLOAT32: return attend<float, FloatTile<float>>(d);
    }
    return BAD_ARGUMENT;
}

}  // namespace CMODEL_ISA
