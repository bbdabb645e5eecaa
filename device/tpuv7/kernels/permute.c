/* Columns in another order. Each core makes a range of them. */
#include "commands.h"
#include "core.h"

#define SHARE_UNIT 32 /* columns */
#define PIECE_COLUMNS 4096
#define ORDER_AT (8 * BANK_BYTES)
#define RESULT_AT (9 * BANK_BYTES)

static void permute_piece(const permute_command *c, int row, int rows, int column, int columns) {
    data_type_t dtype = (data_type_t)c->header.dtype;
    const scalar_t zero = {.u32 = 0};
    dim4 shape = {1, rows, 1, columns};
    load_lanes(ORDER_AT, c->order + column * 2, columns, DT_UINT16);
    tpu_bdc_w_gather_exception(RESULT_AT, 0, ORDER_AT, zero, &shape, c->channels, dtype, DT_UINT16, true);
    uint64_t to = c->out + ((uint64_t)row * c->columns + column) * 2;
    store_rows(to, RESULT_AT, rows, columns, c->columns, dtype);
}

void permute(const permute_command *c) {
    share own = own_share(c->columns, SHARE_UNIT);
    if (own.begin == own.end) return;
    account_local(RESULT_AT + PIECE_COLUMNS * 2);
    for (int row = 0; row < c->header.rows; row += LANES) {
        int rows = smaller(LANES, c->header.rows - row);
        load_rows(0, c->x + (uint64_t)row * c->x_stride * 2, rows, c->channels, c->x_stride, c->header.dtype);
        for (int column = own.begin; column < own.end; column += PIECE_COLUMNS) {
            permute_piece(c, row, rows, column, smaller(PIECE_COLUMNS, own.end - column));
        }
    }
}
