/* The elementwise work of a training step, each operation in one pass over memory; models/ holds the formulas.

   Built on the user's machine for its processor; without a compiler torch computes in several passes. Plain C with
   GCC's and Clang's vector extensions. Threads are torch's own: the OpenMP symbols are those of the library torch has loaded.

   Tensors are contiguous, float32 or bfloat16 (`bf16` says which); arithmetic and statistics are float32. Row lengths are multiples
   of LANES, except of logits. Results do not depend on the number of threads: rows are independent, and sums over rows
   are made in chunks of fixed size, whose partial sums the caller adds. A function that a wrong number would make read or write
   outside of its arrays returns 1 and does nothing for such a number, else 0. */

#include "activations.h"
#include "dropout.h"
#include "vectors.h"

/* ---- dropout */

typedef struct {
    uint64_t seed;
    int32_t threshold; /* a byte below it drops its element; 0: no dropout */
    float scale;
} Dropout;

INLINE void dropout_part(const void *x, void *out, int64_t n, const Dropout *d, int64_t from, int64_t to, int bf16) {
    for (int64_t g = from; g < to; g++) {
        uint64_t bits = keep_mask(d->seed, d->threshold, g);
        for (int k = 0; k < GROUP / LANES; k++) {
            int64_t i = g * GROUP + k * LANES;
            if (i < n) store_n(out, i, n - i, masked(load_n(x, i, n - i, 0, bf16), bits, k * LANES) * d->scale, bf16);
        }
    }
}

/* out = dropout(x); n elements. */
void dropout_forward(const void *x, void *out, int64_t n, uint64_t seed, int32_t threshold, float scale, int bf16) {
    Dropout d = {seed, threshold, scale};
    PARALLEL((n + GROUP - 1) / GROUP, dropout_part(x, out, n, &d, from, to, bf16));
}

/* ---- activations; n a multiple of LANES */

/* Backward passes need e^x again; instead the forward pass keeps slopes, in place of the input that they replace. */

INLINE void gelu_part(const void *x, void *out, void *slope, int tanh_form, int64_t from, int64_t to, int bf16) {
    for (int64_t i = from * LANES; i < to * LANES; i += LANES) {
        vec d;
        store(out, i, gelu(load(x, i, bf16), &d, tanh_form, bf16), bf16);
        if (slope) store(slope, i, d, bf16);
    }
}

/* out = gelu(x), slope = gelu'(x), unless it is null. */
void gelu_forward(const void *x, void *out, void *slope, int64_t n, int32_t tanh_form, int bf16) {
    PARALLEL(n / LANES, tanh_form ? gelu_part(x, out, slope, 1, from, to, bf16) : gelu_part(x, out, slope, 0, from, to, bf16));
}

INLINE void swiglu_part(const void *gate_up, void *out, void *slopes, int64_t F, int64_t from, int64_t to, int bf16) {
    for (int64_t r = from; r < to; r++)
        for (int64_t i = 0; i < F; i += LANES) {
            vec d[2];
            store(out, r * F + i, swiglu(load(gate_up, 2 * r * F + i, bf16), load(gate_up, (2 * r + 1) * F + i, bf16), d, bf16), bf16);
            for (int k = 0; slopes && k < 2; k++) store(slopes, (2 * r + k) * F + i, d[k], bf16);
        }
}

/* out (rows, F) = silu(gate) * up of (rows, 2F); slopes (rows, 2F), its derivatives by each, unless null. */
void swiglu_forward(const void *gate_up, void *out, void *slopes, int64_t rows, int64_t F, int bf16) {
    PARALLEL(rows, swiglu_part(gate_up, out, slopes, F, from, to, bf16));
}

INLINE void slopes_part(const void *grad, const void *slopes, void *out, int64_t F, int64_t k, int64_t from, int64_t to, int bf16) {
    for (int64_t r = from; r < to; r++)
        for (int64_t i = 0; i < F; i += LANES) {
            vec g = load(grad, r * F + i, bf16);
            for (int64_t j = 0; j < k; j++) store(out, (k * r + j) * F + i, g * load(slopes, (k * r + j) * F + i, bf16), bf16);
        }
}

