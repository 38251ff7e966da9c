/* The parts of a mixture of experts that are not matrix products: routing, and moving rows to the experts and back. models/moe.py
   has the formulas; conventions are those of kernels.c.

   Shapes: N tokens, k experts of each, E experts, C channels; M rows sorted by expert. */

#include "vectors.h"

enum { MAX_EXPERTS = 64 };

/* Whether every one of n numbers is in [0, below). */
static int all_below(const int64_t *numbers, int64_t n, int64_t below) {
    int outside = 0;
    for (int64_t i = 0; i < n; i++) outside |= numbers[i] < 0 || numbers[i] >= below;
    return !outside;
}

/* ---- the router: probabilities (N, E), float32, from x (N, C) and weights (E, C), float32 */

INLINE void route_part(const void *x, const float *w, float *probs, int64_t E, int64_t C, int64_t from, int64_t to, int bf16) {
    for (int64_t r = from; r < to; r++) {
        float *p = probs + r * E, top = -INFINITY, total = 0;
        for (int64_t e = 0; e < E; e++) {
            vec product = splat(0);
            for (int64_t i = 0; i < C; i += LANES) product += load(x, r * C + i, bf16) * load(w, e * C + i, 0);
            p[e] = sum(product);
            top = p[e] > top ? p[e] : top;
        }
        for (int64_t e = 0; e < E; e++) total += p[e] = expf(p[e] - top);
        for (int64_t e = 0; e < E; e++) p[e] /= total;
    }
}

void route_forward(const void *x, const float *w, float *probs, int64_t N, int64_t E, int64_t C, int bf16) {
    PARALLEL(N, route_part(x, w, probs, E, C, from, to, bf16));
}

INLINE void route_back_part(const void *x, const float *w, const float *probs, const float *grad, void *dx, float *dw, int64_t N, int64_t E,
                            int64_t C, int64_t from, int64_t to, int bf16) {
    for (int64_t chunk = from; chunk < to; chunk++) {
        int64_t last = (chunk + 1) * CHUNK < N ? (chunk + 1) * CHUNK : N;
        for (int64_t r = chunk * CHUNK; r < last; r++) {
            float d[MAX_EXPERTS], along = 0; /* gradient of the logits */
            for (int64_t e = 0; e < E; e++) along += probs[r * E + e] * grad[r * E + e];
            for (int64_t e = 0; e < E; e++) d[e] = probs[r * E + e] * (grad[r * E + e] - along);
            for (int64_t i = 0; i < C; i += LANES) {
                vec total = splat(0), v = load(x, r * C + i, bf16);
                for (int64_t e = 0; e < E; e++) {
                    int64_t at = (chunk * E + e) * C + i;
                    total += d[e] * load(w, e * C + i, 0);
                    store(dw, at, load(dw, at, 0) + d[e] * v, 0);
                }
                store(dx, r * C + i, total, bf16);
            }
        }
    }
}

/* dx (N, C); dw (chunks, E, C), partial sums that begin at zero. */
int32_t route_backward(const void *x, const float *w, const float *probs, const float *grad, void *dx, float *dw, int64_t N, int64_t E,
                       int64_t C, int bf16) {
    if (E > MAX_EXPERTS) return 1;
    PARALLEL((N + CHUNK - 1) / CHUNK, route_back_part(x, w, probs, grad, dx, dw, N, E, C, from, to, bf16));
    return 0;
}

/* ---- pairs of token and expert, token by token, sorted by expert */

/* counts (E): rows of each expert of the n pairs, rounded up to a multiple of pad; the last expert gets the rest of M. order (M): the pair
   at each place, n at padding; back (n): the place of each pair; next (E): scratch memory. Refused if an expert is not below E, or M
   rows are too few. */
