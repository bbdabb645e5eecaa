/* SILU, GELU and its approximation by tanh. */
#include "activation.h"
#include "commands.h"

void load_polynomials(const activation_memory *memory) {
    tpu_bdc_load_fp32_exp_coeff(memory->exp);
    tpu_bdc_load_fp32_exp_table(memory->table);
    tpu_bdc_load_fp32_erf_coeff(memory->erf);
}

static void multiply(local_addr_t to, local_addr_t a, local_addr_t b, const dim4 *shape) {
    tpu_bdc_fp_mul(to, a, b, shape, NULL, NULL, NULL, DT_FP32);
}

/* x / 2 * (1 + tanh(u)) = x * sigmoid(2 u), with u = sqrt(2 / pi) * (x + 0.044715 x^3) */
static void gelu_tanh(local_addr_t to, local_addr_t from, const dim4 *shape, const activation_memory *memory) {
    const scalar_t cubic = {.f32 = 0.044715f}, linear = {.f32 = 1.0f}, twice = {.f32 = 1.5957691216057308f};
    local_addr_t inner = memory->work[2];
    multiply(inner, from, from, shape);
    tpu_bdc_fp_mul_C(inner, inner, cubic, shape, NULL, NULL, DT_FP32);
    tpu_bdc_fp_add_C(inner, inner, linear, shape, NULL, NULL, DT_FP32);
    multiply(inner, inner, from, shape);
    tpu_bdc_fp_mul_C(inner, inner, twice, shape, NULL, NULL, DT_FP32);
    tpu_bdc_fp32_sigmoid(to, inner, memory->work[0], memory->work[1], memory->exp, memory->table, shape);
    multiply(to, to, from, shape);
}

void activate(local_addr_t to, local_addr_t from, int activation, const dim4 *shape, const activation_memory *memory) {
    const local_addr_t *work = memory->work;
    switch (activation) {
    case SILU: tpu_bdc_fp32_silu(to, from, work[0], work[1], memory->exp, memory->table, shape); break;
    case GELU:
        tpu_bdc_fp32_gelu(to, from, work[0], work[1], work[2], work[3], memory->exp, memory->erf, memory->table, shape);
        break;
    case GELU_TANH: gelu_tanh(to, from, shape, memory); break;
    }
}
