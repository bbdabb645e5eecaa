/* Columns in another order. A core makes a range of pieces, each of some columns of a block of rows. */
#include "commands.h"
#include "core.h"

#define PIECE_COLUMNS 256
#define ORDER_AT (8 * BANK_BYTES)
#define RESULT_AT (9 * BANK_BYTES)

static void load_block(const permute_command *c, int row, int rows) {
    load_rows(0, c->x + (uint64_t)row * c->x_stride * 2, rows, c->channels, c->x_stride, c->header.dtype);
}

static void permute_piece(const permute_command *c, int row, int rows, int column) {
    data_type_t dtype = (data_type_t)c->header.dtype;
    const scalar_t zero = {.u32 = 0};
    int columns = smaller(PIECE_COLUMNS, c->columns - column);
    dim4 shape = {1, rows, 1, columns};
    load_lanes(ORDER_AT, c->order + column * 2, columns, DT_UINT16);
    tpu_bdc_w_gather_exception(RESULT_AT, 0, ORDER_AT, zero, &shape, c->channels, dtype, DT_UINT16, true);
    uint64_t to = c->out + ((uint64_t)row * c->columns + column) * 2;
    store_rows(to, RESULT_AT, rows, columns, c->columns, dtype);
}

void permute(const permute_command *c) {
    int pieces = divide_up(c->columns, PIECE_COLUMNS), loaded = -1;
    share own = own_share(divide_up(c->header.rows, LANES) * pieces, 1);
    if (own.begin < own.end) account_local(RESULT_AT + PIECE_COLUMNS * 2);
    for (int index = own.begin; index < own.end; ++index) {
        int row = index / pieces * LANES, rows = smaller(LANES, c->header.rows - row);
        if (row != loaded) load_block(c, row, rows);
        loaded = row;
        permute_piece(c, row, rows, index % pieces * PIECE_COLUMNS);
    }
}
