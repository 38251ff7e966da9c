/* Attention over the cache of keys and values, for one new token in each row.

   Of each key/value head, keys are kept as (W / LANES, D, LANES), so that a vector holds one channel of neighbouring tokens, and values as
   (W, D); in 16 bits each token's key and value has a scale of its own. The caches of a batch lie far apart in memory: while keys are
   read values are fetched, and meanwhile the next head's keys. */

#pragma once
#include "threads.h"

static void apply_rope(float *x, const float *rope, int D) { /* by halves, as Llama has them */
    for (int i = 0; i < D / 2; i++) {
        float left = x[i], right = x[i + D / 2], c = rope[i], s = rope[D / 2 + i];
        x[i] = left * c - right * s;
        x[i + D / 2] = right * c + left * s;
    }
}

static void norm_and_rotate(const Model *d, const Layer *layer, float *x, int head, const float *rope) {
    if (d->qk_norm) {
        float scale = inverse_rms(x, d->D, d->eps);
        for (int i = 0; i < d->D; i++) x[i] *= scale * layer->qk_gain[head * d->D + i];
    }
    if (!d->learned) apply_rope(x, rope, d->D);
}

/* The keys and values of one head in one slot. */
typedef struct { char *keys, *values; float *key_scales, *value_scales; } HeadCache;

INLINE HeadCache head_cache(const Model *d, int64_t cell) {
    int64_t stride = (d->W + LANES - 1) / LANES * LANES, size = d->cache_bits / 8;
    return (HeadCache){(char *)d->keys + cell * d->D * stride * size, (char *)d->values + cell * d->D * d->W * size,
                       d->key_scales + cell * stride, d->value_scales + cell * stride};
}

/* Write x as whole numbers up to 32767, `step` apart; their scale. */
INLINE float quantize(const float *x, int n, int16_t *y, int step) {
    float most = max_abs(x, n), levels = most > 0 ? 32767.0f / most : 0;
    for (int i = 0; i < n; i++) y[i * step] = (int16_t)round_to_int(x[i] * levels);
    return most / 32767.0f;
}

static void append_kv(const Model *d, HeadCache cache, int at, const float *k, const float *v) {
    int64_t column = (int64_t)(at / LANES) * d->D * LANES + at % LANES, row = (int64_t)at * d->D;
    if (d->cache_bits == 16) {
        cache.key_scales[at] = quantize(k, d->D, (int16_t *)cache.keys + column, LANES);
        cache.value_scales[at] = quantize(v, d->D, (int16_t *)cache.values + row, 1);
    } else {
        for (int i = 0; i < d->D; i++) ((float *)cache.keys)[column + (int64_t)i * LANES] = k[i];
        memcpy((float *)cache.values + row, v, d->D * sizeof(float));
    }
}

enum { QUERIES = 4 /* at once: keys and values are read and widened once for all of them */ };

/* One query (D), which sees the first n tokens of the cache, and where its result (D) goes. */
typedef struct { const float *q; float *y; int n; } Query;

/* The softmax of the scores of n tokens, but for its division, each times the scale of its value; what to multiply with instead. Not inlined:
   compilers could fuse products and sums in one place and not in another. */
static __attribute__((noinline)) float exponentiate(float *scores, const float *value_scales, int n, int bits) {
    vec total = {0}, tops = splat(-INFINITY);
    for (int t = n; t % LANES; t++) scores[t] = -INFINITY;
    for (int t = 0; t < n; t += LANES) {
        vec s = load(scores + t);
        tops = choose(s > tops, s, tops);
    }
    float top = largest(tops), sum = 0;
    for (int t = 0; t < n; t += LANES) {
        vec e = vexp(load(scores + t) - top);
        total += e;
        if (bits == 16) e *= load(value_scales + t);
        store(scores + t, e);
    }
    for (int l = 0; l < LANES; l++) sum += total[l];
    return 1.0f / sum;
}

