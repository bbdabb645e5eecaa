/* sum[i] = left[i] + right[i] in float32: shows that runtime, compiler and kernels work together. */
#include "tpu_kernel.h"

typedef struct {
    uint64_t sum, left, right;
    int32_t count; /* of elements, a multiple of lanes * cores */
} __attribute__((packed)) self_test_arguments;

void self_test(const void *raw) {
    const self_test_arguments *a = raw;
    tpu_initialize();
    int each = a->count / tpu_workitem_num();
    uint64_t offset = (uint64_t)tpu_workitem_index() * each * sizeof(float);
    dim4 shape = {1, NPU_NUM, 1, each / NPU_NUM};
    local_addr_t left = 0, right = BANK_SIZE, sum = 2 * BANK_SIZE;
    tpu_gdma_cpy_S2L(left, a->left + offset, &shape, NULL, NULL, DT_FP32);
    tpu_gdma_cpy_S2L(right, a->right + offset, &shape, NULL, NULL, DT_FP32);
    tpu_bdc_fp_add(sum, left, right, &shape, NULL, NULL, NULL, DT_FP32);
    tpu_gdma_cpy_L2S(a->sum + offset, sum, &shape, NULL, NULL, DT_FP32);
    tpu_poll();
}
TPUKERNEL_FUNC_REGISTER(self_test)
