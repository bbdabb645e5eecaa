/* The computation of attention in local memory: rows of queries with a tile of positions.
 *
 * A row of queries and a position are a channel each. Behind the values stands a column of ones, so that their product
 * with the probabilities also sums these, as they were rounded. The steps of a row and their order depend on that row's
 * positions alone: tiles begin at multiples of TILE, and what a row does not see has probability 0.
 */
#ifndef SOPHSERVE_ATTENTION_TILE_H
#define SOPHSERVE_ATTENTION_TILE_H

#include "attention_work.h"

#define TILE 256 /* positions */
#define UNSEEN -1e38f

#define ALIGNED 16 /* channels of float32 begin at multiples of so many */
#define COLUMN (QUERY_ROWS / LANES * ALIGNED * 4)

/* What lies where in each lane: banks of 16 KiB, which suffice for HEAD_DIM channels. What DMA fills or empties is never
 * in a bank that is computed with. */
enum place {
    KEYS = 0, /* two banks, of tiles in turn */
    VALUES = 2 * BANK_BYTES,
    QUERIES = 4 * BANK_BYTES, /* two banks, of blocks of queries in turn */
    OUTPUTS = 6 * BANK_BYTES,
    SCORES = 8 * BANK_BYTES, /* float32 as all below, except probabilities */
    EXPONENTS = 9 * BANK_BYTES,
    WORK_0 = 10 * BANK_BYTES,
    WORK_1 = 11 * BANK_BYTES,
    PROBABILITIES = 12 * BANK_BYTES,
    SUMS = 13 * BANK_BYTES, /* [rows, value_dim + 1] */
    MAXIMUM = 14 * BANK_BYTES, /* columns, one value of each row */
    LARGER = MAXIMUM + COLUMN,
    TOKEN = LARGER + COLUMN, /* + 1/2 */
    LIMIT = TOKEN + COLUMN,
    INVERSE = LIMIT + COLUMN,
    MIDDLE = INVERSE + COLUMN, /* the row + 1/2 */
    COUNTING = MIDDLE + COLUMN, /* 0 .. TILE - 1 in each lane */
    TABLE = COUNTING + TILE * 4, /* coefficients of exp */
    END = 15 * BANK_BYTES
};

/* A block of queries and the positions [begin + low, begin + high) that are looked at. */
typedef struct {
    query_block block;
    int number;      /* of the block and ... */
    int count;       /* of the tile among those of this core */
    int begin;       /* a multiple of TILE */
    int low, high;
} tile;

static inline local_addr_t keys_of(const tile *t) { return KEYS + t->count % 2 * BANK_BYTES; }
static inline local_addr_t values_of(const tile *t) { return VALUES + t->count % 2 * BANK_BYTES; }
static inline local_addr_t queries_of(const tile *t) { return QUERIES + t->number % 2 * BANK_BYTES; }
static inline local_addr_t outputs_of(const tile *t) { return OUTPUTS + t->number % 2 * BANK_BYTES; }
static inline int rows_of(const attention_command *c, const tile *t) { return t->block.tokens * (c->heads / c->kv_heads); }
static inline bool is_first(const tile *t) { return t->begin <= t->block.first; }
static inline bool is_last(const tile *t) { return t->begin + t->high == t->block.end; }

static inline int value_stride(const attention_command *c) { return align_up(c->value_dim + 1, 2 * ALIGNED); }
static inline dim4 columns_of(int rows, int columns) { return (dim4){1, rows, 1, columns}; }
/* Of a tensor [1, rows, 1, columns] in float32. */
static inline dim4 stride_of(int columns) {
    int width = align_up(columns, ALIGNED);
    return (dim4){0, width, width, 1};
}
static const dim4 OF_ROW = {0, ALIGNED, 0, 0}; /* a column's value for all columns */

static inline void fill(local_addr_t to, int rows, int columns, int stride, float value, int dtype) {
    dim4 shape = columns_of(rows, columns), strides = {0, stride, stride, 1};
    scalar_t exact = {.f32 = value}, rounded = tpu_cast(exact, (data_type_t)dtype, DT_FP32, RM_HALF_TO_EVEN);
    tpu_bdc_set_C(to, rounded, &shape, &strides, (data_type_t)dtype);
}

