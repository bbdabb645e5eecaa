/* Products of rows with a weight.
 *
 * Outputs lie on lanes: a tile of the weight [outputs, inputs], as it is in device memory, times the rows transposed
 * gives [outputs, rows]. So one row keeps all lanes busy, and bias and activation are a lane's own. Each core has a
 * range of outputs. Inputs are added up in chunks whose size depends on the weight alone, in one order, in float32:
 * the bits of a row depend neither on other rows nor on the number of cores.
 */
#include "activation.h"
#include "commands.h"
#include "core.h"
#include "dequantize.h"

#define CHUNK_INPUTS 2048
#define SHARE_UNIT 16   /* outputs */
#define SHARE_TILES 4   /* at least, where outputs are enough: of all loads only the first cannot overlap */
#define TILE_BYTES 4096 /* of a lane, of the values of a tile of weights */
#define CODES_BYTES (12 * 1024) /* of its records, where it is stored as codes */
#define SUM_VALUES 1024 /* of a lane, of the sums of a tile */
#define SUM_BYTES (SUM_VALUES * 4)

/* Local memory by banks: inputs of a block of rows, a tile of weights that is multiplied and one that comes, sums of
 * either half, and what is made of them. */
#define INPUT_BYTES (8 * BANK_BYTES)
#define WEIGHT_AT(step) ((8 + (step) % 2) * BANK_BYTES)
#define BIAS_AT(step) (WEIGHT_AT(step) + CODES_BYTES)
#define VALUES_AT (10 * BANK_BYTES) /* of a weight that is stored as codes */
#define SUMS_AT(part) ((12 + (part)) * BANK_BYTES)
#define WORK_AT (14 * BANK_BYTES)
#define RESULT_AT (15 * BANK_BYTES) /* activated, or a bias as float32 */
#define ROUNDED_AT (RESULT_AT + SUM_BYTES)
#define TRANSPOSED_AT(tile) (ROUNDED_AT + (1 + (tile) % 2) * SUM_BYTES / 2)

static const activation_memory ACTIVATION = {
    SUMS_AT(0) + SUM_BYTES, SUMS_AT(0) + SUM_BYTES + POLYNOMIAL_BYTES, SUMS_AT(0) + SUM_BYTES + 2 * POLYNOMIAL_BYTES,
    {WORK_AT, WORK_AT + SUM_BYTES, WORK_AT + 2 * SUM_BYTES, WORK_AT + 3 * SUM_BYTES},
};

/* What one instruction reads at once lies in different banks; activations want theirs later. */
static const dequantize_memory DEQUANTIZE = {11 * BANK_BYTES, VALUES_AT + TILE_BYTES, WORK_AT};

typedef struct {
    const linear_command *c;
    share own;          /* of outputs, or with an activation of pairs of them */
    int parts, pairs;   /* with an activation two, and the outputs of each */
    int chunk, chunks;  /* inputs that are added up at once */
    int tile;           /* outputs of a tile */
    int row, rows;      /* the block of rows */
} product;

/* One tile of the weight. */
typedef struct {
    int tile, part, chunk;
    int output, outputs, input, inputs;
} step;

static int steps(const product *p) {
    return divide_up(p->own.end - p->own.begin, p->tile) * p->parts * p->chunks;
}

static step step_at(const product *p, int index) {
    step s = {index / (p->chunks * p->parts), index / p->chunks % p->parts, index % p->chunks, 0, 0, 0, 0};
    s.output = p->own.begin + s.tile * p->tile;
    s.outputs = smaller(p->tile, p->own.end - s.output);
    s.input = s.chunk * p->chunk;
    s.inputs = smaller(p->chunk, p->c->inputs - s.input);
    return s;
}

static bool ends_sum(const product *p, const step *s) { return s->chunk == p->chunks - 1; }
static bool ends_tile(const product *p, const step *s) { return ends_sum(p, s) && s->part == p->parts - 1; }

static uint64_t chunk_bytes(const product *p) { return align_up((uint64_t)p->chunk * 2, LINE_BYTES); }

static local_addr_t inputs_at(const product *p, int chunk) {
    return chunk * divide_up(p->rows, LANES) * chunk_bytes(p);
}

static void load_inputs(const product *p) {
    const linear_command *c = p->c;
    uint64_t rows = c->x + (uint64_t)p->row * c->x_stride * 2;
    for (int chunk = 0; chunk < p->chunks; ++chunk) {
        int input = chunk * p->chunk, inputs = smaller(p->chunk, c->inputs - input);
        load_rows(inputs_at(p, chunk), rows + input * 2, p->rows, inputs, c->x_stride, c->header.dtype);
    }
}

static void load_codes(const linear_command *c, const step *s, uint64_t output, local_addr_t to) {
    int before = record_of(c, c->chunk).bytes * s->chunk, bytes = record_of(c, s->inputs).bytes;
    load_rows(to, c->weight + output * c->row_bytes + before, s->outputs, bytes / 4, c->row_bytes / 4, DT_UINT32);
}

static void load_values(const linear_command *c, const step *s, uint64_t output, local_addr_t to) {
    uint64_t from = c->weight + (output * c->inputs + s->input) * 2;
    load_rows(to, from, s->outputs, s->inputs, c->inputs, c->header.dtype);
}

