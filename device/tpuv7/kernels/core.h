/* What kernels have in common: the share of a core, local memory, transfers that are accounted for. */
#ifndef SOPHSERVE_CORE_H
#define SOPHSERVE_CORE_H

#include "tpu_kernel.h"

#define LANES 64
#define LOCAL_BYTES (256 * 1024) /* of each lane */
#define BANK_BYTES (16 * 1024)   /* what DMA and products use at the same time lies in different ones */
#define LINE_BYTES 64            /* channels of a local tensor begin at multiples of this */

/* What a core did in a launch. Each has a cache line of its own: cores write at the same time. */
typedef struct {
    uint64_t bytes;      /* moved between device memory and local memory, or within device memory */
    uint64_t overlapped; /* of these, while the core computed */
    uint64_t peak;       /* the most local memory that was in use, bytes a lane */
    uint64_t operations; /* multiplications and additions of products */
    uint64_t unused[4];
} account;

extern THREAD account core_account;

static inline int smaller(int a, int b) { return a < b ? a : b; }
static inline int larger(int a, int b) { return a > b ? a : b; }
static inline int divide_up(int a, int b) { return (a + b - 1) / b; }
static inline uint64_t align_up(uint64_t size, int to) { return (size + to - 1) / to * to; }
static inline int dtype_bytes(int dtype) { return tpu_data_type_size((data_type_t)dtype); }

/* Half-open range of `count` things that this core works on; cut so that the ranges are multiples of `unit`. */
typedef struct {
    int begin, end;
} share;

static inline share own_share(int count, int unit) {
    int units = divide_up(count, unit), cores = tpu_workitem_num(), core = tpu_workitem_index();
    share own = {(int)((int64_t)units * core / cores) * unit, (int)((int64_t)units * (core + 1) / cores) * unit};
    own.begin = smaller(own.begin, count);
    own.end = smaller(own.end, count);
    return own;
}

static inline void account_bytes(uint64_t bytes) {
    core_account.bytes += bytes;
    if (tpu_is_parallel_state()) core_account.overlapped += bytes;
}

static inline void account_product(uint64_t rows, uint64_t columns, uint64_t inputs) {
    core_account.operations += 2 * rows * columns * inputs;
}

static inline void account_local(uint64_t end) {
    if (end > core_account.peak) core_account.peak = end;
}

/* Rows of `heads` times `size` values, each row to a lane: row r is channel r of a local tensor [1, rows, heads, size]. */
static inline void load_heads(local_addr_t to, uint64_t from, int rows, int heads, int size, int stride, int dtype) {
    dim4 shape = {1, rows, heads, size}, source = {stride, stride, size, 1};
    tpu_gdma_cpy_S2L(to, from, &shape, NULL, &source, (data_type_t)dtype);
    account_bytes((uint64_t)rows * heads * size * dtype_bytes(dtype));
}

static inline void store_heads(uint64_t to, local_addr_t from, int rows, int heads, int size, int stride, int dtype) {
    dim4 shape = {1, rows, heads, size}, target = {stride, stride, size, 1};
    tpu_gdma_cpy_L2S(to, from, &shape, &target, NULL, (data_type_t)dtype);
    account_bytes((uint64_t)rows * heads * size * dtype_bytes(dtype));
}

/* Values of 16 bits move in pairs where they can: the emulator takes its time for each element, however wide. */
static inline int together(uint64_t address, int columns, int stride, int dtype) {
    return dtype_bytes(dtype) == 2 && address % 4 == 0 && columns % 2 == 0 && stride % 2 == 0 ? 2 : 1;
}

static inline void load_rows(local_addr_t to, uint64_t from, int rows, int columns, int stride, int dtype) {
    int pair = together(from, columns, stride, dtype);
    load_heads(to, from, rows, 1, columns / pair, stride / pair, pair == 2 ? DT_UINT32 : dtype);
}

static inline void store_rows(uint64_t to, local_addr_t from, int rows, int columns, int stride, int dtype) {
    int pair = together(to, columns, stride, dtype);
    store_heads(to, from, rows, 1, columns / pair, stride / pair, pair == 2 ? DT_UINT32 : dtype);
}

/* A value to each lane: value v is channel v of a local tensor [1, count, 1, 1] without gaps. */
static inline void load_lanes(local_addr_t to, uint64_t from, int count, int dtype) {
    dim4 shape = {1, count, 1, 1}, source = {count, 1, 1, 1}, target;
    tpu_compact_stride(&target, 0, &shape);
    tpu_gdma_cpy_S2L(to, from, &shape, &target, &source, (data_type_t)dtype);
    account_bytes((uint64_t)count * dtype_bytes(dtype));
}

/* One row to all lanes. */
static inline void load_everywhere(local_addr_t to, uint64_t from, int columns, int dtype) {
    dim4 shape = {1, LANES, 1, columns};
    tpu_gdma_channel_bcast_S2L(to, from, &shape, NULL, NULL, (data_type_t)dtype);
    account_bytes((uint64_t)columns * dtype_bytes(dtype));
}

/* What the host has written to device memory, for the core's own processor to read. */
static inline const void *host_words(uint64_t address, uint64_t bytes) {
    uint64_t line = tpu_cache_line_size(), first = address / line * line;
    tpu_invalidate_cache(first, align_up(address + bytes - first, line));
    return tpu_global_mem_addr(address);
}

#endif
