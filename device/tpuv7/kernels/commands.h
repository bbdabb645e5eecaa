/* What the host asks of the chip: commands of fixed size, one after the other in device memory.
 *
 * device/tpuv7/commands.py has the same structures. Addresses are of device memory, strides in elements, 0 stands for
 * what is not there. All matrices are row by row.
 */
#ifndef SOPHSERVE_COMMANDS_H
#define SOPHSERVE_COMMANDS_H

#include "tpu_kernel.h"

enum operator { EMBEDDING, RMS_NORM, LINEAR, CACHE_WRITE, ATTENTION, PERMUTE };
enum activation { NO_ACTIVATION, SILU, GELU, GELU_TANH };
/* How the values of a weight are stored: as activations, or as codes, of which dequantize.h says more. */
enum codes { PLAIN, INT4, INT8, FLOAT8 };

typedef struct {
    int32_t operator;
    int32_t rows;  /* of the batch, or as many as the launch says if that is fewer */
    int32_t dtype; /* a data_type_t, of activations */
    int32_t reserved;
} command_header;

/* out[row] = table[ids[row] - first], zeros where that is beyond the table. */
typedef struct {
    command_header header;
    uint64_t out, table, ids;
    int32_t hidden, vocab, first;
} embedding_command;

/* Of each of `heads` parts of a row: sum = x + residual, out = sum / sqrt(mean(sum^2) + eps) * weight. Heads of x and of
 * residual follow one another in a row; out and sum are without gaps. size is at most 16384. */
typedef struct {
    command_header header;
    uint64_t out, sum, x, residual, weight;
    int32_t heads, size, x_stride, residual_stride;
    float eps;
} rms_norm_command;

/* out = x * weight^T + bias; with an activation, activation(first half) * second half of that, half as wide. outputs
 * are the rows of the weight, inputs at most 65536. Only for codes: a row of the weight has row_bytes, of which each
 * `chunk` inputs have a record, in groups of group_size with a scale of a data_type_t; a chunk has whole groups. */
typedef struct {
    command_header header;
    uint64_t out, x, weight, bias;
    int32_t inputs, outputs, x_stride, activation;
    int32_t codes, row_bytes, chunk, group_size, scale_dtype, has_zeros;
} linear_command;

#define HEAD_DIM 512    /* the most channels of a head in attention */
#define GROUP_HEADS 256 /* the most query heads of a kv head */

/* Where the rows of a batch belong, all int32. */
typedef struct {
    uint64_t input_lengths, cached_lengths, block_tables, slots;
    int32_t sequences, max_blocks, block_size, reserved;
} batch_layout;

/* Rotate q into `rotated`, k and v into their slots of the cache, whose blocks are [kv_heads, block_size, head_dim]. */
typedef struct {
    command_header header;
    uint64_t rotated, q, k, v, keys, values, cos, sin;
    batch_layout batch;
    int32_t heads, kv_heads, key_dim, value_dim, rotary_dim, interleaved;
    int32_t q_stride, k_stride, v_stride;
} cache_write_command;

/* Causal attention of q [rows, heads, key_dim] over the block tables; out [rows, heads, value_dim]. */
typedef struct {
    command_header header;
    uint64_t out, q, keys, values;
    batch_layout batch;
    int32_t heads, kv_heads, key_dim, value_dim, window;
    float scale;
} attention_command;

/* out[row][column] = x[row][order[column]], 0 where that is not among the channels. order is uint16. */
typedef struct {
    command_header header;
    uint64_t out, x, order;
    int32_t columns, channels, x_stride;
} permute_command;

typedef union {
    command_header header;
    embedding_command embedding;
    rms_norm_command rms_norm;
    linear_command linear;
    cache_write_command cache_write;
    attention_command attention;
    permute_command permute;
    uint8_t size[256];
} command;

typedef struct {
    uint64_t program;    /* commands in device memory */
    uint64_t accounts;   /* an `account` of each core, or 0 */
    int32_t count, rows; /* of commands, and the most rows that each works on (0: as many as it says) */
} launch_arguments;

void embedding(const embedding_command *);
void rms_norm(const rms_norm_command *);
void linear(const linear_command *);
void cache_write(const cache_write_command *);
void attention(const attention_command *);
void permute(const permute_command *);

#endif
