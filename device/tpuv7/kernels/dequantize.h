/* Weights that are stored as codes.
 *
 * A row of the weight is a row of records, one for each chunk of inputs: the codes (of 4 bits two a byte, the even input
 * low), from the next multiple of 4 bytes on a scale for each group of inputs, then its zero, a byte, if there are zeros,
 * and what is missing to a multiple of 4. Whole numbers without zeros have a sign. So one transfer brings all that a tile
 * needs. device/tpuv7/weights.py makes it.
 */
#ifndef SOPHSERVE_DEQUANTIZE_H
#define SOPHSERVE_DEQUANTIZE_H

#include "commands.h"

typedef struct {
    int groups;
    int scales_at, zeros_at, bytes; /* from its begin, and in all */
} record;

record record_of(const linear_command *, int inputs);

/* Local memory for values as float32, and for scales and zeros as float32, which are at most as many. */
typedef struct {
    local_addr_t values, scales, zeros;
} dequantize_memory;

/* The values of a chunk of inputs of some rows: (code - zero) * scale in float32, rounded once to the activations' type.
 * from: their records, a row to a lane. to: [1, rows, 1, inputs]. */
void dequantize(local_addr_t to, local_addr_t from, const linear_command *, int rows, int inputs,
                const dequantize_memory *);

#endif
