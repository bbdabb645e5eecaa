/* Rotation of queries and keys, and the way of keys and values into the cache.
 *
 * A token is a lane, its heads lie one after the other there: a row of the batch comes and goes in one piece. The core
 * works on pieces, 64 tokens and some heads of q or k, while the piece before leaves and the next one comes.
 */
#include "commands.h"
#include "core.h"

#define PIECE 4096 /* elements, at most, in each lane */

/* What lies where in each lane, each in banks of its own. */
enum place {
    PIECES = 0,              /* three banks, of pieces in turn */
    ANGLES = 3 * BANK_BYTES, /* two banks, of groups of tokens in turn */
    COS = 0,
    SIN = HEAD_DIM * 2,
    EXACT = 5 * BANK_BYTES,  /* what is rotated of the piece, float32 */
    FIRST = 6 * BANK_BYTES,  /* one half of that, rotated, and ... */
    SECOND = 7 * BANK_BYTES,
    END = 7 * BANK_BYTES + PIECE * 2
};

/* The heads [head, head + heads) of some rows of q, or of k. */
typedef struct {
    bool keys;
    int row, tokens, head, heads;
    int count, group; /* of pieces and of groups of tokens that came before */
} piece;

static local_addr_t bank_of(const piece *p) { return PIECES + p->count % 3 * BANK_BYTES; }
static local_addr_t angles_of(const piece *p) { return ANGLES + p->group % 2 * BANK_BYTES; }
static int half_of(const cache_write_command *c) { return c->cos ? c->rotary_dim / 2 : 0; }

/* The heads after those of `last`, first of q, then of k, then of the next tokens. */
static bool next_piece(const cache_write_command *c, int end, const piece *last, piece *next) {
    *next = *last;
    ++next->count;
    next->head += last->heads;
    if (next->head == (last->keys ? c->kv_heads : c->heads)) {
        next->head = 0;
        next->keys = !last->keys;
        if (last->keys) {
            next->row += last->tokens;
            next->tokens = smaller(LANES, end - next->row);
            ++next->group;
        }
    }
    next->heads = smaller(PIECE / c->key_dim, (next->keys ? c->kv_heads : c->heads) - next->head);
    return next->row < end;
}

/* How many tokens from `row` on have slots that follow each other in one block. */
static int run_of(const int32_t *slots, int row, int end, int block_size) {
    int count = 1;
    while (row + count < end && slots[row + count] == slots[row] + count && slots[row + count] % block_size) ++count;
    return count;
}

static uint64_t slot_address(const cache_write_command *c, uint64_t cache, int slot, int head, int dim) {
    int size = c->batch.block_size;
    return cache + (((uint64_t)(slot / size) * c->kv_heads + head) * size + slot % size) * dim * 2;
}

/* The values of some tokens, all heads, to their slots. */
static void move_values(const cache_write_command *c, const int32_t *slots, const piece *p) {
    int dim = c->value_dim, size = c->batch.block_size, end = p->row + p->tokens;
    for (int row = p->row, count; row < end; row += count) {
        count = run_of(slots, row, end, size);
        dim4 shape = {1, count, c->kv_heads, dim}, source = {0, c->v_stride, dim, 1}, target = {0, dim, size * dim, 1};
        tpu_gdma_cpy_S2S(slot_address(c, c->values, slots[row], 0, dim), c->v + (uint64_t)row * c->v_stride * 2, &shape,
                         &target, &source, (data_type_t)c->header.dtype);
        account_bytes((uint64_t)count * c->kv_heads * dim * 4);
    }
}

static void load_piece(const cache_write_command *c, const piece *p) {
    int stride = p->keys ? c->k_stride : c->q_stride, half = half_of(c);
    uint64_t from = (p->keys ? c->k : c->q) + ((uint64_t)p->row * stride + p->head * c->key_dim) * 2;
    load_rows(bank_of(p), from, p->tokens, p->heads * c->key_dim, stride, c->header.dtype);
    if (p->keys || p->head || !half) return;
    load_rows(angles_of(p) + COS, c->cos + (uint64_t)p->row * half * 4, p->tokens, half, half, DT_FP32);
    load_rows(angles_of(p) + SIN, c->sin + (uint64_t)p->row * half * 4, p->tokens, half, half, DT_FP32);
}

