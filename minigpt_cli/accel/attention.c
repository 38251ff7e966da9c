/* Causal attention for training: formula and gradient of models/attention.py, in float32 and bfloat16.

   Scores stay in the cache: each block of queries is multiplied, normalised, dropped and used there. For the backward pass one number
   of each row is kept, the logarithm of the softmax's denominator, and probabilities are computed again from it (FlashAttention-2,
   Dao 2023).

   The queries of a block lie side by side in a vector, and their keys one below the other: maxima and sums are made without crossing lanes.
   So scores, probabilities and results are computed transposed, as K Q^T and V^T P^T. Powers and logarithms are those of 2, since e^x is
   2^(x log2 e), and the factor is one with that of the scores.

   How heads are laid out and what letters mean: attention_tiles.h. */

#include "attention_tiles.h"

/* ---- forward */

/* A tile (16 of D, SIDE queries) to rows t .. t + SIDE of head h of x (B, T, n, D), from element d on. */
INLINE void store_turned(const Task *a, const float *tile, char *x, int64_t n, int64_t b, int64_t t, int64_t h, int64_t d, vec scale, int bf16) {
    uvec rows[16];
    for (int i = 0; i < 16; i++) rows[i] = (uvec)(load(tile, 16 * i, 0) * scale);
    transpose(rows);
    for (int64_t i = 0; i < SIDE && t + i < a->T; i++) store_n(x, ((b * a->T + t + i) * n + h) * a->D + d, a->D - d, (vec)rows[i], bf16);
}

/* Rows x and y, one after the other along the sum, as rows of B: in float32 two rows, in bfloat16 one row of pairs. */
INLINE void store_two(char *tiles, int64_t row, vec x, vec y, int bf16) {
    if (bf16) {
        uvec pairs = interleave(x, y);
        memcpy(tiles + 32 * row, &pairs, 64);
    } else {
        memcpy(tiles + 64 * row, &x, 64);
        memcpy(tiles + 64 * row + 64, &y, 64);
    }
}

/* From the scores (keys, SIDE) of keys first .. t + SIDE: `weights`, in tiles, are 2^(score - the largest) without the dropped. Their sums before
   that, and the logarithms of the softmax's denominators. */
INLINE vec softmax(const Task *a, float *scores, char *weights, float *log_sums, int64_t b, int64_t h, int64_t first, int64_t t, int bf16) {
    float scale = (float)(LOG2_E / sqrt((double)a->D));
    Sight sees = sight(a, b, t);
    vec top = splat(-INFINITY), total = splat(0);
    for (int64_t j = first; j < t + SIDE; j++) {
        vec v = seen(load(scores, SIDE * j, 0), &sees, j);
        if (j > t || j < sees.all) store(scores, SIDE * j, v, 0);
        top = vmax(v, top);
    }
    for (int64_t j = first; j < t + SIDE; j += 4) {
        uint64_t bits = kept(a, b, h, t, j);
        for (int i = 0; i < 4; i += 2) {
            vec x = vexp2((load(scores, SIDE * (j + i), 0) - top) * scale, bf16);
            vec y = vexp2((load(scores, SIDE * (j + i + 1), 0) - top) * scale, bf16);
            total += x + y;
            store_two(weights + j / DEPTH(bf16) * TILE, j % DEPTH(bf16) + i, masked(x, bits, 16 * i), masked(y, bits, 16 * i + 16), bf16);
        }
    }
    if (bf16 && t % 32 == 0) memset(weights + t / 32 * TILE + TILE / 2, 0, TILE / 2); /* a tile is 32 keys */
    vec logarithms = top * scale;
    for (int i = 0; i < SIDE; i++) logarithms[i] += log2f(total[i]);
    store(log_sums, t, logarithms, 0);
    return total;
}