/* out (rows, k, F) = grad (rows, 1, F) * slopes (rows, k, F). */
void times_slopes(const void *grad, const void *slopes, void *out, int64_t rows, int64_t F, int64_t k, int bf16) {
    PARALLEL(rows, slopes_part(grad, slopes, out, F, k, from, to, bf16));
}

/* ---- norms over rows of C; statistics (rows, 2): mean (0 for RMSNorm) and 1 / standard deviation (or 1 / rms) */

INLINE void norm_part(const void *x, const float *w, const float *b, void *out, float *stats, int64_t C, float eps, int center,
                      int64_t from, int64_t to, int bf16) {
    for (int64_t r = from; r < to; r++) {
        vec s = splat(0), q = splat(0);
        if (center)
            for (int64_t i = 0; i < C; i += LANES) s += load(x, r * C + i, bf16);
        float mean = center ? sum(s) / C : 0;
        for (int64_t i = 0; i < C; i += LANES) {
            vec v = load(x, r * C + i, bf16) - mean;
            q += v * v;
        }
        float inverse = 1.0f / sqrtf(sum(q) / C + eps);
        stats[2 * r] = mean, stats[2 * r + 1] = inverse;
        for (int64_t i = 0; i < C; i += LANES) {
            vec v = (load(x, r * C + i, bf16) - mean) * inverse * load(w, i, 0);
            store(out, r * C + i, b ? v + load(b, i, 0) : v, bf16);
        }
    }
}

void norm_forward(const void *x, const float *w, const float *b, void *out, float *stats, int64_t rows, int64_t C, float eps, int32_t center,
                  int bf16) {
    PARALLEL(rows, norm_part(x, w, b, out, stats, C, eps, center, from, to, bf16));
}

INLINE void norm_back_part(const void *x, const float *stats, const float *w, const void *grad, void *dx, float *dw, float *db, int64_t rows,
                           int64_t C, int center, int64_t from, int64_t to, int bf16) {
    for (int64_t chunk = from; chunk < to; chunk++) {
        float *sum_w = dw + chunk * C, *sum_b = db ? db + chunk * C : 0;
        int64_t last = (chunk + 1) * CHUNK < rows ? (chunk + 1) * CHUNK : rows;
        for (int64_t r = chunk * CHUNK; r < last; r++) {
            float mean = stats[2 * r], inverse = stats[2 * r + 1];
            vec a = splat(0), c = splat(0);
            for (int64_t i = 0; i < C; i += LANES) {
                vec g = load(grad, r * C + i, bf16), n = (load(x, r * C + i, bf16) - mean) * inverse, gw = g * load(w, i, 0);
                a += gw * n;
                c += gw;
                store(sum_w, i, load(sum_w, i, 0) + g * n, 0);
                if (sum_b) store(sum_b, i, load(sum_b, i, 0) + g, 0);
            }
            float along = sum(a) / C, level = center ? sum(c) / C : 0;
            for (int64_t i = 0; i < C; i += LANES) {
                vec g = load(grad, r * C + i, bf16), n = (load(x, r * C + i, bf16) - mean) * inverse;
                store(dx, r * C + i, (g * load(w, i, 0) - level - n * along) * inverse, bf16);
            }
        }
    }
}

/* dw and db (or NULL) are (ceil(rows / CHUNK), C), zero on entry: partial sums of the gradients of w and b. */
void norm_backward(const void *x, const float *stats, const float *w, const void *grad, void *dx, float *dw, float *db, int64_t rows, int64_t C,
                   int32_t center, int bf16) {
    PARALLEL((rows + CHUNK - 1) / CHUNK, norm_back_part(x, stats, w, grad, dx, dw, db, rows, C, center, from, to, bf16));
}

