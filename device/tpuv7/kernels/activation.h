/* Activation functions of float32 values in local memory. */
#ifndef SOPHSERVE_ACTIVATION_H
#define SOPHSERVE_ACTIVATION_H

#include "tpu_kernel.h"

/* Local memory for the vendor's polynomials, and for four tensors of the values' shape. */
typedef struct {
    local_addr_t exp, table, erf, work[4];
} activation_memory;

#define POLYNOMIAL_BYTES 1024 /* each of exp, table and erf */

void load_polynomials(const activation_memory *);

/* to = the activation (of commands.h) of from, which are different. */
void activate(local_addr_t to, local_addr_t from, int activation, const dim4 *shape, const activation_memory *);

#endif
