/* Root-mean-square norms.
 *
 * A row lies on a lane with all its heads, in 16 bits as in device memory; one piece after the other becomes float32.
 * Pieces depend on the sizes alone and are added up in one order: the bits of a row depend on that row alone.
 */
#include "commands.h"
#include "core.h"

#define ROW_VALUES 16384 /* of a row on a lane; heads that are more have their own turn */
#define PIECE_VALUES 2048
#define PIECE_BYTES (PIECE_VALUES * 4)

/* Local memory by banks. Of three tiles, for one is loaded, one computed and one stored: x, which becomes the sum, and
 * the residual, which becomes the result. Then the weight, and pieces. */
#define SUM_AT(tile) ((tile) % 3 * 4 * BANK_BYTES)
#define RESULT_AT(tile) (SUM_AT(tile) + 2 * BANK_BYTES)
#define WEIGHT_AT (12 * BANK_BYTES)
#define EXACT_AT (14 * BANK_BYTES)
#define SCALE_AT (EXACT_AT + PIECE_BYTES) /* of each head */
#define OTHER_AT (15 * BANK_BYTES)        /* squares, or a piece of the weight */
#define PARTIAL_AT (OTHER_AT + PIECE_BYTES)

typedef struct {
    const rms_norm_command *c;
    share own;       /* of rows */
    int head, heads; /* that have their turn */
} norm;

/* What is float32 at once: some columns of some heads of the rows of a tile. */
typedef struct {
    int rows, head, heads, column, columns;
} piece;

static int row_of(const norm *n, int tile) { return n->own.begin + tile * LANES; }
static int rows_of(const norm *n, int tile) { return smaller(LANES, n->own.end - row_of(n, tile)); }

static void load_tile(const norm *n, int tile) {
    const rms_norm_command *c = n->c;
    int dtype = c->header.dtype, rows = rows_of(n, tile);
    uint64_t row = row_of(n, tile), head = (uint64_t)n->head * c->size * 2;
    load_heads(SUM_AT(tile), c->x + row * c->x_stride * 2 + head, rows, n->heads, c->size, c->x_stride, dtype);
    if (!c->residual) return;
    uint64_t residual = c->residual + row * c->residual_stride * 2 + head;
    load_heads(RESULT_AT(tile), residual, rows, n->heads, c->size, c->residual_stride, dtype);
}

static void store_tile(const norm *n, int tile) {
    const rms_norm_command *c = n->c;
    int dtype = c->header.dtype, rows = rows_of(n, tile), width = c->heads * c->size;
    uint64_t offset = ((uint64_t)row_of(n, tile) * width + n->head * c->size) * 2;
    store_heads(c->out + offset, RESULT_AT(tile), rows, n->heads, c->size, width, dtype);
    if (c->sum) store_heads(c->sum + offset, SUM_AT(tile), rows, n->heads, c->size, width, dtype);
}

static dim4 piece_shape(const piece *p) { return (dim4){1, p->rows, p->heads, p->columns}; }

/* Where a piece lies in a tile. */
static dim4 piece_stride(const norm *n) { return (dim4){n->heads * n->c->size, n->heads * n->c->size, n->c->size, 1}; }
static local_addr_t piece_offset(const norm *n, const piece *p) { return (p->head * n->c->size + p->column) * 2; }

static void widen(const norm *n, int tile, const piece *p) {
    dim4 shape = piece_shape(p), stride = piece_stride(n);
    tpu_bdc_cast(EXACT_AT, SUM_AT(tile) + piece_offset(n, p), &shape, NULL, &stride, DT_FP32,
                 (data_type_t)n->c->header.dtype, RM_HALF_TO_EVEN);
}

/* Add the squares of a piece to what is in SCALE. */
static void add_squares(const norm *n, int tile, const piece *p) {
    dim4 shape = piece_shape(p), sums = {1, p->rows, p->heads, 1};
    dim2 kernel = {1, p->columns}, every = {1, 1};
    padding_t none = {0, 0, 0, 0};
    scalar_t one = {.f32 = 1.0f};
    widen(n, tile, p);
    tpu_bdc_fp_mul(OTHER_AT, EXACT_AT, EXACT_AT, &shape, NULL, NULL, NULL, DT_FP32);
    tpu_bdc_fp_avg_pool2d(p->column ? PARTIAL_AT : SCALE_AT, OTHER_AT, &shape, &kernel, &none, &every, &every, DT_FP32, one);
    if (p->column) tpu_bdc_fp_add(SCALE_AT, SCALE_AT, PARTIAL_AT, &sums, NULL, NULL, NULL, DT_FP32);
}