int32_t sort_pairs(const int64_t *chosen, int64_t n, int64_t E, int64_t pad, int64_t M, int64_t *counts, int64_t *next, int64_t *order,
                   int64_t *back) {
    if (pad < 1 || !all_below(chosen, n, E)) return 1;
    memset(counts, 0, E * sizeof *counts);
    for (int64_t j = 0; j < n; j++) counts[chosen[j]]++;
    int64_t end = 0;
    for (int64_t e = 0; e < E; e++) {
        int64_t used = counts[e];
        counts[e] = e < E - 1 ? (used + pad - 1) / pad * pad : M - end;
        if (counts[e] < used || end + counts[e] > M) return 1;
        next[e] = end;
        for (int64_t place = end + used; place < end + counts[e]; place++) order[place] = n;
        end += counts[e];
    }
    for (int64_t j = 0; j < n; j++) {
        int64_t place = next[chosen[j]]++;
        order[place] = j;
        back[j] = place;
    }
    return 0;
}

/* ---- rows of C: to the experts, and back (`back` says which row of x belongs to each pair) */

/* out (M, C): the row of x (N, C) that belongs to each pair in `order`, zero at padding; `row` bytes each. */
int32_t gather_rows(const char *x, const int64_t *order, char *out, int64_t M, int64_t n_pairs, int64_t k, int64_t row) {
    if (k < 1 || !all_below(order, M, n_pairs + 1)) return 1;
#pragma omp parallel
    {
        THREAD_RANGE(M, from, to);
        for (int64_t m = from; m < to; m++) {
            if (order[m] < n_pairs) memcpy(out + m * row, x + order[m] / k * row, row);
            else memset(out + m * row, 0, row);
        }
    }
    return 0;
}

/* Rows of out (M, ...) that stand at padding become zero. */
void clear_padding(const int64_t *order, char *out, int64_t M, int64_t n_pairs, int64_t row) {
    for (int64_t m = 0; m < M; m++)
        if (order[m] >= n_pairs) memset(out + m * row, 0, row);
}

INLINE void gather_part(const void *x, const float *weights, const int64_t *back, void *out, int64_t k, int64_t C, int64_t from, int64_t to, int bf16) {
    for (int64_t n = from; n < to; n++)
        for (int64_t i = 0; i < C; i += LANES) {
            vec total = splat(0);
            for (int64_t p = n * k; p < (n + 1) * k; p++) total += load(x, back[p] * C + i, bf16) * (weights ? weights[p] : 1.0f);
            store(out, n * C + i, total, bf16);
        }
}

/* out (N, C): for each token the sum of its k rows of x (M, C), times weights (N, k) unless NULL. */
int32_t gather_sum(const void *x, const float *weights, const int64_t *back, void *out, int64_t tokens, int64_t k, int64_t C, int64_t M, int bf16) {
    if (!all_below(back, tokens * k, M)) return 1;
    PARALLEL(tokens, gather_part(x, weights, back, out, k, C, from, to, bf16));
    return 0;
}

INLINE void scatter_part(const void *grad, const void *x, const float *weights, const int64_t *back, void *dx, float *d_weights, int64_t k, int64_t C,
                         int64_t from, int64_t to, int bf16) {
    for (int64_t p = from * k; p < to * k; p++) {
        vec total = splat(0);
        for (int64_t i = 0; i < C; i += LANES) {
            vec g = load(grad, p / k * C + i, bf16);
            total += g * load(x, back[p] * C + i, bf16);
            store(dx, back[p] * C + i, g * weights[p], bf16);
        }
        d_weights[p] = sum(total);
    }
}

/* The gradients of gather_sum by x, at the rows that pairs have, and by weights. */
int32_t gather_sum_backward(const void *grad, const void *x, const float *weights, const int64_t *back, void *dx, float *d_weights,
                            int64_t tokens, int64_t k, int64_t C, int64_t M, int bf16) {
    if (!all_below(back, tokens * k, M)) return 1;
    PARALLEL(tokens, scatter_part(grad, x, weights, back, dx, d_weights, k, C, from, to, bf16));
    return 0;
}
