// Causal attention over a paged cache, with rotation of q and k and the write of k and v: one command.
//
// For a query row and head the softmax runs online over tiles of TILE positions, which begin at multiples of TILE
// (https://arxiv.org/abs/2205.14135), in spans of SPAN positions that are merged in order. Every product is one chain of
// additions, so the bits of a row depend on its own position and cache alone, not on the rows that share its tiles nor
// on the threads that share its spans.

#include "../threads.h"
#include "attention_pairs.h"
#include "attention_tile.h"

namespace CMODEL_ISA {
namespace {

using cmodel::parallel_for;
using cmodel::scratch;
using cmodel::thread_count;

constexpr int64_t ITEM_LANES = 64;    // query rows times heads that share a tile, unless one row has more
constexpr int64_t WRITE_TOKENS = 16;  // tokens whose keys and values one item writes
constexpr int64_t SPAN = 16 * TILE;
constexpr int64_t ITEMS_OF_THREAD = 4;  // with fewer than these, threads share the spans of a row
#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;
#else
constexpr bool PAIRS = false;
#endif
constexpr float INFINITE = __builtin_huge_valf();

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
    const float *cos, *sin;                    // [rope_positions, rope_half], or null
    int64_t rope_positions, rope_half;
    int64_t interleaved;
    int64_t window;                            // 0 = none
    float scale;
    void* out;                                 // [tokens, heads, v_dim]
};

bool valid(const Attention& a) {
    int64_t tokens = 0;
    for (int64_t s = 0; s < a.sequences; ++s) {
        int64_t length = int64_t{a.input_lengths[s]} + a.cached_lengths[s];
        if (a.input_lengths[s] < 1 || a.cached_lengths[s] < 0) return false;
        if (length > a.table_width * a.block_size || (a.cos != nullptr && length > a.rope_positions)) return false;
        for (int64_t b = 0; b < ceil_div(length, a.block_size); ++b) {
            int32_t block = a.block_tables[s * a.table_width + b];
            if (block < 0 || block >= a.blocks) return false;
        }
        tokens += a.input_lengths[s];
    }
    for (int64_t t = 0; t < a.tokens; ++t) {
        if (a.slots[t] < 0 || a.slots[t] >= a.blocks * a.block_size) return false;
    }
    if (a.paired && (!PAIRS || a.dtype != BFLOAT16 || a.head_dim % 2 || a.v_dim % LANES || a.block_size % LANES)) return false;
    return tokens == a.tokens;
}

// x [dim] turned to a position: from and into the storage type, through floats [dim] of scratch.
template <class T>
void rotate(const Attention& a, const T* x, int64_t position, float* floats, T* turned) {
    const float *cos = a.cos + position * a.rope_half, *sin = a.sin + position * a.rope_half;
    int64_t dim = a.head_dim, half = a.rope_half, apart = a.interleaved ? 1 : half, step = a.interleaved ? 2 : 1;
    convert(x, floats, dim);
    for (int64_t i = 0; i < half; ++i) {
        float first = floats[i * step], second = floats[i * step + apart];
        floats[i * step] = first * cos[i] - second * sin[i];
        floats[i * step + apart] = second * cos[i] + first * sin[i];
    }
    convert(floats, turned, dim);
}

template <class T, class Tile>
struct Kernel {
    const Attention& a;
    int64_t group = a.heads / a.kv_heads, v_pad = round_up(a.v_dim, LANES);
    int64_t item_rows = most<int64_t>(1, ITEM_LANES / group), lanes = item_rows * group;
    int64_t lines = ceil_div((a.head_dim + a.v_dim) * int64_t{sizeof(T)}, 64);  // cache lines of one position

    // The softmax over some positions so far.
    struct Partial {
        float* sums;           // [lanes][v_pad]
        float *peak, *total;   // [lanes]: the largest score, and the sum of exponentials below it

        Partial(float* memory, int64_t lanes, int64_t v_pad)
            : sums(memory), peak(sums + Tile::rows_in_memory(lanes) * v_pad), total(peak + lanes) {}
    };

    // What one thread works in.
    struct Workspace {
        Partial whole, span;
        float* row;   // [head_dim]
        T* turned;    // [head_dim]
        void* tile;
    };

    // A query row, or some of one sequence, with the heads that share a kv head.
    struct Piece {
        int64_t sequence, kv_head;
        int64_t token, position;  // of its first row
        int64_t lanes, first, end;  // positions that it sees: [first, end), from the start of a tile

