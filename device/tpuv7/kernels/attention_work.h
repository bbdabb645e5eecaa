/* Who does what in attention: blocks of queries, each with the positions that it sees, dealt out to the cores. */
#ifndef SOPHSERVE_ATTENTION_WORK_H
#define SOPHSERVE_ATTENTION_WORK_H

#include "commands.h"
#include "core.h"

#define QUERY_ROWS GROUP_HEADS /* the most rows (of a token and a head each) of a block of queries */
#define BLOCK_COST 64          /* what a block of queries costs besides its positions, in positions */

/* Some tokens of a sequence with the query heads of one kv head. The row of token t and head g is g * tokens + t. */
typedef struct {
    int sequence, head;
    int row, tokens; /* of the batch */
    int position;    /* of the first token */
    int first, end;  /* the positions that some of the tokens see */
} query_block;

/* Goes through the blocks of queries of a batch, those of the kv heads inside. */
typedef struct {
    const attention_command *command;
    const int32_t *input_lengths, *cached_lengths;
    int sequence, row; /* of the sequence, and its first in the batch */
    int token, head;   /* of the next block */
} work;

static inline work begin_work(const attention_command *c) {
    uint64_t bytes = (uint64_t)c->batch.sequences * sizeof(int32_t);
    return (work){c, host_words(c->batch.input_lengths, bytes), host_words(c->batch.cached_lengths, bytes), 0, 0, 0, 0};
}

/* The next block, or false at the end. Rows beyond those of the launch are as if they were not there. */
static inline bool next_block(work *w, query_block *block) {
    const attention_command *c = w->command;
    while (w->sequence < c->batch.sequences && w->row < c->header.rows) {
        int new = smaller(w->input_lengths[w->sequence], c->header.rows - w->row);
        if (w->token < new) {
            int most = QUERY_ROWS / (c->heads / c->kv_heads), tokens = smaller(most, new - w->token);
            int position = w->cached_lengths[w->sequence] + w->token;
            int first = c->window ? larger(0, position - c->window + 1) : 0;
            *block = (query_block){w->sequence, w->head, w->row + w->token, tokens, position, first, position + tokens};
            if (++w->head == c->kv_heads) {
                w->head = 0;
                w->token += tokens;
            }
            return true;
        }
        w->row += w->input_lengths[w->sequence++];
        w->token = 0;
    }
    return false;
}

static inline int64_t cost_of(const query_block *block) { return block->end - block->first + BLOCK_COST; }

/* A core's blocks follow each other, and cost about as much as another's. */
typedef struct {
    work all;
    int64_t total, before; /* cost of all blocks, and of those gone through */
} own_work;

static inline own_work begin_own_work(const attention_command *c) {
    own_work own = {begin_work(c), 0, 0};
    query_block block;
    for (work all = own.all; next_block(&all, &block);) own.total += cost_of(&block);
    return own;
}

static inline bool next_own_block(own_work *own, query_block *block) {
    while (next_block(&own->all, block)) {
        int owner = (int)(own->before * tpu_workitem_num() / own->total);
        own->before += cost_of(block);
        if (owner == tpu_workitem_index()) return true;
    }
    return false;
}

#endif
