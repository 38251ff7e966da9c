/* How attention lays out its heads in tiles, and shares out its work.

   Matrices are multiplied in tiles (matrix_tiles.h): for X Y^T, A is X's rows (`pack`) and B Y's, transposed (`turn`); for X Y, B is Y's rows
   interleaved (`pack_rows`); for X^T Y, A is X's columns (`pack_rows`, turned).

   Shapes: B batch, T tokens, H query heads, K key/value heads, D head size; heads (B, T, H + 2K, D) holds q, k, v. One head at a time is
   laid out in tiles, as (rows, width): T to a multiple of 32 and D to whole tiles, with zeros behind. One task is one key/value head of
   one sequence, with the query heads that share it; tasks are shared out among torch's threads. */

#pragma once
#include <math.h>
#include <stdlib.h>

#include "dropout.h"
#include "matrix_tiles.h"

enum { SIDE = LANES, SIDES = 2, QUERIES = SIDES * SIDE }; /* queries side by side; of a block in the backward pass */
#define LOG2_E 1.4426950408889634

typedef struct {
    const char *heads;
    const int64_t *begins; /* (B, T) the first key that each query sees; NULL: 0 */
    int64_t B, T, H, K, D;
    uint64_t seed;
    int32_t threshold; /* a byte below it drops its weight; 0: no dropout */
    float drop_scale;  /* 1 / (the share that dropout keeps) */
    char *out;         /* (B, T, H, D) */
    float *log_sums;   /* (B, H, rows): log2 of the softmax's denominators */
    const char *grad;  /* (B, T, H, D) */
    char *d_heads;     /* (B, T, H + 2K, D) */
    int64_t rows, width, row; /* of a padded head; bytes of its rows */
} Task;

/* ---- laying out */

/* Where element (t, d) of a head in tiles (rows / 16, width / DEPTH) is, in numbers. */
INLINE int64_t place(const Task *a, int64_t t, int64_t d, int bf16) {
    int64_t depth = DEPTH(bf16);
    return (t / 16 * (a->width / depth) + d / depth) * (TILE / SIZE(bf16)) + t % 16 * depth + d % depth;
}

/* Head h of sequence b, (T, D) of x (B, T, n, D), in tiles. */
INLINE void pack(const Task *a, const char *x, int64_t n, int64_t b, int64_t h, char *tiles, int bf16) {
    int64_t size = SIZE(bf16), depth = DEPTH(bf16);
    for (int64_t t = 0; t < a->rows; t++)
        for (int64_t d = 0; d < a->width; d += depth) {
            char *to = tiles + place(a, t, d, bf16) * size;
            const char *from = x + (((b * a->T + t) * n + h) * a->D + d) * size;
            int64_t here = t < a->T ? (a->D - d) * size : 0;
            if (here >= 64) memcpy(to, from, 64);
            else memset(to, 0, 64), memcpy(to, from, here);
        }
}

/* Ask for what a pass reads and writes in rows t .. t + n of query head h of sequence b, and of its keys and values. h may be H, the first head
   of the next sequence. */
INLINE void fetch(const Task *a, int64_t b, int64_t h, int64_t t, int64_t n, int bf16) {
    if (h == a->H) h = 0, b++;
    int64_t bytes = a->D * SIZE(bf16), all = a->H + 2 * a->K, key = a->H + h / (a->H / a->K);
    for (int64_t row = b * a->T + t; b < a->B && row < b * a->T + least(t + n, a->T); row++)
        for (int64_t i = 0; i < bytes; i += 64) {
            int64_t at[3] = {(row * all + h) * bytes + i, (row * all + key) * bytes + i, (row * all + key + a->K) * bytes + i};
            for (int k = 0; k < 3; k++) {
                __builtin_prefetch(a->heads + at[k], 0, 2);
                if (a->grad) __builtin_prefetch(a->d_heads + at[k], 1, 2);
            }
            if (a->grad) __builtin_prefetch(a->grad + (row * a->H + h) * bytes + i, 0, 2);
            __builtin_prefetch(a->out + (row * a->H + h) * bytes + i, 0, 2);
        }
}

/* Each tile of a head as a matrix of words, transposed. */
INLINE void turn(const Task *a, const char *tiles, char *turned) {
    for (int64_t i = 0; i < a->rows * a->row; i += TILE) {
        uvec words[16];
        memcpy(words, tiles + i, TILE);
        transpose(words);
        memcpy(turned + i, words, TILE);
    }
}

