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

/* A number that at least k of x[0..n) reach, and hardly any others: the k-th largest of the largest of every APART numbers. -INFINITY where
   there are too few. */
static double rough_threshold(const float *x, int n, int64_t k, double *spare) {
    enum { APART = 64 };
    int tops = 0;
    for (int i = 0; i + APART * LANES <= n; i += APART * LANES) {
        vec top = load(x + i);
        for (int j = 1; j < APART; j++) {
            vec v = load(x + i + j * LANES);
            top = choose(v > top, v, top);
        }
        for (int l = 0; l < LANES; l++) spare[tops++] = top[l];
    }
    return k <= 0 || k > tops ? -INFINITY : kth_largest(spare, tops, (int)k);
}

/* The fields of sampling.py's Sampling in its order, its whole numbers as int64_t: Python makes its own form of this from that class. */
typedef struct { double temperature; int64_t top_k; double top_p, min_p, repetition_penalty; } Sampling;

int mg_sampling_size(void) { return sizeof(Sampling); }

/* A token that may be drawn: its logit, after `prepare` the scaled one (0 for the largest), and its share of the draw. */
typedef struct { double z, p; int32_t token; } Candidate;
typedef struct { Candidate *kept, *sorted; double *spare; float *penalised; } Scratch;

/* Every token whose logit may be among the k largest (all if k is 0), in order, to `kept`; how many, or -1 if a logit is not finite. */
static int find_candidates(const float *logits, int V, const Sampling *s, int64_t k, const uint8_t *seen, Scratch at) {
    int n = 0, bad = 0;
    for (int i = 0; i < V; i++) bad |= !(logits[i] - logits[i] == 0);
    if (bad) return -1;
    const float *x = logits;
    if (seen) {
        for (int i = 0; i < V; i++) {
            double factor = !seen[i] ? 1 : logits[i] > 0 ? 1 / s->repetition_penalty : s->repetition_penalty;
            at.penalised[i] = (float)(logits[i] * factor);
        }
        x = at.penalised;
    }
    double threshold = rough_threshold(x, V, k, at.spare);
    threshold -= fabs(threshold) * 1e-6; /* numbers that differ only by rounding count as equal here */
    if (!(fabs(threshold) < INFINITY)) threshold = -INFINITY;
    for (int i = 0; i < V; i++) {
        if (!(x[i] >= threshold)) continue;
        double z = logits[i];
        if (seen && seen[i]) z = z > 0 ? z / s->repetition_penalty : z * s->repetition_penalty;
        at.kept[n++] = (Candidate){z, 0, i};
    }
    return n;
}

static int by_logit(const void *a, const void *b) { /* the largest first */
    const Candidate *x = a, *y = b;
    return x->z != y->z ? (x->z < y->z ? 1 : -1) : (x->token > y->token) - (x->token < y->token);
}

static int keep_top_k(int n, int64_t k, Scratch at) {
    int left = 0;
    if (k <= 0 || k >= n) return n;
    for (int i = 0; i < n; i++) at.spare[i] = at.kept[i].z;
    double least = kth_largest(at.spare, n, (int)k);
    for (int i = 0; i < n; i++)
        if (at.kept[i].z >= least) at.kept[left++] = at.kept[i];
    return left;
}

static int keep_top_p(int n, double top_p, Scratch at) {
    double total = 0, before = 0;
    int left = 0, last = 0;
    for (int i = 0; i < n; i++) total += at.kept[i].p;
    memcpy(at.sorted, at.kept, n * sizeof(Candidate));
    qsort(at.sorted, n, sizeof(Candidate), by_logit);
    for (int i = 0; i < n && before < top_p * total; i++) before += at.sorted[last = i].p;
    for (int i = 0; i < n; i++)
        if (by_logit(at.kept + i, at.sorted + last) <= 0) at.kept[left++] = at.kept[i];
    return left;
}

static int keep_min_p(int n, double min_p, Scratch at) {
    int left = 0;
    for (int i = 0; i < n; i++)
        if (at.kept[i].z >= log(min_p)) at.kept[left++] = at.kept[i];
    return left;
}

/* The most probable of n candidates, the first of equals. */
static int32_t take_largest(const Candidate *kept, int n, double *margin) {
    double top = -INFINITY, second = -INFINITY;
    int32_t best = 0;
    for (int i = 0; i < n; i++)
        if (kept[i].z > top) second = top, top = kept[i].z, best = kept[i].token;
        else if (kept[i].z > second) second = kept[i].z;
    *margin = top - second;
    return best;
}

/* The first of n candidates whose cumulative share of the draw exceeds `uniform`. */
static int32_t draw(const Candidate *kept, int n, int V, double uniform, double *margin) {
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++) total += kept[i].p;
    double target = uniform * total;
    if (!(target < total)) target = nextafter(total, 0);
    double nearest = kept[0].token > 0 ? target : INFINITY; /* a token before all candidates would be drawn up to 0 */
    int32_t token = -1;
    for (int i = 0; i < n; i++) {
        sum += kept[i].p;
        if (token < 0 && sum > target) token = kept[i].token;
        if (kept[i].token + 1 < V) nearest = fmin(nearest, fabs(sum - target));
    }
    *margin = nearest / total;
    return token;
}

/* The token, or -1 if a logit is not finite. */
static int32_t choose_token(const float *logits, int V, const Sampling *s, const uint8_t *seen, double uniform, Scratch at, double *margin) {
    int n = find_candidates(logits, V, s, s->temperature == 0 ? 2 : s->top_k, seen, at);
    if (n < 0) return -1;
    if (s->temperature == 0) return take_largest(at.kept, n, margin);
    double top = -INFINITY;
    for (int i = 0; i < n; i++) top = at.kept[i].z > top ? at.kept[i].z : top;
    for (int i = 0; i < n; i++) at.kept[i].z = (at.kept[i].z - top) / s->temperature;
    n = keep_top_k(n, s->top_k, at);
    for (int i = 0; i < n; i++) at.kept[i].p = exp(at.kept[i].z);
    if (s->top_p < 1) n = keep_top_p(n, s->top_p, at);
    if (s->min_p > 0) n = keep_min_p(n, s->min_p, at);
    return draw(at.kept, n, V, uniform, margin);
}

/* The next token of each row of logits (rows, V), and how narrow each choice was; `seen` (rows, V) or NULL. */
int mg_choose(const float *logits, int rows, int V, const Sampling *s, const uint8_t *seen, const double *uniforms, int64_t *ids,
              double *margins) {
    if (rows < 0) return BAD_ROWS;
    if (V < 1) return BAD_MODEL;
    int64_t each = 2 * sizeof(Candidate) + sizeof(double) + sizeof(float);
    Candidate *memory = malloc(V * each);
    if (!memory) return NO_MEMORY;
    double *spare = (double *)(memory + 2 * (int64_t)V);
    Scratch at = {memory, memory + V, spare, (float *)(spare + V)};
    int status = OK;
    for (int r = 0; r < rows && status == OK; r++) {
        const uint8_t *marks = seen ? seen + (int64_t)r * V : 0;
        ids[r] = choose_token(logits + (int64_t)r * V, V, s, marks, uniforms[r], at, margins + r);
        if (ids[r] < 0) status = NOT_FINITE;
    }
    free(memory);
    return status;
}