/* ---- heads (rows, H, D), row r at position r % T: the first h RMS-normed with gain (h, D), or not (NULL), and rotated.
   table (2, T, D / 2) is cos and sin. D is a multiple of 2 LANES. */

INLINE void heads_part(const void *x, const float *gain, const float *table, void *out, float *stats, int64_t H, int64_t h, int64_t D, int64_t T,
                       float eps, int64_t from, int64_t to, int bf16) {
    int64_t half = D / 2;
    for (int64_t r = from; r < to; r++) {
        const float *cos = table + r % T * half, *sin = cos + T * half;
        for (int64_t k = 0; k < H; k++) {
            int64_t at = (r * H + k) * D;
            if (k >= h) {
                for (int64_t i = 0; i < D; i += LANES) store(out, at + i, load(x, at + i, bf16), bf16);
                continue;
            }
            float inverse = 1;
            if (gain) {
                vec q = splat(0);
                for (int64_t i = 0; i < D; i += LANES) {
                    vec v = load(x, at + i, bf16);
                    q += v * v;
                }
                stats[r * h + k] = inverse = 1.0f / sqrtf(sum(q) / D + eps);
            }
            for (int64_t i = 0; i < half; i += LANES) {
                vec a = load(x, at + i, bf16) * inverse, b = load(x, at + half + i, bf16) * inverse;
                if (gain) a *= load(gain, k * D + i, 0), b *= load(gain, k * D + half + i, 0);
                store(out, at + i, a * load(cos, i, 0) - b * load(sin, i, 0), bf16);
                store(out, at + half + i, b * load(cos, i, 0) + a * load(sin, i, 0), bf16);
            }
        }
    }
}

void heads_forward(const void *x, const float *gain, const float *table, void *out, float *stats, int64_t rows, int64_t H, int64_t h, int64_t D,
                   int64_t T, float eps, int bf16) {
    PARALLEL(rows, heads_part(x, gain, table, out, stats, H, h, D, T, eps, from, to, bf16));
}

INLINE void heads_back_part(const void *x, const float *gain, const float *table, const float *stats, const void *grad, void *dx, float *d_gain,
                            int64_t rows, int64_t H, int64_t h, int64_t D, int64_t T, int64_t from, int64_t to, int bf16) {
    int64_t half = D / 2;
    for (int64_t chunk = from; chunk < to; chunk++) {
        int64_t last = (chunk + 1) * CHUNK < rows ? (chunk + 1) * CHUNK : rows;
        for (int64_t r = chunk * CHUNK; r < last; r++) {
            const float *cos = table + r % T * half, *sin = cos + T * half;
            for (int64_t k = 0; k < H; k++) {
                int64_t at = (r * H + k) * D;
                if (k >= h) {
                    for (int64_t i = 0; i < D; i += LANES) store(dx, at + i, load(grad, at + i, bf16), bf16);
                    continue;
                }
                float inverse = gain ? stats[r * h + k] : 1, along = 0;
                for (int pass = gain ? 0 : 1; pass < 2; pass++) { /* first what the norm needs to know of the whole head */
                    vec total = splat(0);
                    for (int64_t i = 0; i < half; i += LANES) {
                        vec ga = load(grad, at + i, bf16), gb = load(grad, at + half + i, bf16);
                        vec a = ga * load(cos, i, 0) + gb * load(sin, i, 0); /* rotated back */
                        vec b = gb * load(cos, i, 0) - ga * load(sin, i, 0);
                        if (!gain) {
                            store(dx, at + i, a, bf16), store(dx, at + half + i, b, bf16);
                            continue;
                        }
                        vec na = load(x, at + i, bf16) * inverse, nb = load(x, at + half + i, bf16) * inverse;
                        vec wa = a * load(gain, k * D + i, 0), wb = b * load(gain, k * D + half + i, 0);
                        if (pass == 0) {
                            float *sums = d_gain + (chunk * h + k) * D;
                            store(sums, i, load(sums, i, 0) + a * na, 0);
                            store(sums, half + i, load(sums, half + i, 0) + b * nb, 0);
                            total += wa * na + wb * nb;
                        } else {
                            store(dx, at + i, (wa - na * along) * inverse, bf16);
                            store(dx, at + half + i, (wb - nb * along) * inverse, bf16);
                        }
                    }
                    if (pass == 0) along = sum(total) / D;
                }
            }
        }
    }
}