INLINE uvec halves(const char *x) { /* 16 of them as words */
    hvec h;
    memcpy(&h, x, sizeof h);
    return widen(h);
}

/* Tiles (rows / DEPTH, width / 16) of a head in tiles x: DEPTH rows of 16 numbers, words of two rows in bfloat16. If `turned`, transposed
   after that: 16 columns of DEPTH rows. */
INLINE void pack_rows(const Task *a, const char *x, int turned, char *tiles, int bf16) {
    for (int64_t t = 0; t < a->rows; t += DEPTH(bf16))
        for (int64_t d = 0; d < a->width; d += 16, tiles += TILE) {
            uvec words[16];
            for (int i = 0; i < 16; i++) {
                const char *from = x + place(a, t + (bf16 ? 2 * i : i), d, bf16) * SIZE(bf16);
                if (bf16) words[i] = halves(from) | halves(from + 64) << 16;
                else memcpy(&words[i], from, 64);
            }
            if (turned) transpose(words);
            memcpy(tiles, words, TILE);
        }
}

INLINE int64_t begin_of(const Task *a, int64_t b, int64_t t) { return a->begins && t < a->T ? a->begins[b * a->T + t] : 0; }

/* The first key that one of n queries from t sees, down to a multiple of 32. */
INLINE int64_t first_key(const Task *a, int64_t b, int64_t t, int64_t n) {
    int64_t first = t;
    for (int64_t i = t; i < t + n && i < a->T; i++) first = begin_of(a, b, i) < first ? begin_of(a, b, i) : first;
    return first / 32 * 32;
}

/* Queries t .. t + SIDE: the first key that each sees, and the first that all see. */
typedef struct {
    int64_t t, all;
    ivec begins;
} Sight;

INLINE Sight sight(const Task *a, int64_t b, int64_t t) {
    Sight s = {.t = t};
    for (int i = 0; i < SIDE && a->begins; i++) {
        int64_t begin = begin_of(a, b, t + i);
        s.begins[i] = (int32_t)begin;
        s.all = begin > s.all ? begin : s.all;
    }
    return s;
}

/* The scores of key j, -infinity for the queries that do not see it. */
INLINE vec seen(vec scores, const Sight *s, int64_t j) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (j <= s->t && j >= s->all) return scores;
    return choose((lane >= (int32_t)(j - s->t)) & (s->begins <= (int32_t)j), scores, splat(-INFINITY));
}

/* Which of queries t .. t + SIDE keep the weights of keys j .. j + 4: of each key 16 bits. */
INLINE uint64_t kept(const Task *a, int64_t b, int64_t h, int64_t t, int64_t j) {
    return a->threshold ? keep_mask(a->seed, a->threshold, ((b * a->H + h) * (a->rows / SIDE) + t / SIDE) * (a->rows / 4) + j / 4) : ~0ull;
}

/* ---- tasks */

/* Share out the B * K tasks; oneDNN's tile configuration is put back afterwards. 0, or 1 if there was no memory. */
static int run_tasks(const Task *a, size_t scratch_bytes, void (*task)(const Task *, int64_t b, int64_t k, char *scratch)) {
    int failed = 0;
#pragma omp parallel
    {
        TileConfig before __attribute__((aligned(64)));
        set_tiles(&before);
        char *scratch = aligned_alloc(64, (scratch_bytes + 63) / 64 * 64);
        THREAD_RANGE(a->B * a->K, from, to);
        for (int64_t i = from; scratch && i < to; i++) task(a, i / a->K, i % a->K, scratch);
        if (!scratch) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        free(scratch);
        restore_tiles(&before);
    }
    return failed;
}

/* The task with its padded sizes; 0 if the sizes are not possible. */
static int lay_out(Task *a, int bf16) {
    if (a->B < 0 || a->T < 1 || a->H < 1 || a->K < 1 || a->D < 1 || a->H % a->K) return 0;
    a->rows = (a->T + 31) / 32 * 32;
    a->width = (a->D + DEPTH(bf16) - 1) / DEPTH(bf16) * DEPTH(bf16);
    a->row = a->width * SIZE(bf16);
    return 1;
}
