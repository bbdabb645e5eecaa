// Multi-head latent attention (https://arxiv.org/abs/2405.04434) over a paged cache of latents: one command.
//
// Queries are taken to latent space, q W_UK of each head, attend there, and what they gather is taken out of it by W_UV:
// for any number of new tokens alike. Both are rounded to the type of activations on the way.

#include "attention_kernel.h"
#include "gemm.h"
#include "latent_cache.h"
#include "latent_tile.h"

namespace CMODEL_ISA {
namespace {

struct LatentAttention {
    Attention attention;  // see latent_cache.h; out: [tokens, heads, out_dim]
    int64_t nope_dim, out_dim;
    const void *up_keys, *up_values;  // W_UK, nope_dim inputs, and W_UV, latents as inputs, of each head as gemm.h packs
};

constexpr int64_t LATENT_BYTES = 1 << 24;   // of the queries in latent space that are kept at a time
constexpr int64_t FEWEST_LANES = 16;        // heads that make a group of their own
constexpr int64_t PRODUCT_ROWS = 128;       // rows of one item of a product, and panels whose sums are kept together
constexpr int64_t PRODUCT_PANELS = 4;

// Y[head] = X[head] W[head] for all heads.
template <class Kind, class T>
struct HeadProducts {
    using X = typename Kind::X;
    using W = typename Kind::W;
    using Blocks = typename Kind::Blocks;
    int64_t heads, in, out;
    const W* weight;  // [heads][panels][steps][32]
    int64_t steps = steps_of<Kind>(in), panels = ceil_div(out, PANEL);

    // For each thread, where there are so many rows.
    int64_t worker_bytes(int64_t rows) const { return x_bytes(rows) + padded(rows) * PRODUCT_PANELS * PANEL * 4; }

    // x and y stand token by token, a head's numbers x_head and y_head behind those of the head before it.
    void run(const T* x, int64_t x_stride, int64_t x_head, int64_t rows, T* y, int64_t y_stride, int64_t y_head,
             char* workers) const {
        int64_t chunks = ceil_div(rows, PRODUCT_ROWS), bytes = worker_bytes(rows);
        int64_t together = clamp(heads * panels * chunks / (4 * thread_count()), 1, panels);
        int64_t parts = ceil_div(panels, together);
        cmodel::parallel_for(chunks * heads * parts, [&](int64_t item, int worker) {
            int64_t part = item % parts, head = item / parts % heads, first = item / parts / heads * PRODUCT_ROWS;
            Blocks blocks(least(PRODUCT_ROWS, rows - first));
            X* packed = (X*)(workers + bytes * worker);
            float* c = (float*)((char*)packed + x_bytes(rows));
            pack(x + first * x_stride + head * x_head, x_stride, blocks, packed);
            T* to = y + first * y_stride + head * y_head;
            int64_t end = least(panels, (part + 1) * together);
            for (int64_t panel = part * together; panel < end; panel += PRODUCT_PANELS) {
                int64_t count = least(PRODUCT_PANELS, end - panel);
                const W* each[PRODUCT_PANELS];
                for (int64_t i = 0; i < count; ++i) each[i] = weight + (head * panels + panel + i) * steps * PANEL;
                panel_products<Kind>(blocks, packed, each, count, steps, c);
                write(c, blocks, panel, count, to, y_stride);
            }
        });
    }

private:
    static int64_t padded(int64_t rows) { return Blocks(least(PRODUCT_ROWS, rows)).padded(); }
    int64_t x_bytes(int64_t rows) const {
        return round_up(padded(rows) * steps * Kind::X_STEP * int64_t{sizeof(X)}, 64);
    }

    void pack(const T* x, int64_t stride, const Blocks& blocks, X* packed) const {
        for (int64_t block = 0; block < blocks.blocks; ++block) {
            int64_t row = blocks.first(block), count = least(blocks.count(block), blocks.rows - row);
            Kind::pack(x + row * stride, stride, count, in, steps, packed + row * steps * Kind::X_STEP);
        }
    }

