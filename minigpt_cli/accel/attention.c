/* Causal attention for training: formula and gradient of models/attention.py, in float32 and bfloat16.

   Scores stay in the cache: each block of queries is multiplied, normalised, dropped and used there. For the backward pass one number
   of each row is kept, the logarithm of the softmax's denominator, and probabilities are computed again from it (FlashAttention-2,
   Dao 2023).

   Matrices are multiplied in tiles (matrix_tiles.h): for X Y^T, A is X's rows (`pack`) and B Y's, transposed (`turn`); for X Y, B is Y's rows
   interleaved (`pack_rows`).

   Shapes: B batch, T tokens, H query heads, K key/value heads, D head size; heads (B, T, H + 2K, D) holds q, k, v. One head at a time is
   laid out in tiles, as (rows, width): T to a multiple of 32 and D to whole tiles, with zeros behind. One task is one key/value head of
   one sequence, with the query heads that share it; tasks are shared out among torch's threads. */

#include <math.h>
#include <stdlib.h>

#include "dropout.h"
#include "matrix_tiles.h"

enum { QUERIES = 32 }; /* of a block in the backward pass */

typedef struct {
    const char *heads;
    const int64_t *begins; /* (B, T) the first key that each query sees; NULL: 0 */
    int64_t B, T, H, K, D;
    uint64_t seed;
    int32_t threshold; /* a byte below it drops its weight; 0: no dropout */
    float drop_scale;  /* 1 / (the share that dropout keeps) */
    char *out;         /* (B, T, H, D) */
    float *lse;        /* (B, H, rows) */
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

/* Ask for what the backward pass reads and writes in rows t .. t + n of query head h of sequence b, and of its keys and values. h may be H, the
   first head of the next sequence. */
INLINE void fetch(const Task *a, int64_t b, int64_t h, int64_t t, int64_t n, int bf16) {
    if (h == a->H) h = 0, b++;
    int64_t bytes = a->D * SIZE(bf16), all = a->H + 2 * a->K, key = a->H + h / (a->H / a->K);
    for (int64_t row = b * a->T + t; b < a->B && row < b * a->T + least(t + n, a->T); row++)
        for (int64_t i = 0; i < bytes; i += 64) {
            int64_t at[3] = {(row * all + h) * bytes + i, (row * all + key) * bytes + i, (row * all + key + a->K) * bytes + i};
            for (int k = 0; k < 3; k++) __builtin_prefetch(a->heads + at[k], 0, 2), __builtin_prefetch(a->d_heads + at[k], 1, 2);
            __builtin_prefetch(a->grad + (row * a->H + h) * bytes + i, 0, 2);
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

/* v with `rest` in all lanes but those from `from` to `to`. */
INLINE vec between(vec v, int64_t from, int64_t to, float rest) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int32_t begin = from < 0 ? 0 : from > LANES ? LANES : from, end = to < 0 ? 0 : to > LANES ? LANES : to;
    return choose((lane >= begin) & (lane < end), v, splat(rest));
}

INLINE int64_t begin_of(const Task *a, int64_t b, int64_t t) { return a->begins && t < a->T ? a->begins[b * a->T + t] : 0; }

/* The first key that one of n queries from t sees, down to a multiple of 32. */
INLINE int64_t first_key(const Task *a, int64_t b, int64_t t, int64_t n) {
    int64_t first = t;
    for (int64_t i = t; i < t + n && i < a->T; i++) first = begin_of(a, b, i) < first ? begin_of(a, b, i) : first;
    return first / 32 * 32;
}

INLINE uint64_t mask_group(const Task *a, int64_t b, int64_t h, int64_t t) { return ((b * a->H + h) * a->T + t) * ((a->T + GROUP - 1) / GROUP); }

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

/* ---- forward */

/* scores (16, rows) of queries t .. t + 16 and keys from `first` on become probabilities; weights are those in tiles, without the dropped. */
INLINE void softmax(const Task *a, float *scores, char *weights, float *lse, int64_t b, int64_t first, int64_t t, uint64_t group, int bf16) {
    int64_t depth = DEPTH(bf16), tile = TILE / SIZE(bf16);
    float scale = 1.0f / sqrtf((float)a->D), denominator[16];
    for (int64_t r = 0; r < 16; r++, group += (a->T + GROUP - 1) / GROUP) {
        float *row = scores + r * a->rows;
        int64_t begin = begin_of(a, b, t + r);
        vec top = splat(-INFINITY), total = splat(0);
        for (int64_t i = first; i <= t; i += LANES) {
            vec v = load(row, i, 0) * scale;
            if (i == t || i < begin) v = between(v, begin - i, t + r + 1 - i, -INFINITY);
            store(row, i, v, 0);
            top = vmax(v, top);
        }
        float m = largest(top);
        for (int64_t i = first; i <= t; i += LANES) {
            vec v = vexp(load(row, i, 0) - m);
            store(row, i, v, 0);
            total += v;
        }
        float inverse = 1.0f / (denominator[r] = sum(total));
        lse[t + r] = m;
        uint64_t bits = ~0ull;
        for (int64_t i = first; i <= t; i += LANES) {
            if (a->threshold && (i % GROUP == 0 || i == first)) bits = keep_mask(a->seed, a->threshold, group + i / GROUP);
            store(weights, i / depth * tile + r * depth + i % depth, masked(load(row, i, 0) * inverse, bits, i % GROUP), bf16);
        }
        if (bf16 && t % 32 == 0) store(weights, t / depth * tile + r * depth + 16, splat(0), 1); /* a tile is 32 keys */
    }
    for (int r = 0; r < 16; r++) lse[t + r] += logf(denominator[r]); /* at the end, since a call empties the registers */
}

INLINE void forward_task(const Task *a, int64_t b, int64_t k, char *scratch, int bf16) {
    int64_t rows = a->rows, head = rows * a->row, share = a->H / a->K, depth = DEPTH(bf16), across = a->width / 16 * TILE;
    char *q = scratch, *keys_turned = q + head, *value_rows = keys_turned + head, *weights = value_rows + head;
    float *scores = (float *)(weights + rows / depth * TILE), *y = scores + 16 * rows;
    pack(a, a->heads, a->H + 2 * a->K, b, a->H + k, q, bf16);
    turn(a, q, keys_turned);
    pack(a, a->heads, a->H + 2 * a->K, b, a->H + a->K + k, q, bf16);
    pack_rows(a, q, 0, value_rows, bf16);
    for (int64_t h = k * share; h < (k + 1) * share; h++) {
        pack(a, a->heads, a->H + 2 * a->K, b, h, q, bf16);
        for (int64_t t = 0; t < a->T; t += 16) {
            int64_t first = first_key(a, b, t, 16), blocks = (t + 16 - first + depth - 1) / depth;
            for (int64_t j = first; j <= t; j += 16)
                multiply(scores + j, rows, q + t * a->row, TILE, keys_turned + j * a->row, TILE, a->row / 64, 0, bf16);
            softmax(a, scores, weights, a->lse + (b * a->H + h) * rows, b, first, t, mask_group(a, b, h, t), bf16);
            for (int64_t d = 0; d < a->D; d += 16) {
                const char *values = value_rows + first / depth * across + d / 16 * TILE;
                multiply(y, 16, weights + first / depth * TILE, TILE, values, across, blocks, 0, bf16);
                for (int64_t r = 0; r < 16 && t + r < a->T; r++)
                    store_n(a->out, ((b * a->T + t + r) * a->H + h) * a->D + d, a->D - d, load(y, 16 * r, 0) * a->drop_scale, bf16);
            }
        }
    }
}

static void forward_in_float32(const Task *a, int64_t b, int64_t k, char *scratch) { forward_task(a, b, k, scratch, 0); }
static void forward_in_bfloat16(const Task *a, int64_t b, int64_t k, char *scratch) { forward_task(a, b, k, scratch, 1); }

/* 0, or 1 where the sizes are not possible or there is no memory; so too below. */
int32_t forward(const void *heads, const int64_t *begins, void *out, float *lse, int64_t B, int64_t T, int64_t H, int64_t K, int64_t D,
                uint64_t seed, int32_t threshold, float drop_scale, int32_t bf16) {
    Task a = {.heads = heads, .begins = begins, .B = B, .T = T, .H = H, .K = K, .D = D, .seed = seed, .threshold = threshold,
              .drop_scale = drop_scale, .out = out, .lse = lse};
    if (!lay_out(&a, bf16)) return 1;
    return run_tasks(&a, 3 * a.rows * a.row + a.rows / DEPTH(bf16) * TILE + 64 * a.rows + TILE, bf16 ? forward_in_bfloat16 : forward_in_float32);
}

/* ---- backward: with P the probabilities, M the mask times its scale, G the gradient of y = (P M) v, and delta = sum(G y) of each row,
   dS = P (M (G v^T) - delta), dq = dS k, dk = dS^T q, dv = (P M)^T G. dk and dv are summed transposed. */

typedef struct {
    char *keys_turned, *key_rows, *values_turned; /* tiles */
    char *q, *q_columns, *g, *g_columns;          /* as rows and as columns */
    char *ds;                                     /* tiles (QUERIES / 16, rows / DEPTH) */
    char *ds_rows, *p_rows;                       /* tiles of QUERIES x 16 */
    float *scores, *dp;                           /* (QUERIES, 16) */
    float *dk, *dv;                               /* tiles (rows / 16, width / 16) of 16 columns */
} Scratch;

INLINE void *next(char **at, size_t bytes) {
    *at += bytes;
    return *at - bytes;
}

static size_t divide(const Task *a, Scratch *s, char *start, int bf16) {
    size_t head = a->rows * a->row, sums = 4 * a->rows * a->width;
    char *at = start;
    *s = (Scratch){.keys_turned = next(&at, head), .key_rows = next(&at, head), .values_turned = next(&at, head), .q = next(&at, head),
                   .q_columns = next(&at, head), .g = next(&at, head), .g_columns = next(&at, head),
                   .ds = next(&at, QUERIES / 16 * a->rows / DEPTH(bf16) * TILE), .ds_rows = next(&at, 2 * TILE), .p_rows = next(&at, 2 * TILE),
                   .scores = next(&at, 2 * TILE), .dp = next(&at, 2 * TILE), .dk = next(&at, sums), .dv = next(&at, sums)};
    return at - start;
}

/* Rows x and y, one after the other along the sum, for a tile's rows: in float32 two rows, in bfloat16 one row of pairs. */
INLINE void store_two(char *tiles, int64_t row, vec x, vec y, int bf16) {
    if (bf16) {
        uvec pairs = widen(to_bf16(x)) | widen(to_bf16(y)) << 16;
        memcpy(tiles + 32 * row, &pairs, 64);
    } else {
        memcpy(tiles + 64 * row, &x, 64);
        memcpy(tiles + 64 * row + 64, &y, 64);
    }
}

/* From scores and dp of queries t .. t + QUERIES and keys j .. j + 16: dS, and P without the dropped. */
INLINE void scores_back(const Task *a, const Scratch *s, const float *lse, const float *delta, const uint64_t *bits, int64_t b, int64_t t,
                        int64_t j, int bf16) {
    int64_t depth = DEPTH(bf16);
    float scale = 1.0f / sqrtf((float)a->D);
    for (int r = 0; r < QUERIES; r += 2) {
        vec ds[2], p[2];
        for (int i = 0; i < 2; i++) {
            int64_t row = r + i, begin = begin_of(a, b, t + row);
            vec x = load(s->scores, 16 * row, 0) * scale - lse[row];
            if (j + 15 > t + row || j < begin || t + row >= a->T) x = between(x, begin - j, t + row < a->T ? t + row + 1 - j : 0, -INFINITY);
            p[i] = vexp(x);
            ds[i] = p[i] * (masked(load(s->dp, 16 * row, 0), bits[row], j % GROUP) * a->drop_scale - delta[row]);
            p[i] = masked(p[i], bits[row], j % GROUP);
            store(s->ds, (row / 16 * (a->rows / depth) + j / depth) * (TILE / SIZE(bf16)) + row % 16 * depth + j % depth, ds[i], bf16);
        }
        store_two(s->ds_rows, r, ds[0], ds[1], bf16);
        store_two(s->p_rows, r, p[0], p[1], bf16);
    }
}

/* delta of queries t .. t + QUERIES. */
INLINE void sum_rows(const Task *a, const Scratch *s, float *delta, int64_t b, int64_t h, int64_t t, int bf16) {
    for (int64_t r = 0; r < QUERIES; r++) {
        vec total = splat(0);
        for (int64_t d = 0; d < a->D && t + r < a->T; d += LANES)
            total += load(s->g, place(a, t + r, d, bf16), bf16) * load_n(a->out, ((b * a->T + t + r) * a->H + h) * a->D + d, a->D - d, 0, bf16);
        delta[r] = sum(total);
    }
}

INLINE void backward_block(const Task *a, const Scratch *s, int64_t b, int64_t h, int64_t t, int bf16) {
    int64_t rows = a->rows, across = a->width / 16 * TILE, depth = DEPTH(bf16), first = first_key(a, b, t, QUERIES);
    float delta[QUERIES];
    uint64_t bits[QUERIES];
    fetch(a, b, h + 1, t, QUERIES, bf16);
    sum_rows(a, s, delta, b, h, t, bf16);
    memset(bits, 0xff, sizeof bits);
    for (int64_t j = first; j < t + QUERIES; j += 16) {
        for (int r = 0; r < QUERIES && a->threshold && (j % GROUP == 0 || j == first); r++)
            bits[r] = keep_mask(a->seed, a->threshold, mask_group(a, b, h, t + r) + j / GROUP);
        for (int r = 0; r < QUERIES; r += 16) {
            multiply(s->scores + 16 * r, 16, s->q + (t + r) * a->row, TILE, s->keys_turned + j * a->row, TILE, a->row / 64, 0, bf16);
            multiply(s->dp + 16 * r, 16, s->g + (t + r) * a->row, TILE, s->values_turned + j * a->row, TILE, a->row / 64, 0, bf16);
        }
        scores_back(a, s, a->lse + (b * a->H + h) * rows + t, delta, bits, b, t, j, bf16);
        for (int64_t d = 0; d < a->D; d += 16) {
            int64_t at = t / depth * across + d / 16 * TILE;
            multiply(s->dk + j * a->width + 16 * d, 16, s->q_columns + at, across, s->ds_rows, TILE, QUERIES / depth, 1, bf16);
            multiply(s->dv + j * a->width + 16 * d, 16, s->g_columns + at, across, s->p_rows, TILE, QUERIES / depth, 1, bf16);
        }
    }
    float scale = 1.0f / sqrtf((float)a->D);
    for (int64_t r = 0; r < QUERIES; r += 16)
        for (int64_t d = 0; d < a->D; d += 16) {
            const char *ds = s->ds + (r / 16 * (rows / depth) + first / depth) * TILE, *keys = s->key_rows + first / depth * across + d / 16 * TILE;
            multiply(s->scores, 16, ds, TILE, keys, across, (t + QUERIES - first) / depth, 0, bf16);
            for (int64_t i = 0; i < 16 && t + r + i < a->T; i++)
                store_n(a->d_heads, ((b * a->T + t + r + i) * (a->H + 2 * a->K) + h) * a->D + d, a->D - d, load(s->scores, 16 * i, 0) * scale, bf16);
        }
}

/* The sums, scaled, to head h of sequence b of d_heads. */
INLINE void write_transposed(const Task *a, const float *sums, float scale, int64_t b, int64_t h, int bf16) {
    for (int64_t t = 0; t < a->T; t += 16)
        for (int64_t d = 0; d < a->D; d += 16) {
            uvec x[16];
            memcpy(x, sums + t * a->width + 16 * d, sizeof x);
            transpose(x);
            for (int64_t i = 0; i < 16 && t + i < a->T; i++)
                store_n(a->d_heads, ((b * a->T + t + i) * (a->H + 2 * a->K) + h) * a->D + d, a->D - d, (vec)x[i] * scale, bf16);
        }
}

INLINE void backward_task(const Task *a, int64_t b, int64_t k, char *scratch, int bf16) {
    int64_t n = a->H + 2 * a->K, share = a->H / a->K;
    Scratch s;
    divide(a, &s, scratch, bf16);
    pack(a, a->heads, n, b, a->H + k, s.q, bf16);
    turn(a, s.q, s.keys_turned);
    pack_rows(a, s.q, 0, s.key_rows, bf16);
    pack(a, a->heads, n, b, a->H + a->K + k, s.q, bf16);
    turn(a, s.q, s.values_turned);
    memset(s.dk, 0, 8 * a->rows * a->width); /* and dv, which follows it */
    for (int64_t h = k * share; h < (k + 1) * share; h++) {
        pack(a, a->heads, n, b, h, s.q, bf16);
        pack_rows(a, s.q, 1, s.q_columns, bf16);
        pack(a, a->grad, a->H, b, h, s.g, bf16);
        pack_rows(a, s.g, 1, s.g_columns, bf16);
        for (int64_t t = 0; t < a->T; t += QUERIES) backward_block(a, &s, b, h, t, bf16);
    }
    write_transposed(a, s.dk, 1.0f / sqrtf((float)a->D), b, a->H + k, bf16);
    write_transposed(a, s.dv, a->drop_scale, b, a->H + a->K + k, bf16);
}

static void backward_in_float32(const Task *a, int64_t b, int64_t k, char *scratch) { backward_task(a, b, k, scratch, 0); }
static void backward_in_bfloat16(const Task *a, int64_t b, int64_t k, char *scratch) { backward_task(a, b, k, scratch, 1); }

int32_t backward(const void *heads, const int64_t *begins, const void *out, const float *lse, const void *grad, void *d_heads, int64_t B, int64_t T,
                 int64_t H, int64_t K, int64_t D, uint64_t seed, int32_t threshold, float drop_scale, int32_t bf16) {
    Task a = {.heads = heads, .begins = begins, .B = B, .T = T, .H = H, .K = K, .D = D, .seed = seed, .threshold = threshold,
              .drop_scale = drop_scale, .out = (char *)out, .lse = (float *)lse, .grad = grad, .d_heads = d_heads};
    Scratch s;
    if (!lay_out(&a, bf16)) return 1;
    return run_tasks(&a, divide(&a, &s, 0, bf16), bf16 ? backward_in_bfloat16 : backward_in_float32);
}