/* What all tiles share. */
static inline void prepare_tiles(const attention_command *c) {
    tpu_bdc_load_fp_exp_coeff(TABLE, DT_FP32);
    tpu_bdc_arithmetic_sequence_bcast(WORK_0, LANES, 0, 1, TILE);
    tpu_bdc_arithmetic_sequence_distribute_aligned(WORK_1, 0, 1, QUERY_ROWS);
    dim4 counting = columns_of(LANES, TILE), rows = columns_of(QUERY_ROWS, 1);
    scalar_t half = {.f32 = .5f};
    tpu_bdc_cast(COUNTING, WORK_0, &counting, NULL, NULL, DT_FP32, DT_INT32, RM_HALF_TO_EVEN);
    tpu_bdc_cast(MIDDLE, WORK_1, &rows, NULL, NULL, DT_FP32, DT_INT32, RM_HALF_TO_EVEN);
    tpu_bdc_fp_add_C(MIDDLE, MIDDLE, half, &rows, NULL, NULL, DT_FP32);
    for (int bank = 0; bank < 2; ++bank)
        fill(VALUES + bank * BANK_BYTES + c->value_dim * 2, TILE, 1, value_stride(c), 1, c->header.dtype);
    account_local(END);
}

/* The token of each row, counted from the block's first, + 1/2: the row modulo the tokens. */
static inline void number_tokens(const query_block *block, int rows) {
    dim4 column = columns_of(rows, 1);
    scalar_t tokens = {.f32 = block->tokens}, inverse = {.f32 = 1.f / block->tokens};
    tpu_bdc_fp_mul_C(TOKEN, MIDDLE, inverse, &column, NULL, NULL, DT_FP32);
    tpu_bdc_fp_floor(TOKEN, TOKEN, &column, NULL, NULL, DT_FP32);
    tpu_bdc_fp_mul_C(TOKEN, TOKEN, tokens, &column, NULL, NULL, DT_FP32);
    tpu_bdc_fp_sub(TOKEN, MIDDLE, TOKEN, &column, NULL, NULL, NULL, DT_FP32);
}

/* Takes UNSEEN to the scores of positions after the row's own, and of those that its window has left. */
static inline void hide(const attention_command *c, const tile *t, int rows) {
    int own = t->block.position - t->begin, last = own + t->block.tokens - 1;
    bool later = t->high - 1 > own, left = c->window && last - c->window >= 0;
    scalar_t unseen = {.f32 = UNSEEN}, ahead = {.f32 = own}, behind = {.f32 = own - c->window};
    dim4 shape = columns_of(rows, t->high), column = columns_of(rows, 1);
    dim4 stride = stride_of(t->high), counting = {0, 0, 0, 1};
    if (later) {
        tpu_bdc_fp_add_C(LIMIT, TOKEN, ahead, &column, NULL, NULL, DT_FP32);
        tpu_bdc_greater(WORK_0, COUNTING, LIMIT, unseen, &shape, &stride, &counting, &OF_ROW, DT_FP32, DT_FP32);
        tpu_bdc_fp_add(SCORES, SCORES, WORK_0, &shape, NULL, NULL, NULL, DT_FP32);
    }
    if (left) {
        tpu_bdc_fp_add_C(LIMIT, TOKEN, behind, &column, NULL, NULL, DT_FP32);
        tpu_bdc_less(WORK_0, COUNTING, LIMIT, unseen, &shape, &stride, &counting, &OF_ROW, DT_FP32, DT_FP32);
        tpu_bdc_fp_add(SCORES, SCORES, WORK_0, &shape, NULL, NULL, NULL, DT_FP32);
    }
}