static void store_piece(const cache_write_command *c, const int32_t *slots, const piece *p) {
    int dim = c->key_dim, size = c->batch.block_size, end = p->row + p->tokens;
    if (!p->keys) {
        uint64_t to = c->rotated + ((uint64_t)p->row * c->heads + p->head) * dim * 2;
        store_rows(to, bank_of(p), p->tokens, p->heads * dim, c->heads * dim, c->header.dtype);
        return;
    }
    for (int row = p->row, count; row < end; row += count) {
        count = run_of(slots, row, end, size);
        dim4 shape = {1, count, p->heads, dim}, source = {0, p->heads * dim, dim, 1}, target = {0, dim, size * dim, 1};
        tpu_gdma_cpy_L2S(slot_address(c, c->keys, slots[row], p->head, dim), bank_of(p) + (row - p->row) * LOCAL_BYTES,
                         &shape, &target, &source, (data_type_t)c->header.dtype);
        account_bytes((uint64_t)count * p->heads * dim * 2);
    }
}

/* (first, second) becomes (first * cos - second * sin, second * cos + first * sin). */
static void rotate_piece(const cache_write_command *c, const piece *p) {
    int half = half_of(c), step = c->interleaved ? 2 : 1, apart = c->interleaved ? 1 : half;
    data_type_t dtype = (data_type_t)c->header.dtype;
    local_addr_t first = EXACT, second = EXACT + apart * 4, cos = angles_of(p) + COS, sin = angles_of(p) + SIN;
    if (!half) return;
    dim4 whole = {1, p->tokens, p->heads, 2 * half}, shape = {1, p->tokens, p->heads, half};
    dim4 rounded = {0, 0, c->key_dim, 1}, exact = {0, 0, 2 * half, 1};
    dim4 part = {0, 0, 2 * half, step}, angle = {0, 0, 0, 1}, turned = {0, 0, half, 1}, target = {0, 0, c->key_dim, step};
    /* With as many tokens as lanes, at most, no channel follows another in a lane, and their stride counts for nothing. */
    exact.c = part.c = angle.c = turned.c = rounded.c = target.c = PIECE;
    tpu_bdc_cast(EXACT, bank_of(p), &whole, &exact, &rounded, DT_FP32, dtype, RM_HALF_TO_EVEN);
    tpu_bdc_fp_mul(FIRST, first, cos, &shape, &turned, &part, &angle, DT_FP32);
    tpu_bdc_fp_mul(SECOND, second, sin, &shape, &turned, &part, &angle, DT_FP32);
    tpu_bdc_fp_sub(FIRST, FIRST, SECOND, &shape, &turned, &turned, &turned, DT_FP32);
    tpu_bdc_fp_mul(SECOND, second, cos, &shape, &turned, &part, &angle, DT_FP32);
    tpu_bdc_fp_mul(second, first, sin, &shape, &part, &part, &angle, DT_FP32);
    tpu_bdc_fp_add(SECOND, SECOND, second, &shape, &turned, &turned, &part, DT_FP32);
    tpu_bdc_cast(bank_of(p), FIRST, &shape, &target, &turned, dtype, DT_FP32, RM_HALF_TO_EVEN);
    tpu_bdc_cast(bank_of(p) + apart * 2, SECOND, &shape, &target, &turned, dtype, DT_FP32, RM_HALF_TO_EVEN);
}

void cache_write(const cache_write_command *c) {
    share own = own_share(c->header.rows, 1);
    if (own.begin == own.end) return;
    const int32_t *slots = host_words(c->batch.slots, (uint64_t)c->header.rows * sizeof(int32_t));
    piece present = {.row = own.begin, .tokens = smaller(LANES, own.end - own.begin)}, next, last = {.count = -1};
    present.heads = smaller(PIECE / c->key_dim, c->heads);
    account_local(END);
    load_piece(c, &present);
    for (bool more = true; more; last = present, present = next) {
        more = next_piece(c, own.end, &present, &next);
        tpu_parallel_start();
        if (last.count >= 0) store_piece(c, slots, &last);
        if (more) load_piece(c, &next);
        if (present.keys && !present.head) move_values(c, slots, &present);
        rotate_piece(c, &present);
        tpu_parallel_end();
    }
    store_piece(c, slots, &last);
}
