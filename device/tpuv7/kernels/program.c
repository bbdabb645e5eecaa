/* Runs a program: all cores go through its commands together. */
#include "commands.h"
#include "core.h"

THREAD account core_account;

static void run_command(const command *next) {
    switch (next->header.operator) {
    case EMBEDDING: embedding(&next->embedding); break;
    case RMS_NORM: rms_norm(&next->rms_norm); break;
    case LINEAR: linear(&next->linear); break;
    case CACHE_WRITE: cache_write(&next->cache_write); break;
    case ATTENTION: attention(&next->attention); break;
    case PERMUTE: permute(&next->permute); break;
    }
}

void run_program(const void *raw) {
    const launch_arguments *launch = raw;
    tpu_initialize();
    core_account = (account){0};
    const command *commands = host_words(launch->program, (uint64_t)launch->count * sizeof(command));
    for (int i = 0; i < launch->count; ++i) {
        command next = commands[i];
        if (launch->rows && launch->rows < next.header.rows) next.header.rows = launch->rows;
        run_command(&next);
        tpu_poll();
        tpu_sync_all();
    }
    if (launch->accounts) {
        uint64_t mine = launch->accounts + tpu_workitem_index() * sizeof(account);
        *(account *)tpu_global_mem_addr(mine) = core_account;
        tpu_flush_cache(mine / tpu_cache_line_size() * tpu_cache_line_size(), tpu_cache_line_size());
    }
    tpu_poll();
}
TPUKERNEL_FUNC_REGISTER(run_program)