/* SCORES become exp(scale * (score - maximum)); the column after them, how much smaller older sums become. */
static inline void exponentiate(const attention_command *c, const tile *t, int rows) {
    int high = t->high;
    dim4 shape = columns_of(rows, high), column = columns_of(rows, 1), wider = columns_of(rows, high + 1);
    dim4 from = stride_of(high), to = stride_of(high + 1);
    dim2 kernel = {1, high}, one = {1, 1};
    padding_t none = {0, 0, 0, 0};
    scalar_t least = {.f32 = -3e38f}, scale = {.f32 = c->scale};
    tpu_bdc_fp_max_pool2d(LARGER, SCORES, &shape, &kernel, &none, &one, &one, DT_FP32, least);
    tpu_bdc_max(LARGER, LARGER, MAXIMUM, &column, NULL, NULL, NULL, DT_FP32);
    tpu_bdc_fp_sub(EXPONENTS, SCORES, LARGER, &shape, &to, &from, &OF_ROW, DT_FP32);
    tpu_bdc_fp_sub(EXPONENTS + high * 4, MAXIMUM, LARGER, &column, &to, NULL, NULL, DT_FP32);
    tpu_bdc_cpy(MAXIMUM, LARGER, &column, NULL, NULL, DT_FP32);
    tpu_bdc_fp_mul_C(EXPONENTS, EXPONENTS, scale, &wider, NULL, NULL, DT_FP32);
    tpu_bdc_fp_exp(SCORES, EXPONENTS, WORK_0, WORK_1, TABLE, &wider, DT_FP32);
}

/* The probabilities of a tile, not yet divided by their sum, of keys and queries. */
static inline void weigh(const attention_command *c, const tile *t) {
    data_type_t dtype = (data_type_t)c->header.dtype;
    int rows = rows_of(c, t);
    if (is_first(t)) {
        fill(MAXIMUM, rows, 1, ALIGNED, UNSEEN, DT_FP32);
        if (t->block.tokens > 1 || c->window) number_tokens(&t->block, rows);
    }
    /* What lies before the first position may be no number. */
    if (t->low) fill(keys_of(t), t->low, c->key_dim, align_up(c->key_dim, 2 * ALIGNED), 0, dtype);
    tpu_bdc_fp_mm_R_trans(SCORES, queries_of(t), keys_of(t), rows, c->key_dim, t->high, DT_FP32, dtype);
    account_product(rows, t->high, c->key_dim);
    hide(c, t, rows);
    exponentiate(c, t, rows);
    dim4 shape = columns_of(rows, t->high), exponents = stride_of(t->high + 1);
    tpu_bdc_cast(PROBABILITIES, SCORES, &shape, NULL, &exponents, dtype, DT_FP32, RM_HALF_TO_EVEN);
}

/* The sums of values, divided by those of probabilities. */
static inline void finish_block(const attention_command *c, const tile *t) {
    int rows = rows_of(c, t);
    dim4 shape = columns_of(rows, c->value_dim), column = columns_of(rows, 1), sums = stride_of(c->value_dim + 1);
    tpu_bdc_fp32_reciprocal(INVERSE, SUMS + c->value_dim * 4, &column, NULL, &sums);
    tpu_bdc_fp_mul(SCORES, SUMS, INVERSE, &shape, NULL, &sums, &OF_ROW, DT_FP32);
    tpu_bdc_cast(outputs_of(t), SCORES, &shape, NULL, NULL, (data_type_t)c->header.dtype, DT_FP32, RM_HALF_TO_EVEN);
}

/* Add a tile's values, each as often as its probability says, after `weigh`. */
static inline void add_values(const attention_command *c, const tile *t) {
    data_type_t dtype = (data_type_t)c->header.dtype;
    int rows = rows_of(c, t), width = c->value_dim + 1;
    dim4 sums = columns_of(rows, width), fade = {0, align_up(t->high + 1, ALIGNED), 0, 0};
    if (is_first(t)) fill(SUMS, rows, width, align_up(width, ALIGNED), 0, DT_FP32);
    if (t->low) fill(values_of(t), t->low, c->value_dim, value_stride(c), 0, dtype);
    tpu_bdc_fp_mul(SUMS, SUMS, SCORES + t->high * 4, &sums, NULL, NULL, &fade, DT_FP32);
    tpu_bdc_fp_mm(SUMS, PROBABILITIES, values_of(t), rows, t->high, width, DT_FP32, dtype, true);
    account_product(rows, width, t->high);
    if (is_last(t)) finish_block(c, t);
}

#endif