static void load_weight(const product *p, int index) {
    const linear_command *c = p->c;
    step s = step_at(p, index);
    uint64_t output = s.output + s.part * p->pairs;
    (c->codes == PLAIN ? load_values : load_codes)(c, &s, output, WEIGHT_AT(index));
    if (c->bias && ends_sum(p, &s)) load_lanes(BIAS_AT(index), c->bias + output * 2, s.outputs, c->header.dtype);
}

static void multiply(const product *p, int index) {
    step s = step_at(p, index);
    var_context_t no_bias = {.scalar = {.f32 = 0}};
    local_addr_t weight = WEIGHT_AT(index);
    if (p->c->codes != PLAIN) {
        dequantize(VALUES_AT, weight, p->c, s.outputs, s.inputs, &DEQUANTIZE);
        weight = VALUES_AT;
    }
    tpu_bdc_fp_mm_R_trans_with_bias(SUMS_AT(s.part), weight, inputs_at(p, s.chunk), s.outputs, s.inputs, p->rows,
                                    DT_FP32, (data_type_t)p->c->header.dtype, DT_FP32, s.chunk > 0, true, no_bias, false);
    account_product(s.outputs, p->rows, s.inputs);
}

static void add_bias(const product *p, int index) {
    step s = step_at(p, index);
    dim4 shape = {1, s.outputs, 1, p->rows}, lanes = {1, s.outputs, 1, 1}, compact, along_rows = {0, 1, 0, 0};
    tpu_compact_stride(&compact, 0, &lanes);
    tpu_bdc_cast(RESULT_AT, BIAS_AT(index), &lanes, &compact, &compact, DT_FP32, (data_type_t)p->c->header.dtype,
                 RM_HALF_TO_EVEN);
    tpu_bdc_fp_add(SUMS_AT(s.part), SUMS_AT(s.part), RESULT_AT, &shape, NULL, NULL, &along_rows, DT_FP32);
}

/* From the sums of a tile to its part of the result, in local memory. */
static void finish_tile(const product *p, const step *s) {
    data_type_t dtype = (data_type_t)p->c->header.dtype;
    dim4 shape = {1, s->outputs, 1, p->rows}, transposed = {1, p->rows, 1, s->outputs};
    local_addr_t result = SUMS_AT(0);
    if (p->c->activation != NO_ACTIVATION) {
        result = RESULT_AT;
        activate(result, SUMS_AT(0), p->c->activation, &shape, &ACTIVATION);
        tpu_bdc_fp_mul(result, result, SUMS_AT(1), &shape, NULL, NULL, NULL, DT_FP32);
    }
    tpu_bdc_cast(ROUNDED_AT, result, &shape, NULL, NULL, dtype, DT_FP32, RM_HALF_TO_EVEN);
    tpu_bdc_cw_trans(TRANSPOSED_AT(s->tile), ROUNDED_AT, &transposed, dtype);
}

static void store_tile(const product *p, int tile) {
    step s = step_at(p, tile * p->parts * p->chunks);
    uint64_t to = p->c->out + ((uint64_t)p->row * p->pairs + s.output) * 2;
    store_rows(to, TRANSPOSED_AT(tile), p->rows, s.outputs, p->pairs, p->c->header.dtype);
}

static void multiply_rows(const product *p) {
    int count = steps(p), finished = -1;
    load_inputs(p);
    load_weight(p, 0);
    for (int index = 0; index < count; ++index) {
        step s = step_at(p, index);
        tpu_parallel_start();
        if (index + 1 < count) load_weight(p, index + 1);
        if (finished >= 0) store_tile(p, finished);
        finished = -1;
        multiply(p, index);
        if (p->c->bias && ends_sum(p, &s)) add_bias(p, index);
        if (ends_tile(p, &s)) {
            finish_tile(p, &s);
            finished = s.tile;
        }
        tpu_parallel_end();
    }
    store_tile(p, finished);
}

/* As many rows as local memory has room for, and a tile of as many outputs as they leave room for. */
static int plan(product *p) {
    const linear_command *c = p->c;
    p->chunk = c->chunk;
    if (c->codes == PLAIN) {
        p->chunk = (int)align_up(divide_up(c->inputs, divide_up(c->inputs, CHUNK_INPUTS)), LINE_BYTES / 2);
    }
    p->chunks = divide_up(c->inputs, p->chunk);
    int groups = INPUT_BYTES / (int)(p->chunks * chunk_bytes(p));
    int rows = smaller(smaller(c->header.rows, SUM_VALUES), groups * LANES);
    int tile = smaller(TILE_BYTES / (int)chunk_bytes(p), SUM_VALUES / (int)align_up(rows, LANES));
    if (c->codes != PLAIN) tile = smaller(tile, CODES_BYTES / (int)align_up(record_of(c, c->chunk).bytes, LINE_BYTES));
    tile = smaller(tile, divide_up(p->own.end - p->own.begin, SHARE_TILES * LANES));
    p->tile = tile * LANES;
    return rows;
}

void linear(const linear_command *c) {
    product p = {.c = c, .parts = c->activation == NO_ACTIVATION ? 1 : 2};
    p.pairs = c->outputs / p.parts;
    p.own = own_share(p.pairs, SHARE_UNIT);
    if (p.own.begin == p.own.end || !c->header.rows) return;
    int block = plan(&p);
    account_local(RESULT_AT + 2 * SUM_BYTES + SUM_BYTES / 2);
    if (c->activation != NO_ACTIVATION) load_polynomials(&ACTIVATION);
    for (p.row = 0; p.row < c->header.rows; p.row += p.rows) {
        p.rows = smaller(block, c->header.rows - p.row);
        multiply_rows(&p);
    }
}
