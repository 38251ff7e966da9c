/* Choosing a token, as sampling.py does it: the same settings, in the same order, in double precision. */

#pragma once
#include "model.h"
#include <stdlib.h>

static double kth_largest(double *a, int n, int k) { /* of a[0..n), which is reordered */
    int low = 0, high = n - 1, wanted = k - 1;
    while (low < high) {
        double pivot = a[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (a[i] > pivot) i++;
            while (a[j] < pivot) j--;
            if (i <= j) {
                double swap = a[i];
                a[i++] = a[j];
                a[j--] = swap;
            }
        }
        if (wanted <= j) high = j;
        else if (wanted >= i) low = i;
        else break;
    }
    return a[wanted];
}

typedef struct { double p; int32_t token; } TokenProb;

static int by_probability(const void *a, const void *b) {
    const TokenProb *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : (x->token > y->token) - (x->token < y->token);
}

static void keep_top_p(double *z, int V, double top_p, double top, TokenProb *kept) {
    double total = 0, before = 0;
    int n = 0;
    for (int i = 0; i < V; i++)
        if (z[i] > -INFINITY) total += (kept[n] = (TokenProb){exp(z[i] - top), i}).p, n++;
    qsort(kept, n, sizeof(TokenProb), by_probability);
    for (int i = 0; i < n; i++) {
        if (before >= top_p * total) z[kept[i].token] = -INFINITY;
        before += kept[i].p;
    }
}

/* The fields of sampling.py's Sampling in its order, its whole numbers as int64_t: Python makes its own form of this from that class. */
typedef struct { double temperature; int64_t top_k; double top_p, min_p, repetition_penalty; } Sampling;

int mg_sampling_size(void) { return sizeof(Sampling); }

/* The token, or -1 if a logit is not finite. z, spare (V) and, where top_p is below 1, kept (V) are scratch memory. */
static int32_t choose_token(const float *logits, int V, const Sampling *s, const uint8_t *seen, double uniform, double *z, double *spare,
                            TokenProb *kept, double *margin) {
    double top = -INFINITY, second = -INFINITY;
    int32_t best = 0, bad = 0;
    for (int i = 0; i < V; i++) {
        z[i] = logits[i];
        if (seen && seen[i]) z[i] = z[i] > 0 ? z[i] / s->repetition_penalty : z[i] * s->repetition_penalty;
        bad |= !(fabs(z[i]) < INFINITY);
        if (z[i] > top) second = top, top = z[i], best = i;
        else if (z[i] > second) second = z[i];
    }
    if (bad) return -1;
    *margin = top - second;
    if (s->temperature == 0) return best;
    for (int i = 0; i < V; i++) z[i] = (z[i] - top) / s->temperature;
    if (s->top_k > 0 && s->top_k < V) {
        memcpy(spare, z, V * sizeof(double));
        double least = kth_largest(spare, V, s->top_k);
        for (int i = 0; i < V; i++)
            if (z[i] < least) z[i] = -INFINITY;
    }
    if (s->top_p < 1) keep_top_p(z, V, s->top_p, 0, kept);
    if (s->min_p > 0) {
        double least = log(s->min_p);
        for (int i = 0; i < V; i++)
            if (z[i] < least) z[i] = -INFINITY;
    }
    double total = 0, target, nearest = INFINITY;
    for (int i = 0; i < V; i++) spare[i] = total += z[i] > -INFINITY ? exp(z[i]) : 0;
    target = uniform * total;
    if (!(target < total)) target = nextafter(total, 0);
    int32_t token = -1;
    for (int i = 0; i < V; i++) {
        if (token < 0 && spare[i] > target) token = i;
        double away = fabs(spare[i] - target);
        if (i + 1 < V && away < nearest) nearest = away;
    }
    *margin = nearest / total;
    return token;
}

/* The next token of each row of logits (rows, V), and how narrow each choice was; `seen` (rows, V) or NULL. */
int mg_choose(const float *logits, int rows, int V, const Sampling *s, const uint8_t *seen, const double *uniforms, int64_t *ids,
              double *margins) {
    if (rows < 0) return BAD_ROWS;
    if (V < 1) return BAD_MODEL;
    double *z = malloc(V * (2 * sizeof(double) + (s->top_p < 1 ? sizeof(TokenProb) : 0)));
    int status = z ? OK : NO_MEMORY;
    for (int r = 0; r < rows && status == OK; r++) {
        const uint8_t *marks = seen ? seen + (int64_t)r * V : 0;
        ids[r] = choose_token(logits + (int64_t)r * V, V, s, marks, uniforms[r], z, z + V, (TokenProb *)(z + 2 * (int64_t)V), margins + r);
        if (ids[r] < 0) status = NOT_FINITE;
    }
    free(z);
    return status;
}