INLINE void forward_task(const Task *a, int64_t b, int64_t k, char *scratch, int bf16) {
    int64_t rows = a->rows, head = rows * a->row, share = a->H / a->K, depth = DEPTH(bf16), across = a->width / 16 * TILE;
    char *keys = scratch, *x = keys + head, *q_turned = x + head, *value_columns = q_turned + head, *weights = value_columns + head;
    float *scores = (float *)(weights + rows / depth * TILE), *y = scores + SIDE * rows;
    pack(a, a->heads, a->H + 2 * a->K, b, a->H + k, keys, bf16);
    pack(a, a->heads, a->H + 2 * a->K, b, a->H + a->K + k, x, bf16);
    pack_rows(a, x, 1, value_columns, bf16);
    for (int64_t h = k * share; h < (k + 1) * share; h++) {
        pack(a, a->heads, a->H + 2 * a->K, b, h, x, bf16);
        turn(a, x, q_turned);
        for (int64_t t = 0; t < a->T; t += SIDE) {
            int64_t first = first_key(a, b, t, SIDE), blocks = (t + SIDE - first + depth - 1) / depth;
            fetch(a, b, h + 1, t, SIDE, bf16);
            for (int64_t j = first; j <= t; j += 16)
                multiply(scores + SIDE * j, SIDE, keys + j * a->row, TILE, q_turned + t * a->row, TILE, a->row / 64, 0, bf16);
            vec scale = a->drop_scale / softmax(a, scores, weights, a->log_sums + (b * a->H + h) * rows, b, h, first, t, bf16);
            for (int64_t d = 0; d < a->D; d += 16) {
                const char *values = value_columns + first / depth * across + d / 16 * TILE;
                multiply(y, 16, values, across, weights + first / depth * TILE, TILE, blocks, 0, bf16);
                store_turned(a, y, a->out, a->H, b, t, h, d, scale, bf16);
            }
        }
    }
}

static void forward_in_float32(const Task *a, int64_t b, int64_t k, char *scratch) { forward_task(a, b, k, scratch, 0); }
static void forward_in_bfloat16(const Task *a, int64_t b, int64_t k, char *scratch) { forward_task(a, b, k, scratch, 1); }

/* 0, or 1 where the sizes are not possible or there is no memory; so too below. */
int32_t forward(const void *heads, const int64_t *begins, void *out, float *log_sums, int64_t B, int64_t T, int64_t H, int64_t K, int64_t D,
                uint64_t seed, int32_t threshold, float drop_scale, int32_t bf16) {
    Task a = {.heads = heads, .begins = begins, .B = B, .T = T, .H = H, .K = K, .D = D, .seed = seed, .threshold = threshold,
              .drop_scale = drop_scale, .out = out, .log_sums = log_sums};
    if (!lay_out(&a, bf16)) return 1;
    size_t bytes = 4 * a.rows * a.row + a.rows / DEPTH(bf16) * TILE + 4 * SIDE * a.rows + TILE;
    return run_tasks(&a, bytes, bf16 ? forward_in_bfloat16 : forward_in_float32);
}

/* ---- backward: with P the probabilities, M the mask times its scale, G the gradient of y = (P M) v, and delta = sum(G y) of each query,
   dS = P (M (G v^T) - delta), dq = dS k, dk = dS^T q, dv = (P M)^T G. */

typedef struct {
    char *keys, *key_columns, *values; /* tiles */
    char *q, *q_turned, *q_rows;
    char *g, *g_turned, *g_rows;
    char *ds;                          /* B: for each SIDE queries, tiles of DEPTH keys */
    char *ds_rows, *p_rows;            /* A: tiles of 16 keys x DEPTH queries */
    float *scores, *dp;                /* (16 keys, SIDE) */
    float *dk, *dv;                    /* (rows, width) */
} Scratch;

/* What the backward pass needs to know of SIDE queries. */
typedef struct {
    Sight sees;
    vec log_sums, delta;
} QuerySide;

INLINE void *next(char **at, size_t bytes) {
    *at += bytes;
    return *at - bytes;
}