/* y[i] = sum over t of scores[t] values[t][i], N vectors of it from `begin`, for each of R queries in the order of their n, where the compiler
   knows R and N; even and odd tokens are summed apart, for more independent sums. */
INLINE void weighted_values(int R, const Query *at, const HeadCache *cache, const char *next, int begin, const float *scores, int64_t stride, int D,
                            const float *inverse, int N, int bits) {
    vec even[QUERIES][4], odd[QUERIES][4];
    for (int r = 0; r < R; r++)
        for (int i = 0; i < N; i++) even[r][i] = odd[r][i] = (vec){0};
    int common = at[0].n / 2 * 2;
    for (int t = 0; t < common; t += 2) {
        for (int b = 0; next && b < 2 * D * bits / 8; b += 64) __builtin_prefetch(next + (int64_t)t * D * (bits / 8) + b);
        for (int i = 0; i < N; i++) {
            vec a = load_floats(cache->values, (int64_t)t * D + begin + i * LANES, bits);
            vec b = load_floats(cache->values, (int64_t)(t + 1) * D + begin + i * LANES, bits);
            for (int r = 0; r < R; r++) {
                even[r][i] += a * scores[r * stride + t];
                odd[r][i] += b * scores[r * stride + t + 1];
            }
        }
    }
    for (int r = 0; r < R; r++) {
        int t = common;
        for (; t + 2 <= at[r].n; t += 2)
            for (int i = 0; i < N; i++) {
                even[r][i] += load_floats(cache->values, (int64_t)t * D + begin + i * LANES, bits) * scores[r * stride + t];
                odd[r][i] += load_floats(cache->values, (int64_t)(t + 1) * D + begin + i * LANES, bits) * scores[r * stride + t + 1];
            }
        for (; t < at[r].n; t++)
            for (int i = 0; i < N; i++) even[r][i] += load_floats(cache->values, (int64_t)t * D + begin + i * LANES, bits) * scores[r * stride + t];
        for (int i = 0; i < N; i++) store(at[r].y + begin + i * LANES, (even[r][i] + odd[r][i]) * inverse[r]);
    }
}

/* Attention of R queries of one head, in the order of their n; scores are (R, stride). */
INLINE void attend_queries(int R, int D, const Query *at, const HeadCache *cache, const char *next, float *scores, int64_t stride, int bits) {
    for (int t = 0; t < at[R - 1].n; t += LANES) {
        int64_t block = (int64_t)t * D;
        vec s0[QUERIES], s1[QUERIES];
        for (int r = 0; r < R; r++) s0[r] = s1[r] = (vec){0};
        int i = 0;
        for (; i + 2 <= D; i += 2) {
            __builtin_prefetch(cache->values + (block + i * LANES) * (bits / 8));
            if (bits == 32) __builtin_prefetch(cache->values + (block + (i + 1) * LANES) * (bits / 8));
            vec k0 = load_floats(cache->keys, block + i * LANES, bits), k1 = load_floats(cache->keys, block + (i + 1) * LANES, bits);
            for (int r = 0; r < R; r++) s0[r] += k0 * at[r].q[i], s1[r] += k1 * at[r].q[i + 1];
        }
        for (int r = 0; r < R; r++) {
            if (i < D) s0[r] += load_floats(cache->keys, block + i * LANES, bits) * at[r].q[i];
            s0[r] += s1[r];
            if (bits == 16) s0[r] *= load(cache->key_scales + t);
            store(scores + r * stride + t, s0[r]);
        }
    }
    float inverse[QUERIES];
    for (int r = 0; r < R; r++) inverse[r] = exponentiate(scores + r * stride, cache->value_scales, at[r].n, bits);
    int i = 0;
    for (; R == 1 && i + 4 * LANES <= D; i += 4 * LANES)
        weighted_values(R, at, cache, i ? 0 : next, i, scores, stride, D, inverse, 4, bits);
    for (; i + 2 * LANES <= D; i += 2 * LANES) weighted_values(R, at, cache, i ? 0 : next, i, scores, stride, D, inverse, 2, bits);
    for (; i + LANES <= D; i += LANES) weighted_values(R, at, cache, i ? 0 : next, i, scores, stride, D, inverse, 1, bits);
    for (int r = 0; r < R; r++)
        for (int j = i; j < D; j++) {
            float a = 0;
            for (int t = 0; t < at[r].n; t++) {
                int64_t from = (int64_t)t * D + j;
                a += scores[r * stride + t] * (bits == 16 ? (float)((int16_t *)cache->values)[from] : ((float *)cache->values)[from]);
            }
            at[r].y[j] = a * inverse[r];
        }
}

