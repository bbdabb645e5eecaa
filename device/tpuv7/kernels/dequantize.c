#include "dequantize.h"
#include "core.h"

typedef void (*elementwise)(local_addr_t, local_addr_t, local_addr_t, const dim4 *, const dim4 *, const dim4 *,
                            const dim4 *, data_type_t);

static data_type_t code_dtype(const linear_command *c) {
    if (c->codes == FLOAT8) return DT_FP8E4M3;
    if (c->codes == INT4) return c->has_zeros ? DT_UINT4 : DT_INT4;
    return c->has_zeros ? DT_UINT8 : DT_INT8;
}

record record_of(const linear_command *c, int inputs) {
    record r = {.groups = divide_up(inputs, c->group_size)};
    r.scales_at = align_up(c->codes == INT4 ? divide_up(inputs, 2) : inputs, 4);
    r.zeros_at = r.scales_at + r.groups * dtype_bytes(c->scale_dtype);
    r.bytes = align_up(r.zeros_at + (c->has_zeros ? r.groups : 0), 4);
    return r;
}

/* Columns of a tensor of rows that lie `stride` bytes apart on their lane, as float32. Codes of 4 bits know no strides:
 * as many rows at once as there are lanes. */
static void widen(local_addr_t to, local_addr_t from, int rows, int columns, int stride, data_type_t dtype) {
    int wide = align_up(columns * 4, LINE_BYTES);
    bool half_bytes = dtype == DT_UINT4 || dtype == DT_INT4;
    for (int row = 0; row < rows; row += LANES, to += wide, from += stride) {
        dim4 shape = {1, smaller(LANES, rows - row), 1, columns}, source = {columns, columns, columns, 1};
        tpu_bdc_cast(to, from, &shape, NULL, half_bytes ? NULL : &source, DT_FP32, dtype, RM_HALF_TO_EVEN);
    }
}

/* values = values op the operand of their group. */
static void with_groups(elementwise op, local_addr_t values, local_addr_t operand, int rows, int inputs, int group) {
    int groups = inputs / group, rest = inputs % group;
    int row = align_up(inputs * 4, LINE_BYTES) / 4, row_groups = align_up(divide_up(inputs, group) * 4, LINE_BYTES) / 4;
    dim4 stride = {row, row, group, 1}, along_group = {row_groups, row_groups, 1, 0};
    dim4 whole = {1, rows, groups, group}, last = {1, rows, 1, rest};
    if (groups) op(values, values, operand, &whole, &stride, &stride, &along_group, DT_FP32);
    values += groups * group * 4;
    if (rest) op(values, values, operand + groups * 4, &last, &stride, &stride, &along_group, DT_FP32);
}

void dequantize(local_addr_t to, local_addr_t from, const linear_command *c, int rows, int inputs,
                const dequantize_memory *memory) {
    record r = record_of(c, inputs);
    int stride = align_up(r.bytes, LINE_BYTES);
    dim4 shape = {1, rows, 1, inputs};
    widen(memory->values, from, rows, inputs, stride, code_dtype(c));
    if (c->has_zeros) {
        widen(memory->zeros, from + r.zeros_at, rows, r.groups, stride, DT_UINT8);
        with_groups(tpu_bdc_fp_sub, memory->values, memory->zeros, rows, inputs, c->group_size);
    }
    widen(memory->scales, from + r.scales_at, rows, r.groups, stride, (data_type_t)c->scale_dtype);
    with_groups(tpu_bdc_fp_mul, memory->values, memory->scales, rows, inputs, c->group_size);
    tpu_bdc_cast(to, memory->values, &shape, NULL, NULL, (data_type_t)c->header.dtype, DT_FP32, RM_HALF_TO_EVEN);
}