static size_t divide(const Task *a, Scratch *s, char *start, int bf16) {
    size_t head = a->rows * a->row, sums = 4 * a->rows * a->width, rows = QUERIES / DEPTH(bf16) * TILE;
    char *at = start;
    *s = (Scratch){.keys = next(&at, head), .key_columns = next(&at, head), .values = next(&at, head), .q = next(&at, head),
                   .q_turned = next(&at, head), .q_rows = next(&at, head), .g = next(&at, head), .g_turned = next(&at, head),
                   .g_rows = next(&at, head), .ds = next(&at, SIDES * a->rows / DEPTH(bf16) * TILE), .ds_rows = next(&at, rows),
                   .p_rows = next(&at, rows), .scores = next(&at, TILE), .dp = next(&at, TILE), .dk = next(&at, sums), .dv = next(&at, sums)};
    return at - start;
}

/* From scores and dp of keys j .. j + 16 and of the queries of side c: dS, and P without the dropped. */
INLINE void scores_back(const Task *a, const Scratch *s, const QuerySide *side, int64_t b, int64_t h, int64_t j, int64_t c, int bf16) {
    int64_t depth = DEPTH(bf16), column = SIDE * c % depth * SIZE(bf16), tile = SIDE * c / depth * TILE;
    float scale = (float)(LOG2_E / sqrt((double)a->D));
    uint64_t bits = 0;
    for (int r = 0; r < 16; r += 2) {
        vec ds[2], p[2];
        if (r % 4 == 0) bits = kept(a, b, h, side->sees.t, j + r);
        for (int i = 0; i < 2; i++) {
            int64_t row = r + i, at = tile + 64 * row + column;
            vec x = vexp2(seen(load(s->scores, SIDE * row, 0), &side->sees, j + row) * scale - side->log_sums, bf16);
            ds[i] = x * (masked(load(s->dp, SIDE * row, 0), bits, row % 4 * 16) * a->drop_scale - side->delta);
            p[i] = masked(x, bits, row % 4 * 16);
            store(s->ds_rows + at, 0, ds[i], bf16);
            store(s->p_rows + at, 0, p[i], bf16);
        }
        store_two(s->ds + (c * (a->rows / depth) + j / depth) * TILE, j % depth + r, ds[0], ds[1], bf16);
    }
}

/* delta of queries t .. t + SIDE. */
INLINE vec sum_rows(const Task *a, const Scratch *s, int64_t b, int64_t h, int64_t t, int bf16) {
    uvec rows[16];
    vec delta = splat(0);
    for (int64_t i = 0; i < SIDE; i++) {
        vec total = splat(0);
        for (int64_t d = 0; d < a->D && t + i < a->T; d += LANES)
            total += load(s->g, place(a, t + i, d, bf16), bf16) * load_n(a->out, ((b * a->T + t + i) * a->H + h) * a->D + d, a->D - d, 0, bf16);
        rows[i] = (uvec)total;
    }
    transpose(rows);
    for (int i = 0; i < 16; i++) delta += (vec)rows[i];
    return delta;
}

INLINE void backward_block(const Task *a, const Scratch *s, int64_t b, int64_t h, int64_t t, int bf16) {
    int64_t across = a->width / 16 * TILE, depth = DEPTH(bf16), words = a->row / 64, first = first_key(a, b, t, QUERIES);
    QuerySide side[SIDES];
    fetch(a, b, h + 1, t, QUERIES, bf16);
    for (int c = 0; c < SIDES; c++) {
        int64_t at = t + SIDE * c; /* beyond the text there are no sums */
        vec log_sums = at < a->T ? load(a->log_sums, (b * a->H + h) * a->rows + at, 0) : splat(INFINITY);
        side[c] = (QuerySide){sight(a, b, at), log_sums, sum_rows(a, s, b, h, at, bf16)};
    }
    for (int64_t j = first; j < t + QUERIES; j += 16) {
        for (int64_t c = 0; c < SIDES; c++) {
            int64_t at = (t + SIDE * c) * a->row;
            if (j < t + SIDE * (c + 1)) {
                multiply(s->scores, SIDE, s->keys + j * a->row, TILE, s->q_turned + at, TILE, words, 0, bf16);
                multiply(s->dp, SIDE, s->values + j * a->row, TILE, s->g_turned + at, TILE, words, 0, bf16);
            } else { /* no query sees a key, whatever the scores are; what is not a number must not spread from another block */
                memset(s->dp, 0, TILE);
            }
            scores_back(a, s, &side[c], b, h, j, c, bf16);
        }
        for (int64_t d = 0; d < a->D; d += 16) {
            int64_t at = t / depth * across + d / 16 * TILE, to = j * a->width + d;
            multiply(s->dk + to, a->width, s->ds_rows, TILE, s->q_rows + at, across, QUERIES / depth, 1, bf16);
            multiply(s->dv + to, a->width, s->p_rows, TILE, s->g_rows + at, across, QUERIES / depth, 1, bf16);
        }
    }
    vec scale = splat(1.0f / sqrtf((float)a->D));
    for (int64_t c = 0; c < SIDES; c++)
        for (int64_t d = 0; d < a->D; d += 16) {
            const char *ds = s->ds + (c * (a->rows / depth) + first / depth) * TILE, *keys = s->key_columns + first / depth * across + d / 16 * TILE;
            multiply(s->scores, 16, keys, across, ds, TILE, (t + QUERIES - first) / depth, 0, bf16);
            store_turned(a, s->scores, a->d_heads, a->H + 2 * a->K, b, t + SIDE * c, h, d, scale, bf16);
        }
}