static void attend_one(int D, const Query *at, const HeadCache *cache, const char *next, float *scores, int64_t stride, int bits) {
    if (bits == 16) attend_queries(1, D, at, cache, next, scores, stride, 16);
    else attend_queries(1, D, at, cache, next, scores, stride, 32);
}

static void attend_four(int D, const Query *at, const HeadCache *cache, float *scores, int64_t stride, int bits) {
    if (bits == 16) attend_queries(QUERIES, D, at, cache, 0, scores, stride, 16);
    else attend_queries(QUERIES, D, at, cache, 0, scores, stride, 32);
}

/* Attention of rows [first, last) of one slot for one key/value head; no row may write over a key that one before it sees. */
static void attend_rows(const Worker *worker, const Layer *layer, int head, HeadCache cache, const char *next, int first, int last) {
    const Pool *p = worker->pool;
    const Model *d = &p->model;
    int D = d->D, G = d->H / d->K, width = (d->H + 2 * d->K) * D, queries = (last - first) * G;
    int64_t stride = (d->W + LANES - 1) / LANES * LANES;
    Query at[queries];
    for (int row = first; row < last; row++) {
        float *qkv = p->qkv + (int64_t)row * width, *k = qkv + (d->H + head) * D, *v = k + d->K * D;
        const float *rope = p->rope + (int64_t)row * D;
        int position = p->task.positions[row];
        norm_and_rotate(d, layer, k, d->H + head, rope);
        append_kv(d, cache, position % d->W, k, v);
        for (int g = 0; g < G; g++) {
            int h = head * G + g;
            norm_and_rotate(d, layer, qkv + h * D, h, rope);
            at[(row - first) * G + g] = (Query){qkv + h * D, p->mixed + ((int64_t)row * d->H + h) * D, position < d->W ? position + 1 : d->W};
        }
    }
    int done = 0;
    for (; done + QUERIES <= queries; done += QUERIES) attend_four(D, at + done, &cache, worker->scores, stride, d->cache_bits);
    for (; done < queries; done++) attend_one(D, at + done, &cache, next, worker->scores, stride, d->cache_bits);
}

static void attend(const Worker *worker, int number) {
    const Model *d = &worker->pool->model;
    const Layer *layer = d->layers + number;
    const Task *task = &worker->pool->task;
    int jobs = 0; /* (rows of one slot, key/value head) */
    for (int begin = 0, end; begin < task->rows; begin = end) {
        for (end = begin + 1; end < task->rows && task->slots[end] == task->slots[begin]; end++) {}
        int together = task->positions[end - 1] < d->W ? end - begin : 1; /* beyond the window a row's key takes the place of an old one */
        for (int head = 0; head < d->K; head++, jobs++) {
            if (jobs % worker->active != worker->number) continue;
            int64_t cell = ((int64_t)number * d->slots + task->slots[begin]) * d->K + head;
            HeadCache cache = head_cache(d, cell), next = head_cache(d, cell + worker->active);
            for (int row = begin; row < end; row += together)
                attend_rows(worker, layer, head, cache, end == begin + 1 ? next.keys : 0, row, row + together);
        }
    }
}
