// Attention: rows of queries with tiles of positions.
//
// For a query row and head the softmax runs online over tiles of TILE positions, which begin at multiples of TILE
// (https://arxiv.org/abs/2205.14135), in spans of SPAN positions that are merged in order. Every product is one chain
// of additions, so the bits of a row depend on its own position and cache alone, not on the rows that share its tiles
// nor on the threads that share its spans.
#pragma once

#include "../threads.h"
#include "attention_cache.h"

namespace CMODEL_ISA {
namespace {

using cmodel::parallel_for;
using cmodel::thread_count;

constexpr int64_t ITEM_LANES = 64;    // query rows times heads that share a tile, unless one row has more
constexpr int64_t WRITE_TOKENS = 16;  // tokens whose keys and values one item writes
constexpr int64_t SPAN = 16 * TILE;
constexpr int64_t ITEMS_OF_THREAD = 4;  // with fewer than these, threads share the spans of a row
constexpr float INFINITE = __builtin_huge_valf();

// A cache knows:
//   CAUSAL                      whether a row sees what comes before it in its sequence, or all of that
//   write(token, row, turned)   puts what is new of a token into its slot; row and turned are [head_dim] of scratch
//   set_query(tile, r, ...)     gives the tile the query of its row r
//   result(token, head)         where the result goes, [v_dim]
//   lines                       cache lines of one position
//   fetch(...)                  asks for those of a tile
//   load_tile(...)              gives the tile some positions
template <class Cache, class Tile>
struct AttentionKernel {
    using T = typename Cache::Element;
    const Attention& a;
    Cache cache;
    float scale = a.scale * 1.44269504f;  // scores are powers of 2
    int64_t group = a.heads / a.kv_heads, v_pad = round_up(a.v_dim, LANES);
    int64_t item_rows = most<int64_t>(1, ITEM_LANES / group), lanes = item_rows * group;

    // The softmax over some positions so far.
    struct Partial {
        float* sums;          // [lanes][v_pad]
        float *peak, *total;  // [lanes]: the largest score, and the sum of exponentials below it

        Partial(float* memory, int64_t lanes, int64_t v_pad)
            : sums(memory), peak(sums + Tile::rows_in_memory(lanes) * v_pad), total(peak + lanes) {}
    };

    // What one thread works in.
    struct Workspace {
        Partial whole, span;
        float* row;  // [head_dim]
        T* turned;   // [head_dim]
        void* tile;
    };

    // A query row, or some of one sequence, with the heads that share a kv head.
    struct Piece {
        int64_t sequence, kv_head;
        int64_t token, position;    // of its first row
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

