/* What the machine can do at most: `machine THREADS SECONDS` prints one JSON object.

   read_gbs: gigabytes that all threads together read per second from a buffer far larger than any cache.
   float32_gflops, bfloat16_gflops: operations per second of fused multiply-adds, or of the CPU's bfloat16 products
   (AMX tiles, else vdpbf16ps, else none: then the float32 figure), on registers only.
   product: which instruction gave bfloat16_gflops. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#define AMX_REQUEST 0x1023 /* ARCH_REQ_XCOMP_PERM */
#define AMX_TILE_DATA 18
#endif

#if defined(__AVX512F__)
#define LANES 16
#define CHAINS 16
#elif defined(__AVX__)
#define LANES 8
#define CHAINS 12
#else
#define LANES 4
#define CHAINS 16
#endif
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef uint64_t words __attribute__((vector_size(4 * LANES)));

#define BUFFER_BYTES ((size_t)1 << 30)
#define STREAMS 4
#define MAX_THREADS 1024
#define HIDE(x) __asm__ volatile("" : : "r"(&(x)) : "memory") /* the compiler must not guess x's value or drop it */
#define UNROLL _Pragma("GCC unroll 16")

struct job {
    int index, threads;
    double seconds;
    char *buffer;
    double (*measure)(struct job *);
    double result;
};
static pthread_barrier_t barrier;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Bytes per second of this thread's best pass over its part of the buffer, as several streams at once. All threads
   begin a pass together. */
static double read_memory(struct job *job) {
    size_t part = BUFFER_BYTES / job->threads / STREAMS / sizeof(words) * sizeof(words);
    const words *start[STREAMS];
    words sums[STREAMS] = {{0}};
    double best = 0;
    for (int s = 0; s < STREAMS; ++s) start[s] = (const words *)(job->buffer + (job->index * STREAMS + s) * part);
    int passes = 3 + (int)(job->seconds / 0.05);
    for (int pass = 0; pass < passes; ++pass) {
        pthread_barrier_wait(&barrier);
        double begin = now();
        for (size_t i = 0; i < part / sizeof(words); i += 4)
            for (int s = 0; s < STREAMS; ++s)
                for (int u = 0; u < 4; ++u) sums[s] += start[s][i + u];
        pthread_barrier_wait(&barrier);
        double rate = (double)part * STREAMS / (now() - begin);
        if (rate > best) best = rate;
    }
    HIDE(sums);
    return best;
}

/* Operations per second of a loop that does `operations` of them in one turn of `body`. */
#define TIMED_LOOP(operations, body)                                                   \
    double total = 0, begin = now(), elapsed;                                          \
    do {                                                                               \
        for (int turn = 0; turn < 100000; ++turn) { body }                             \
        total += 100000.0 * (operations);                                              \
    } while ((elapsed = now() - begin) < job->seconds);

static double multiply_float32(struct job *job) {
    floats sums[CHAINS], a, b;
    memset(sums, 0, sizeof sums);
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    HIDE(a);
    HIDE(b);
    floats factor = a, term = b;
    TIMED_LOOP(2.0 * LANES * CHAINS, UNROLL for (int c = 0; c < CHAINS; ++c) sums[c] = sums[c] * factor + term;)
    HIDE(sums);
    return total / elapsed;
}

#if defined(__AMX_BF16__) && defined(__linux__)
#define PRODUCT "tdpbf16ps"
static double multiply_bfloat16(struct job *job) {
    struct { uint8_t palette, row, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
    for (int t = 0; t < 8; ++t) config.bytes[t] = 64, config.rows[t] = 16;
    if (syscall(SYS_arch_prctl, AMX_REQUEST, AMX_TILE_DATA)) return 0;
    _tile_loadconfig(&config);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    _tile_zero(4); _tile_zero(5); _tile_zero(6); _tile_zero(7);
    TIMED_LOOP(4 * 16 * 16 * 32 * 2.0,
               _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);)
    _tile_release();
    return total / elapsed;
}
#elif defined(__AVX512BF16__)
#define PRODUCT "vdpbf16ps"
static double multiply_bfloat16(struct job *job) {
    __m512 sums[CHAINS];
    __m512i a = _mm512_setzero_si512(), b = a;
    memset(sums, 0, sizeof sums);
    HIDE(a);
    HIDE(b);
    __m512bh left = (__m512bh)a, right = (__m512bh)b;
    TIMED_LOOP(4.0 * LANES * CHAINS, UNROLL for (int c = 0; c < CHAINS; ++c) sums[c] =
                   _mm512_dpbf16_ps(sums[c], left, right);)
    HIDE(sums);
    return total / elapsed;
}
#else
#define PRODUCT "float32"
#define multiply_bfloat16 multiply_float32
#endif

static void *work(void *argument) {
    struct job *job = argument;
    if (job->measure == NULL) { /* each thread touches its part first, so that it lies near to it */
        size_t part = BUFFER_BYTES / job->threads;
        memset(job->buffer + job->index * part, 1, part);
        return NULL;
    }
    pthread_barrier_wait(&barrier);
    job->result = job->measure(job);
    return NULL;
}

/* The sum over all threads. */
static double run(int threads, double seconds, char *buffer, double (*measure)(struct job *)) {
    pthread_t handles[MAX_THREADS];
    struct job jobs[MAX_THREADS];
    double sum = 0;
    pthread_barrier_init(&barrier, NULL, threads);
    for (int t = 0; t < threads; ++t) {
        jobs[t] = (struct job){t, threads, seconds, buffer, measure, 0};
        if (pthread_create(&handles[t], NULL, work, &jobs[t])) exit(1);
    }
    for (int t = 0; t < threads; ++t) {
        pthread_join(handles[t], NULL);
        sum += jobs[t].result;
    }
    pthread_barrier_destroy(&barrier);
    return sum;
}

int main(int count, char **arguments) {
    int threads = count > 1 ? atoi(arguments[1]) : 1;
    double seconds = count > 2 ? atof(arguments[2]) : 0.5;
    if (threads < 1 || threads > MAX_THREADS) return 2;
    char *buffer = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) return 1;
    madvise(buffer, BUFFER_BYTES, MADV_HUGEPAGE);
    run(threads, seconds, buffer, NULL);
    double read = run(threads, seconds, buffer, read_memory);
    double float32 = run(threads, seconds, buffer, multiply_float32);
    double bfloat16 = run(threads, seconds, buffer, multiply_bfloat16);
    printf("{\"read_gbs\": %.2f, \"float32_gflops\": %.1f, \"bfloat16_gflops\": %.1f, \"product\": \"%s\"}\n",
           read / 1e9, float32 / 1e9, bfloat16 / 1e9, PRODUCT);
    return 0;
}
