/* Rows of a table. */
#include "commands.h"
#include "core.h"

void embedding(const embedding_command *c) {
    share own = own_share(c->header.rows, 1);
    if (own.begin == own.end) return;
    const int32_t *ids = host_words(c->ids, (uint64_t)c->header.rows * sizeof(int32_t));
    uint64_t width = (uint64_t)c->hidden * dtype_bytes(c->header.dtype);
    for (int row = own.begin; row < own.end; ++row) {
        int64_t at = (int64_t)ids[row] - c->first;
        if (at >= 0 && at < c->vocab) {
            tpu_gdma_system_cpy(c->out + row * width, c->table + at * width, c->hidden, (data_type_t)c->header.dtype);
        } else {
            scalar_t zero = {.u32 = 0};
            tpu_gdma_system_set(c->out + row * width, zero, c->hidden, (data_type_t)c->header.dtype);
        }
        account_bytes(2 * width);
    }
}