/* From sums of squares to 1 / sqrt(mean + eps). */
static void finish_scale(const norm *n, const piece *p) {
    dim4 sums = {1, p->rows, p->heads, 1};
    scalar_t share = {.f32 = 1.0f / n->c->size}, eps = {.f32 = n->c->eps};
    tpu_bdc_fp_mul_C(SCALE_AT, SCALE_AT, share, &sums, NULL, NULL, DT_FP32);
    tpu_bdc_fp_add_C(SCALE_AT, SCALE_AT, eps, &sums, NULL, NULL, DT_FP32);
    tpu_bdc_fp32_rsqrt(PARTIAL_AT, SCALE_AT, &sums);
}

static void normalise(const norm *n, int tile, const piece *p) {
    data_type_t dtype = (data_type_t)n->c->header.dtype;
    dim4 shape = piece_shape(p), stride = piece_stride(n), weights = {1, p->rows, 1, p->columns};
    dim4 every_column = {p->heads, p->heads, 1, 0}, every_head = {p->columns, p->columns, 0, 1};
    if (p->columns < n->c->size) widen(n, tile, p);
    tpu_bdc_fp_mul(EXACT_AT, EXACT_AT, PARTIAL_AT, &shape, NULL, NULL, &every_column, DT_FP32);
    tpu_bdc_cast(OTHER_AT, WEIGHT_AT + p->column * 2, &weights, NULL, NULL, DT_FP32, dtype, RM_HALF_TO_EVEN);
    tpu_bdc_fp_mul(EXACT_AT, EXACT_AT, OTHER_AT, &shape, NULL, NULL, &every_head, DT_FP32);
    tpu_bdc_cast(RESULT_AT(tile) + piece_offset(n, p), EXACT_AT, &shape, &stride, NULL, dtype, DT_FP32, RM_HALF_TO_EVEN);
}

typedef void of_piece(const norm *, int tile, const piece *);

static void each_piece(const norm *n, int tile, piece p, of_piece *work) {
    for (p.column = 0; p.column < n->c->size; p.column += PIECE_VALUES) {
        p.columns = smaller(PIECE_VALUES, n->c->size - p.column);
        work(n, tile, &p);
    }
}

static void compute_tile(const norm *n, int tile) {
    int rows = rows_of(n, tile), heads = larger(1, PIECE_VALUES / n->c->size);
    dim4 shape = {1, rows, n->heads, n->c->size};
    if (n->c->residual)
        tpu_bdc_fp_add(SUM_AT(tile), SUM_AT(tile), RESULT_AT(tile), &shape, NULL, NULL, NULL, (data_type_t)n->c->header.dtype);
    for (int head = 0; head < n->heads; head += heads) {
        piece p = {rows, head, smaller(heads, n->heads - head), 0, 0};
        each_piece(n, tile, p, add_squares);
        finish_scale(n, &p);
        each_piece(n, tile, p, normalise);
    }
}

static void normalise_rows(const norm *n) {
    int tiles = divide_up(n->own.end - n->own.begin, LANES);
    load_tile(n, 0);
    for (int tile = 0; tile < tiles; ++tile) {
        tpu_parallel_start();
        if (tile + 1 < tiles) load_tile(n, tile + 1);
        if (tile) store_tile(n, tile - 1);
        compute_tile(n, tile);
        tpu_parallel_end();
    }
    store_tile(n, tiles - 1);
}

void rms_norm(const rms_norm_command *c) {
    norm n = {.c = c, .own = own_share(c->header.rows, 1)};
    if (n.own.begin == n.own.end) return;
    account_local(PARTIAL_AT + PIECE_BYTES);
    load_everywhere(WEIGHT_AT, c->weight, c->size, c->header.dtype);
    int turn = larger(1, ROW_VALUES / c->size);
    for (n.head = 0; n.head < c->heads; n.head += turn) {
        n.heads = smaller(turn, c->heads - n.head);
        normalise_rows(&n);
    }
}
