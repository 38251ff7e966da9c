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

/* y[i] = sum over t of scores[t] values[t][i], N vectors of it from `begin`; even and odd tokens are summed apart, for more independent sums. */
INLINE void weighted_values(const HeadCache *cache, const char *next, int begin, const float *scores, int n, int D, float inverse, float *y,
                            int N, int bits) {
    vec even[N], odd[N];
    for (int i = 0; i < N; i++) even[i] = odd[i] = (vec){0};
    int t = 0;
    for (; t + 2 <= n; t += 2) {
        for (int b = 0; next && b < 2 * D * bits / 8; b += 64) __builtin_prefetch(next + (int64_t)t * D * (bits / 8) + b);
        for (int i = 0; i < N; i++) {
            even[i] += load_floats(cache->values, (int64_t)t * D + begin + i * LANES, bits) * scores[t];
            odd[i] += load_floats(cache->values, (int64_t)(t + 1) * D + begin + i * LANES, bits) * scores[t + 1];
        }
    }
    for (; t < n; t++)
        for (int i = 0; i < N; i++) even[i] += load_floats(cache->values, (int64_t)t * D + begin + i * LANES, bits) * scores[t];
    for (int i = 0; i < N; i++) store(y + begin + i * LANES, (even[i] + odd[i]) * inverse);
}

INLINE void attend_head(int D, const float *q, const HeadCache *cache, const char *next, int n, float *scores, float *y, int bits) {
    for (int t = 0; t < n; t += LANES) {
        int64_t block = (int64_t)t * D;
        vec s0 = {0}, s1 = {0};
        int i = 0;
        for (; i + 2 <= D; i += 2) {
            __builtin_prefetch(cache->values + (block + i * LANES) * (bits / 8));
            if (bits == 32) __builtin_prefetch(cache->values + (block + (i + 1) * LANES) * (bits / 8));
            s0 += load_floats(cache->keys, block + i * LANES, bits) * q[i];
            s1 += load_floats(cache->keys, block + (i + 1) * LANES, bits) * q[i + 1];
        }
        if (i < D) s0 += load_floats(cache->keys, block + i * LANES, bits) * q[i];
        s0 += s1;
        if (bits == 16) s0 *= load(cache->key_scales + t);
        store(scores + t, s0);
    }
    for (int t = n; t % LANES; t++) scores[t] = -INFINITY;
    vec total = {0}, tops = splat(-INFINITY);
    for (int t = 0; t < n; t += LANES) {
        vec s = load(scores + t);
        tops = choose(s > tops, s, tops);
    }
    float top = largest(tops);
    for (int t = 0; t < n; t += LANES) {
        vec e = vexp(load(scores + t) - top);
        total += e;
        if (bits == 16) e *= load(cache->value_scales + t);
        store(scores + t, e);
    }
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += total[l];
    float inverse = 1.0f / sum;
    int i = 0;
    for (; i + 4 * LANES <= D; i += 4 * LANES) weighted_values(cache, i ? 0 : next, i, scores, n, D, inverse, y, 4, bits);
    for (; i + 2 * LANES <= D; i += 2 * LANES) weighted_values(cache, i ? 0 : next, i, scores, n, D, inverse, y, 2, bits);
    for (; i + LANES <= D; i += LANES) weighted_values(cache, i ? 0 : next, i, scores, n, D, inverse, y, 1, bits);
    for (; i < D; i++) {
        float a = 0;
        for (int t = 0; t < n; t++) {
            int64_t at = (int64_t)t * D + i;
            a += scores[t] * (bits == 16 ? (float)((int16_t *)cache->values)[at] : ((float *)cache->values)[at]);
        }
        y[i] = a * inverse;
    }
}

static void attend_fp32(int D, const float *q, const HeadCache *cache, const char *next, int n, float *scores, float *y) {
    attend_head(D, q, cache, next, n, scores, y, 32);
}

static void attend_int16(int D, const float *q, const HeadCache *cache, const char *next, int n, float *scores, float *y) {
    attend_head(D, q, cache, next, n, scores, y, 16);
}

static void attend(const Worker *worker, int number) {
    const Pool *p = worker->pool;
    const Model *d = &p->model;
    const Layer *layer = d->layers + number;
    const Task *task = &p->task;
    int D = d->D, G = d->H / d->K, width = (d->H + 2 * d->K) * D;
    float *scores = worker->scores;
    int jobs = 0; /* (rows of one slot in a row, key/value head): the rows go in order, each writing its key before it attends */
    for (int begin = 0, end; begin < task->rows; begin = end) {
        for (end = begin + 1; end < task->rows && task->slots[end] == task->slots[begin]; end++) {}
        for (int head = 0; head < d->K; head++, jobs++) {
            if (jobs % worker->active != worker->number) continue;
            int64_t cell = ((int64_t)number * d->slots + task->slots[begin]) * d->K + head;
            HeadCache cache = head_cache(d, cell), next = head_cache(d, cell + worker->active);
            for (int row = begin; row < end; row++) {
                float *qkv = p->qkv + (int64_t)row * width, *k = qkv + (d->H + head) * D, *v = k + d->K * D;
                const float *rope = p->rope + (int64_t)row * D;
                int position = task->positions[row], n = position < d->W ? position + 1 : d->W;
                norm_and_rotate(d, layer, k, d->H + head, rope);
                append_kv(d, cache, position % d->W, k, v);
                for (int h = head * G; h < (head + 1) * G; h++) {
                    float *y = p->mixed + ((int64_t)row * d->H + h) * D;
                    norm_and_rotate(d, layer, qkv + h * D, h, rope);
                    (d->cache_bits == 16 ? attend_int16 : attend_fp32)(D, qkv + h * D, &cache, end == begin + 1 ? next.keys : 0, n, scores, y);
                }
            }
        }
    }
}