    // One row's step of the online softmax: scores become probabilities below the new peak, sums are scaled to it.
    // Positions outside [low, high) of the tile are not seen.
    void soften(Tile& tile, int64_t row, int64_t low, int64_t high, const Partial& to) const {
        const float* scores = tile.scores(row);
        Vec v[TILE / LANES], best = set1(-INFINITE), total = {};
        for (int i = 0; i < TILE / LANES; ++i) v[i] = load(scores + i * LANES) * scale;
        if (low > 0 || high < TILE) {
            for (int i = 0; i < TILE / LANES; ++i) v[i] = lanes_between(v[i], low - i * LANES, high - i * LANES, -INFINITE);
        }
        for (Vec each : v) best = larger(best, each);
        float highest = most(to.peak[row], largest(best));
        // Before the first score all sums are 0, which nothing scales.
        bool same = highest == to.peak[row] || to.peak[row] == -INFINITE;
        float factor = same ? 1.f : exp2(set1(to.peak[row] - highest))[0];
        for (int i = 0; i < TILE / LANES; ++i) total += tile.keep(row, i * LANES, exp2(v[i] - highest));
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
            cache.set_query(tile, r, piece.token + r / group, piece.kv_head * group + r % group, w.row, w.turned);
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
            auto next = cache.fetch(table, piece.kv_head, start + TILE, piece.end);
            cache.load_tile(table, piece.kv_head, start, count, tile, next);
            tile.score();
            for (int64_t r = 0; r < piece.lanes; ++r) {
                int64_t at = Cache::CAUSAL ? piece.position + r / group : piece.end - 1;
                int64_t low = a.window > 0 ? at - a.window + 1 - start : 0;
                next.some(ceil_div(TILE * cache.lines, 2 * piece.lanes));
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
            float before = whole.peak[r] == highest ? 1.f : exp2(set1(whole.peak[r] - highest))[0];
            float after = next.peak[r] == highest ? 1.f : exp2(set1(next.peak[r] - highest))[0];
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
            T* out = cache.result(piece.token + r / group, head);
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

    // Tokens [begin, end) of the batch cut into pieces of at most item_rows rows; `tokens` and `pieces` count those
    // before each sequence.
    struct Plan {
        int64_t begin, end;
        int64_t *tokens, *pieces;

        // The rows of a sequence that are among them: [first, last).
        int64_t first(int64_t sequence) const { return most<int64_t>(0, begin - tokens[sequence]); }
        int64_t last(int64_t sequence) const { return least(tokens[sequence + 1], end) - tokens[sequence]; }
    };

    Plan plan_of(int64_t begin, int64_t end, int64_t* memory) const {
        Plan plan{begin, end, memory, memory + a.sequences + 1};
        plan.tokens[0] = plan.pieces[0] = 0;
        for (int64_t s = 0; s < a.sequences; ++s) {
            plan.tokens[s + 1] = plan.tokens[s] + a.input_lengths[s];
            int64_t rows = most<int64_t>(0, plan.last(s) - plan.first(s));
            plan.pieces[s + 1] = plan.pieces[s] + ceil_div(rows, item_rows);
        }
        return plan;
    }

    // Pieces are in the order of sequences; in a sequence in that of rows, or of heads where all rows see the same, so
    // that the keys and values of one are read by all of its rows before the next one's.
    Piece piece_of(const Plan& plan, int64_t item) const {
        int64_t index = item / a.kv_heads, sequence = 0, beyond = a.sequences;
        while (beyond - sequence > 1) {
            int64_t middle = (sequence + beyond) / 2;
            (plan.pieces[middle] <= index ? sequence : beyond) = middle;
        }
        int64_t parts = plan.pieces[sequence + 1] - plan.pieces[sequence];
        item -= plan.pieces[sequence] * a.kv_heads;
        int64_t part = Cache::CAUSAL ? item / a.kv_heads : item % parts;
        int64_t kv_head = Cache::CAUSAL ? item % a.kv_heads : item / parts;
        int64_t first = plan.first(sequence), rows = plan.last(sequence) - first;
        int64_t row = first + rows * part / parts, count = first + rows * (part + 1) / parts - row;
        int64_t position = a.cached_lengths[sequence] + row;
        int64_t seen = a.window > 0 ? most<int64_t>(0, position - a.window + 1) : 0;
        int64_t end = Cache::CAUSAL ? position + count : a.cached_lengths[sequence] + a.input_lengths[sequence];
        return {sequence, kv_head, plan.tokens[sequence] + row, position, count * group, seen / TILE * TILE, end};
    }

    // How a call is worked on, and in what memory.
    struct Layout {
        int64_t lists, worker;  // bytes of lists, and of what each thread works in
        int64_t spans, items;   // the most spans of a row, and pieces if all are rows of their own
        bool share;             // threads share the spans of a row
        int64_t bytes;
    };

    Layout layout() const {
        int64_t longest = 0;
        for (int64_t s = 0; s < a.sequences; ++s) longest = most<int64_t>(longest, a.cached_lengths[s] + 1);
        Layout to{round_up(2 * (a.sequences + 1) * int64_t{sizeof(int64_t)}, 64), workspace_bytes(),
                  ceil_div(longest, SPAN), a.sequences * a.kv_heads, false, 0};
        to.share = a.tokens == a.sequences && to.spans > 1 && to.items < ITEMS_OF_THREAD * thread_count();
        int64_t partials = to.share ? to.items * to.spans * partial_floats(group) : 0;
        to.bytes = to.lists + to.worker * thread_count() + partials * int64_t{sizeof(float)};
        return to;
    }

    // All spans of a few pieces of one row each: threads take spans by turns, then pieces to merge theirs.
    void run_spans(const Plan& plan, const Layout& layout, char* workers) const {
        float* memory = (float*)(workers + layout.worker * thread_count());
        int64_t floats = partial_floats(group);
        auto partial = [&](int64_t item, int64_t span) {
            return Partial(memory + (item * layout.spans + span) * floats, group, v_pad);
        };
        parallel_for(layout.items * layout.spans, [&](int64_t index, int worker) {
            int64_t item = index / layout.spans, span = index % layout.spans;
            Piece piece = piece_of(plan, item);
            if (span >= piece.spans()) return;
            Workspace w = workspace(workers + layout.worker * worker);
            Tile tile(w.tile, piece.lanes, a.head_dim, a.v_dim);
            Tile::begin();
            set_queries(piece, w, tile);
            attend_span(piece, span, tile, partial(item, span));
            Tile::end();
        });
        for (int64_t item = 0; item < layout.items; ++item) {
            Piece piece = piece_of(plan, item);
            for (int64_t span = 1; span < piece.spans(); ++span) {
                merge(partial(item, 0), partial(item, span), group);
            }
            finish(piece, partial(item, 0));
        }
    }

    // Of tokens [begin, end), before which all others have been written that they see. memory: layout.bytes of it.
    void run(const Layout& layout, int64_t begin, int64_t end, char* memory) const {
        char* workers = memory + layout.lists;
        parallel_for(ceil_div(end - begin, WRITE_TOKENS), [&](int64_t item, int worker) {
            int64_t first = begin + item * WRITE_TOKENS;
            for (int64_t t = first; t < least(end, first + WRITE_TOKENS); ++t) {
                Workspace w = workspace(workers + layout.worker * worker);
                cache.write(t, w.row, w.turned);
            }
        });
        attend_tokens(layout, begin, end, memory);
    }

    // The same where all have been written.
    void attend_tokens(const Layout& layout, int64_t begin, int64_t end, char* memory) const {
        Plan plan = plan_of(begin, end, (int64_t*)memory);
        char* workers = memory + layout.lists;
        if (layout.share && end - begin == a.tokens) return run_spans(plan, layout, workers);
        // The longest rows are the last ones of the last sequences: they go first, so that no thread is left with one.
        int64_t items = plan.pieces[a.sequences] * a.kv_heads;
        parallel_for(items, [&](int64_t item, int worker) {
            attend_piece(piece_of(plan, items - 1 - item), workspace(workers + layout.worker * worker));
        });
    }
};

}  // namespace
}  // namespace CMODEL_ISA