/* d_gain (ceil(rows / CHUNK), h, D), zero on entry: partial sums of the gradient of gain. */
void heads_backward(const void *x, const float *gain, const float *table, const float *stats, const void *grad, void *dx, float *d_gain,
                    int64_t rows, int64_t H, int64_t h, int64_t D, int64_t T, int bf16) {
    PARALLEL((rows + CHUNK - 1) / CHUNK, heads_back_part(x, gain, table, stats, grad, dx, d_gain, rows, H, h, D, T, from, to, bf16));
}

/* ---- cross-entropy of logits (rows, V) in nats: losses (rows), and lse (rows), the logarithm of the softmax's denominator. A target IGNORED
   costs nothing. */

enum { IGNORED = -100 };

static int targets_fit(const int64_t *targets, int64_t rows, int64_t V) {
    int outside = V < 1;
    for (int64_t r = 0; r < rows; r++) outside |= (targets[r] < 0 || targets[r] >= V) && targets[r] != IGNORED;
    return !outside;
}

INLINE float number(const void *p, int64_t i, int bf16) { return load_n(p, i, 1, 0, bf16)[0]; }

INLINE void losses_part(const void *logits, const int64_t *targets, float *losses, float *lse, int64_t V, int64_t from, int64_t to, int bf16) {
    for (int64_t r = from; r < to; r++) {
        vec top = splat(-INFINITY), total = splat(0);
        for (int64_t i = 0; i < V; i += LANES) top = vmax(load_n(logits, r * V + i, V - i, -INFINITY, bf16), top);
        float m = largest(top);
        for (int64_t i = 0; i < V; i += LANES) total += vexp(load_n(logits, r * V + i, V - i, -INFINITY, bf16) - m);
        lse[r] = m + logf(sum(total));
        losses[r] = targets[r] == IGNORED ? 0 : lse[r] - number(logits, r * V + targets[r], bf16);
    }
}

int32_t cross_entropy_forward(const void *logits, const int64_t *targets, float *losses, float *lse, int64_t rows, int64_t V, int bf16) {
    if (!targets_fit(targets, rows, V)) return 1;
    PARALLEL(rows, losses_part(logits, targets, losses, lse, V, from, to, bf16));
    return 0;
}

INLINE void losses_back_part(const void *logits, const int64_t *targets, const float *lse, const float *grad, void *dx, int64_t V, int64_t from,
                             int64_t to, int bf16) {
    for (int64_t r = from; r < to; r++) {
        float g = targets[r] == IGNORED ? 0 : grad[r];
        for (int64_t i = 0; i < V; i += LANES)
            store_n(dx, r * V + i, V - i, vexp(load_n(logits, r * V + i, V - i, -INFINITY, bf16) - lse[r]) * g, bf16);
        if (targets[r] == IGNORED) continue;
        int64_t at = r * V + targets[r];
        store_n(dx, at, 1, (vexp(splat(number(logits, at, bf16) - lse[r])) - 1.0f) * g, bf16);
    }
}

/* dx (rows, V) from the gradient of each loss. */
int32_t cross_entropy_backward(const void *logits, const int64_t *targets, const float *lse, const float *grad, void *dx, int64_t rows, int64_t V,
                               int bf16) {
    if (!targets_fit(targets, rows, V)) return 1;
    PARALLEL(rows, losses_back_part(logits, targets, lse, grad, dx, V, from, to, bf16));
    return 0;
}