        int64_t first_span() const { return first / SPAN; }
        int64_t spans() const { return ceil_div(end, SPAN) - first_span(); }
    };

    int64_t partial_floats(int64_t lanes) const {
        return round_up(Tile::rows_in_memory(lanes) * v_pad + 2 * lanes, LANES);
    }

    int64_t workspace_bytes() const {
        int64_t floats = 2 * partial_floats(lanes) + round_up(2 * a.head_dim, LANES);
        return floats * int64_t{sizeof(float)} + round_up(Tile::bytes(lanes, a.head_dim, a.v_dim), 64);
    }

    Workspace workspace(char* memory) const {
        float *whole = (float*)memory, *span = whole + partial_floats(lanes), *row = span + partial_floats(lanes);
        void* tile = row + round_up(2 * a.head_dim, LANES);
        return {Partial(whole, lanes, v_pad), Partial(span, lanes, v_pad), row, (T*)(row + a.head_dim), tile};
    }

    void write(int64_t token, int64_t position, const Workspace& w) const {
        int64_t block = a.slots[token] / a.block_size, offset = a.slots[token] % a.block_size;
        for (int64_t h = 0; h < a.kv_heads; ++h) {
            const T* k = (const T*)a.k + token * a.k_stride + h * a.head_dim;
            if (a.cos != nullptr) {
                rotate(a, k, position, w.row, w.turned);
                k = w.turned;
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

    // Asks for the cache lines of a tile before they are needed, a few at a time: a burst of them would stall.
    class Fetch {
    public:
        Fetch(const Kernel& kernel, const int32_t* table, int64_t kv_head, int64_t start, int64_t end)
            : kernel_(kernel),
              table_(table),
              kv_head_(kv_head),
              block_(start / kernel.a.block_size),
              end_(ceil_div(least(end, start + TILE), kernel.a.block_size)) {
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
            const Attention& a = kernel_.a;
            int64_t at = (int64_t{table_[block_]} * a.kv_heads + kv_head_) * a.block_size;
            int64_t dim = in_values_ ? a.v_dim : a.head_dim;
            from_ = (const char*)((const T*)(in_values_ ? a.values : a.keys) + at * dim);
            until_ = from_ + a.block_size * dim * int64_t{sizeof(T)};
        }

        const Kernel& kernel_;
        const int32_t* table_;
        int64_t kv_head_, block_, end_;
        bool in_values_ = false;
        const char *from_ = nullptr, *until_ = nullptr;
    };

    // Positions [start, start + count) of a sequence.
    void load_tile(const int32_t* table, int64_t kv_head, int64_t start, int64_t count, Tile& tile, Fetch& next) const {
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

    // One row's step of the online softmax: scores become probabilities below the new peak, sums are scaled to it.
    // Positions outside [low, high) of the tile are not seen.
    void soften(Tile& tile, int64_t row, int64_t low, int64_t high, const Partial& to) const {
        const float* scores = tile.scores(row);
        Vec v[TILE / LANES], best = set1(-INFINITE), total = {};
        for (int i = 0; i < TILE / LANES; ++i) v[i] = load(scores + i * LANES) * a.scale;
        if (low > 0 || high < TILE) {
            for (int64_t i = 0; i < TILE; ++i) {
                if (i < low || i >= high) v[i / LANES][i % LANES] = -INFINITE;
            }
        }
        for (Vec each : v) best = best < each ? each : best;
        float highest = most(to.peak[row], largest(best));
        float factor = highest == to.peak[row] ? 1.f : exp(set1(to.peak[row] - highest))[0];
        for (int i = 0; i < TILE / LANES; ++i) total += tile.keep(row, i * LANES, exp(v[i] - highest));
        to.total[row] = to.total[row] * factor + sum(total);
        to.peak[row] = highest;
        if (factor != 1.f) scale_row(to.sums + row * v_pad, factor);
    }

    void scale_row(float* sums, float factor) const {
        for (int64_t i = 0; i < v_pad; i += LANES) store(sums + i, load(sums + i) * factor);
    }

    // The piece's queries into the tile.
    void set_queries(const Piece& piece, const Workspace& w, Tile& tile) const {
        for (int64_t r = 0; r < piece.lanes; ++r) {
            int64_t head = piece.kv_head * group + r % group;
            const T* q = (const T*)a.q + (piece.token + r / group) * a.q_stride + head * a.head_dim;
            if (a.cos != nullptr) {
                rotate(a, q, piece.position + r / group, w.row, w.turned);
                q = w.turned;
            }
            tile.set_query(r, q);
        }
    }

    // The softmax over positions [start, end), which lie in one span.
    void attend(const Piece& piece, int64_t start, int64_t end, Tile& tile, const Partial& to) const {
        for (int64_t r = 0; r < piece.lanes; ++r) {
            to.peak[r] = -INFINITE;
            to.total[r] = 0;
        }
        std::memset(to.sums, 0, Tile::rows_in_memory(piece.lanes) * v_pad * sizeof(float));
        const int32_t* table = a.block_tables + piece.sequence * a.table_width;
        for (; start < end; start += TILE) {
            int64_t count = least(TILE, end - start);
            Fetch next(*this, table, piece.kv_head, start + TILE, piece.end);
            load_tile(table, piece.kv_head, start, count, tile, next);
            tile.score();
            for (int64_t r = 0; r < piece.lanes; ++r) {
                int64_t at = piece.position + r / group, low = a.window > 0 ? at - a.window + 1 - start : 0;
                next.some(ceil_div(TILE * lines, 2 * piece.lanes));
                if (low >= count || at < start) {
                    for (int64_t i = 0; i < TILE; i += LANES) tile.keep(r, i, Vec{});  // it sees nothing of this tile
                } else {
                    soften(tile, r, low, at + 1 - start, to);
                }
            }
            tile.add(to.sums);
        }
    }

    // Of span `span` of a piece, the first being 0.
    void attend_span(const Piece& piece, int64_t span, Tile& tile, const Partial& to) const {
        int64_t start = (piece.first_span() + span) * SPAN;
        attend(piece, most(start, piece.first), least(start + SPAN, piece.end), tile, to);
    }

    // Add the softmax over the positions that follow.
    void merge(const Partial& whole, const Partial& next, int64_t lanes) const {
        for (int64_t r = 0; r < lanes; ++r) {
            float highest = most(whole.peak[r], next.peak[r]);
            if (highest == -INFINITE) continue;
            float before = whole.peak[r] == highest ? 1.f : exp(set1(whole.peak[r] - highest))[0];
            float after = next.peak[r] == highest ? 1.f : exp(set1(next.peak[r] - highest))[0];
            float *sums = whole.sums + r * v_pad, *added = next.sums + r * v_pad;
            for (int64_t i = 0; i < v_pad; i += LANES) {
                store(sums + i, load(sums + i) * before + load(added + i) * after);
            }
            whole.total[r] = whole.total[r] * before + next.total[r] * after;
            whole.peak[r] = highest;
        }
    }

    void finish(const Piece& piece, const Partial& whole) const {
        for (int64_t r = 0; r < piece.lanes; ++r) {
            int64_t head = piece.kv_head * group + r % group;
            T* out = (T*)a.out + ((piece.token + r / group) * a.heads + head) * a.v_dim;
            for (int64_t d = 0; d < a.v_dim; d += LANES) {
                store_some(out + d, load(whole.sums + r * v_pad + d) / whole.total[r], a.v_dim - d);
            }
        }
    }

    void attend_piece(const Piece& piece, const Workspace& w) const {
        Tile tile(w.tile, piece.lanes, a.head_dim, a.v_dim);
        Tile::begin();
        set_queries(piece, w, tile);
        for (int64_t span = 0; span < piece.spans(); ++span) {
            attend_span(piece, span, tile, span == 0 ? w.whole : w.span);
            if (span > 0) merge(w.whole, w.span, piece.lanes);
        }
        Tile::end();
        finish(piece, w.whole);
    }

    // The batch cut into pieces of at most item_rows rows; `tokens` and `pieces` count those before each sequence.
    struct Plan {
        int64_t *tokens, *pieces, *positions;
    };

    Piece piece_of(const Plan& plan, int64_t item) const {
        int64_t index = item / a.kv_heads, sequence = 0;
        while (plan.pieces[sequence + 1] <= index) ++sequence;
        int64_t first = (index - plan.pieces[sequence]) * item_rows;
        int64_t rows = least(item_rows, a.input_lengths[sequence] - first);
        int64_t position = a.cached_lengths[sequence] + first;
        int64_t seen = a.window > 0 ? most<int64_t>(0, position - a.window + 1) : 0;
        return {sequence, item % a.kv_heads, plan.tokens[sequence] + first, position,
                rows * group, seen / TILE * TILE, position + rows};
    }

    // All spans of a few pieces of one row each: threads take spans by turns, then pieces to merge theirs.
    int run_spans(const Plan& plan, int64_t items, int64_t most_spans, char* workers, int64_t bytes, float* memory) const {
        int64_t floats = partial_floats(group);
        auto partial = [&](int64_t item, int64_t span) {
            return Partial(memory + (item * most_spans + span) * floats, group, v_pad);
        };
        parallel_for(items * most_spans, [&](int64_t index, int worker) {
            int64_t item = index / most_spans, span = index % most_spans;
            Piece piece = piece_of(plan, item);
            if (span >= piece.spans()) return;
            Workspace w = workspace(workers + bytes * worker);
            Tile tile(w.tile, piece.lanes, a.head_dim, a.v_dim);
            Tile::begin();
            set_queries(piece, w, tile);
            attend_span(piece, span, tile, partial(item, span));
            Tile::end();
        });
        for (int64_t item = 0; item < items; ++item) {
            Piece piece = piece_of(plan, item);
            for (int64_t span = 1; span < piece.spans(); ++span) {
                merge(partial(item, 0), partial(item, span), group);
            }
            finish(piece, partial(item, 0));
        }
        return DONE;
    }

    int run() const {
        int64_t lists = round_up((2 * (a.sequences + 1) + a.tokens) * int64_t{sizeof(int64_t)}, 64);
        int64_t bytes = workspace_bytes(), longest = 0;
        for (int64_t s = 0; s < a.sequences; ++s) longest = most<int64_t>(longest, a.cached_lengths[s] + 1);
        int64_t most_spans = ceil_div(longest, SPAN), items = a.sequences * a.kv_heads;
        bool share = a.tokens == a.sequences && most_spans > 1 && items < ITEMS_OF_THREAD * thread_count();
        int64_t partials = share ? items * most_spans * partial_floats(group) : 0;
        char* memory = (char*)scratch(lists + bytes * thread_count() + partials * int64_t{sizeof(float)});
        if (memory == nullptr) return NO_MEMORY;

        int64_t *tokens = (int64_t*)memory, *pieces = tokens + a.sequences + 1, *positions = pieces + a.sequences + 1;
        Plan plan{tokens, pieces, positions};
        tokens[0] = pieces[0] = 0;
        for (int64_t s = 0; s < a.sequences; ++s) {
            tokens[s + 1] = tokens[s] + a.input_lengths[s];
            pieces[s + 1] = pieces[s] + ceil_div(a.input_lengths[s], item_rows);
            for (int64_t i = 0; i < a.input_lengths[s]; ++i) positions[tokens[s] + i] = a.cached_lengths[s] + i;
        }
        char* workers = memory + lists;
        parallel_for(ceil_div(a.tokens, WRITE_TOKENS), [&](int64_t item, int worker) {
            for (int64_t t = item * WRITE_TOKENS; t < least(a.tokens, (item + 1) * WRITE_TOKENS); ++t) {
                write(t, positions[t], workspace(workers + bytes * worker));
            }
        });
        if (share) {
            return run_spans(plan, items, most_spans, workers, bytes, (float*)(workers + bytes * thread_count()));
        }
        // The longest rows are the last ones of the last sequences: they go first, so that no thread is left with one.
        items = pieces[a.sequences] * a.kv_heads;
        parallel_for(items, [&](int64_t item, int worker) {
            attend_piece(piece_of(plan, items - 1 - item), workspace(workers + bytes * worker));
        });
        return DONE;
    }
};

}  // namespace

// BAD_ARGUMENT: lengths, blocks or slots that do not fit the cache or the tables.
CMODEL_EXPORT(paged_attention)(const Attention& a) {
    if (!valid(a)) return BAD_ARGUMENT;
    switch (a.dtype) {
#if defined(__AVX512BF16__)
        case BFLOAT16: return Kernel<BFloat16, BFloat16Tile>{a}.run();
#else
        case BFLOAT16: return Kernel<BFloat16, FloatTile<BFloat16>>{a}.run();
#endif
        case FLOAT16: return Kernel<Float16, FloatTile<Float16>>{a}.run();
        case FLOAT32: return Kernel<float, FloatTile<float>>{a}.run();
    }
    return BAD_ARGUMENT;
}

}  // namespace CMODEL_ISA
