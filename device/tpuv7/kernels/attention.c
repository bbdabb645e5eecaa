/* Causal attention over a paged cache.
 *
 * While the keys of a tile are worked on its values come, and the next tile's keys, be it one of the next queries; a
 * tile's values are added with the next tile.
 */
#include "attention_tile.h"

/* Channel `index` of a tensor whose channels have `stride` elements of 16 bits. */
static local_addr_t channel(local_addr_t tensor, int index, int stride) {
    return tensor + index % LANES * LOCAL_BYTES + index / LANES * stride * 2;
}

static void load_positions(const attention_command *c, const tile *t, local_addr_t to, uint64_t cache, int dim, int stride) {
    int size = c->batch.block_size, first = (t->begin + t->low) / size, end = t->begin + t->high;
    uint64_t table = c->batch.block_tables + ((uint64_t)t->block.sequence * c->batch.max_blocks + first) * 4;
    const int32_t *blocks = host_words(table, (uint64_t)(divide_up(end, size) - first) * 4);
    for (int position = t->begin + t->low, count; position < end; position += count) {
        count = smaller(size - position % size, end - position);
        uint64_t piece = (uint64_t)blocks[position / size - first] * c->kv_heads + t->block.head;
        uint64_t from = cache + (piece * size + position % size) * dim * 2;
        dim4 shape = {1, count, 1, dim}, target = {0, stride, stride, 1}, source = {0, dim, dim, 1};
        tpu_gdma_cpy_S2L(channel(to, position - t->begin, stride), from, &shape, &target, &source,
                         (data_type_t)c->header.dtype);
        account_bytes((uint64_t)count * dim * 2);
    }
}

static void load_queries(const attention_command *c, const tile *t) {
    int group = c->heads / c->kv_heads, tokens = t->block.tokens, dim = c->key_dim, stride = align_up(dim, 2 * ALIGNED);
    local_addr_t to = queries_of(t);
    uint64_t from = c->q + ((uint64_t)t->block.row * c->heads + t->block.head * group) * dim * 2;
    if (tokens == 1) {
        load_rows(to, from, group, dim, dim, c->header.dtype);
        return;
    }
    for (int head = 0; head < group; ++head)
        load_rows(channel(to, head * tokens, stride), from + head * dim * 2, tokens, dim, c->heads * dim, c->header.dtype);
}

static void load_keys(const attention_command *c, const tile *t) {
    if (is_first(t)) load_queries(c, t);
    load_positions(c, t, keys_of(t), c->keys, c->key_dim, align_up(c->key_dim, 2 * ALIGNED));
}

static void load_values(const attention_command *c, const tile *t) {
    load_positions(c, t, values_of(t), c->values, c->value_dim, value_stride(c));
}

static void store_outputs(const attention_command *c, const tile *t) {
    int group = c->heads / c->kv_heads, tokens = t->block.tokens, dim = c->value_dim, stride = align_up(dim, 2 * ALIGNED);
    local_addr_t from = outputs_of(t);
    uint64_t to = c->out + ((uint64_t)t->block.row * c->heads + t->block.head * group) * dim * 2;
    if (tokens == 1) {
        store_rows(to, from, group, dim, dim, c->header.dtype);
        return;
    }
    for (int head = 0; head < group; ++head)
        store_rows(to + head * dim * 2, channel(from, head * tokens, stride), tokens, dim, c->heads * dim, c->header.dtype);
}

static bool next_tile(own_work *own, const tile *last, tile *next) {
    *next = *last;
    ++next->count;
    if (last->count >= 0 && !is_last(last)) {
        next->begin += TILE;
    } else {
        if (!next_own_block(own, &next->block)) return false;
        ++next->number;
        next->begin = next->block.first / TILE * TILE;
    }
    next->low = larger(next->block.first - next->begin, 0);
    next->high = smaller(next->block.end - next->begin, TILE);
    return true;
}

void attention(const attention_command *c) {
    own_work own = begin_own_work(c);
    tile weighed = {.number = -1, .count = -1}, present, next, done = weighed;
    if (!next_tile(&own, &weighed, &present)) return;
    prepare_tiles(c);
    load_keys(c, &present);
    for (bool more = true; more; weighed = present, present = next) {
        more = next_tile(&own, &present, &next);
        tpu_parallel_start();
        load_values(c, &present);
        if (more) load_keys(c, &next);
        if (done.count >= 0) store_outputs(c, &done);
        done.count = -1;
        if (weighed.count >= 0) {
            add_values(c, &weighed);
            if (is_last(&weighed)) done = weighed;
        }
        weigh(c, &present);
        tpu_parallel_end();
    }
    tpu_parallel_start();
    if (done.count >= 0) store_outputs(c, &done);
    add_values(c, &weighed);
    tpu_parallel_end();
    store_outputs(c, &weighed);
}