/* The sums, scaled, to head h of sequence b of d_heads. */
INLINE void store_sums(const Task *a, const float *sums, float scale, int64_t b, int64_t h, int bf16) {
    for (int64_t t = 0; t < a->T; t++)
        for (int64_t d = 0; d < a->D; d += LANES)
            store_n(a->d_heads, ((b * a->T + t) * (a->H + 2 * a->K) + h) * a->D + d, a->D - d, load(sums, t * a->width + d, 0) * scale, bf16);
}

INLINE void backward_task(const Task *a, int64_t b, int64_t k, char *scratch, int bf16) {
    int64_t n = a->H + 2 * a->K, share = a->H / a->K;
    Scratch s;
    divide(a, &s, scratch, bf16);
    pack(a, a->heads, n, b, a->H + k, s.keys, bf16);
    pack_rows(a, s.keys, 1, s.key_columns, bf16);
    pack(a, a->heads, n, b, a->H + a->K + k, s.values, bf16);
    memset(s.dk, 0, 8 * a->rows * a->width); /* and dv, which follows it */
    for (int64_t h = k * share; h < (k + 1) * share; h++) {
        pack(a, a->heads, n, b, h, s.q, bf16);
        turn(a, s.q, s.q_turned);
        pack_rows(a, s.q, 0, s.q_rows, bf16);
        pack(a, a->grad, a->H, b, h, s.g, bf16);
        turn(a, s.g, s.g_turned);
        pack_rows(a, s.g, 0, s.g_rows, bf16);
        for (int64_t t = 0; t < a->T; t += QUERIES) backward_block(a, &s, b, h, t, bf16);
    }
    store_sums(a, s.dk, 1.0f / sqrtf((float)a->D), b, a->H + k, bf16);
    store_sums(a, s.dv, a->drop_scale, b, a->H + a->K + k, bf16);
}

static void backward_in_float32(const Task *a, int64_t b, int64_t k, char *scratch) { backward_task(a, b, k, scratch, 0); }
static void backward_in_bfloat16(const Task *a, int64_t b, int64_t k, char *scratch) { backward_task(a, b, k, scratch, 1); }

int32_t backward(const void *heads, const int64_t *begins, const void *out, const float *log_sums, const void *grad, void *d_heads, int64_t B,
                 int64_t T, int64_t H, int64_t K, int64_t D, uint64_t seed, int32_t threshold, float drop_scale, int32_t bf16) {
    Task a = {.heads = heads, .begins = begins, .B = B, .T = T, .H = H, .K = K, .D = D, .seed = seed, .threshold = threshold,
              .drop_scale = drop_scale, .out = (char *)out, .log_sums = (float *)log_sums, .grad = grad, .d_heads = d_heads};
    Scratch s;
    if (!lay_out(&a, bf16)) return 1;
    return run_tasks(&a, divide(&a, &s, 0, bf16), bf16 ? backward_in_bfloat16 : backward_in_float32);
}