    void write(const float* c, const Blocks& blocks, int64_t panel, int64_t count, T* y, int64_t stride) const {
        for (int64_t i = 0; i < count; ++i) {
            int64_t column = (panel + i) * PANEL;
            const float* sums = c + i * blocks.padded() * PANEL;
            for (int64_t r = 0; r < blocks.rows; ++r, sums += PANEL) {
                T* to = y + r * stride + column;
                for (int64_t j = 0; j < least<int64_t>(PANEL, out - column); j += LANES) {
                    store_some(to + j, load(sums + j), out - column - j);
                }
            }
        }
    }
};

// Into how many groups of one size the heads are cut, so that a group shares a tile with little more than ITEM_LANES.
int64_t groups_of(int64_t heads) {
    for (int64_t groups = 1; heads / groups >= FEWEST_LANES; ++groups) {
        if (heads % groups == 0 && heads / groups <= ITEM_LANES) return groups;
    }
    return 1;
}

template <class Kind, class T, class Tile>
int run(const LatentAttention& l) {
    using Products = HeadProducts<Kind, T>;
    using W = typename Kind::W;
    Attention a = l.attention;
    a.kv_heads = groups_of(a.heads);
    int64_t latent = a.v_dim, rope = a.head_dim - latent, row = a.heads * latent;
    int64_t most_rows = clamp(LATENT_BYTES / (row * int64_t{sizeof(T)}), 16, a.tokens);
    Products to_latents{a.heads, l.nope_dim, latent, (const W*)l.up_keys};
    Products to_values{a.heads, latent, l.out_dim, (const W*)l.up_values};
    AttentionKernel<LatentCache<T>, Tile> kernel{a, {a, l.nope_dim, nullptr, 0}};
    auto layout = kernel.layout();
    int64_t kept = round_up(most_rows * row * int64_t{sizeof(T)}, 64);
    int64_t workers = most(to_latents.worker_bytes(most_rows), to_values.worker_bytes(most_rows)) * thread_count();
    char* memory = (char*)cmodel::scratch(kept + most(layout.bytes, workers));
    if (memory == nullptr) return NO_MEMORY;

    T* latents = kernel.cache.latents = (T*)memory;
    for (int64_t first = 0; first < a.tokens; first += most_rows) {
        int64_t rows = least(most_rows, a.tokens - first);
        const T* q = (const T*)a.q + first * a.q_stride;
        to_latents.run(q, a.q_stride, l.nope_dim + rope, rows, latents, row, latent, memory + kept);
        kernel.cache.first = first;
        kernel.run(layout, first, first + rows, memory + kept);
        T* out = (T*)a.out + first * a.heads * l.out_dim;
        to_values.run(latents, row, latent, rows, out, a.heads * l.out_dim, l.out_dim, memory + kept);
    }
    return DONE;
}

}  // namespace

// BAD_ARGUMENT: lengths, blocks or slots that do not fit the cache or the tables.
CMODEL_EXPORT(paged_latent_attention)(const LatentAttention& l) {
    if (!valid(l.attention)) return BAD_ARGUMENT;
    if (l.attention.tokens == 0) return DONE;
    switch (l.attention.dtype) {
#if defined(__AVX512BF16__)
        case BFLOAT16: return run<BFloat16Product, BFloat16, PairLatentTile>(l);
#else
        case BFLOAT16: return run<BFloat16Product, BFloat16, FloatLatentTile<BFloat16>>(l);
#endif
        case FLOAT16: return run<Product<Float16>, Float16, FloatLatentTile<Float16>>(l);
        case FLOAT32: return run<Product<float>, float, FloatLatentTile<float>>(l);
    }
    return BAD_ARGUMENT;
}

}  // namespace CMODEL_ISA
