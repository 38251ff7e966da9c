/* The products of linear layers in a training step, in bfloat16, with what is done to each element next: y = x W^T + bias, also followed by GELU
   or SwiGLU; dx = dy W, also times the slopes that those have kept; dW = dy^T x.

   pair_tiles.h multiplies. dW sums over rows, so that both sides are packed, DEEP rows at a time, which stay in the cache.

   x (M, K), y (M, N), their gradients and slopes are bfloat16; W (N, K), bias and their gradients float32. N and K are multiples of 16.
   Results do not depend on the number of threads. Functions return 0, or 1 where there is no memory. */

#include <stdlib.h>

#include "activations.h"
#include "pair_tiles.h"

enum { DEEP = 256, PANEL = DEEP / 2 * 64 + 64 }; /* bytes; no power of 2, so that panels do not push one another out of the cache */

/* Whether the processor multiplies pairs in one instruction. */
int32_t has_pairs(void) {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

/* ---- y = x W^T and dx = dy W */

/* What is done with a sum. */
enum { STORE, GELU, GELU_TANH, SWIGLU, TIMES_SLOPE, TIMES_SLOPES };

typedef struct {
    const char *x;      /* (M, depth) */
    const char *panels; /* (columns / 16, depth / 2, 16) */
    const float *bias;  /* (columns), or null */
    char *out;          /* (M, columns); after SWIGLU (M, columns / 2), by TIMES_SLOPES (M, 2 columns) */
    char *slopes;       /* (M, columns), to TIMES_SLOPES (M, 2 columns); null: not kept */
    int64_t M, depth, columns;
} Product;

/* The sums `s` of row r from column c on. */
INLINE void finish(const Product *p, vec s, int64_t r, int64_t c, int next) {
    int64_t at = r * p->columns + c;
    vec d;
    if (p->bias) s += load(p->bias, c, 0);
    if (next == TIMES_SLOPE) s *= load(p->slopes, at, 1);
    if (next == TIMES_SLOPES) {
        at += r * p->columns;
        store(p->out, at, s * load(p->slopes, at, 1), 1);
        at += p->columns;
        s *= load(p->slopes, at, 1);
    }
    if (next == GELU || next == GELU_TANH) {
        s = gelu(s, &d, next == GELU_TANH, 1);
        if (p->slopes) store(p->slopes, at, d, 1);
    }
    store(p->out, at, s, 1);
}

/* The same of gate and up, for SWIGLU. */
INLINE void finish_gated(const Product *p, vec gate, vec up, int64_t r, int64_t c) {
    int64_t half = p->columns / 2, at = r * p->columns + c / 2;
    vec d[2];
    store(p->out, r * half + c / 2, swiglu(gate, up, d, 1), 1);
    for (int i = 0; p->slopes && i < 2; i++) store(p->slopes, at + i * half, d[i], 1);
}

/* Ask for the slopes that a tile's row is multiplied by. */
INLINE void fetch_slopes(const Product *p, int64_t r, int64_t c, int thick, int next) {
    for (int k = 0; k < (next == TIMES_SLOPES ? 2 : 1); k++) {
        const char *slopes = p->slopes + ((next == TIMES_SLOPES ? 2 * r + k : r) * p->columns + c) * 2;
        __builtin_prefetch(slopes);
        __builtin_prefetch(slopes + 32 * thick - 1);
    }
}

INLINE int is_activation(int next) { return next == GELU || next == GELU_TANH || next == SWIGLU; }

/* `rows` rows from r on and `thick` vectors from column c on; `sums` are left to activations, whose code is too long to be repeated for each. */
INLINE void product_tile(const Product *p, vec sums[TALL][THICK], int64_t r, int64_t c, int rows, int thick, int next) {
    const char *at[TALL];
    vec s[TALL][THICK];
    for (int i = 0; next >= TIMES_SLOPE && i < rows; i++) fetch_slopes(p, r + i, c, thick, next);
    for (int i = 0; i < TALL; i++) at[i] = p->x + (r + least(i, rows - 1)) * p->depth * 2;
    multiply(s, at, 4, (Panels){p->panels + c * p->depth * 2, p->depth * 32}, p->depth / 2, thick);
#pragma GCC unroll 8
    for (int i = 0; i < TALL; i++)
#pragma GCC unroll 3
        for (int v = 0; v < thick; v++) {
            if (is_activation(next)) sums[i][v] = s[i][v];
            else if (i < rows) finish(p, s[i][v], r + i, c + 16 * v, next);
        }
}

/* Rows from .. to. A few rows at a time meet all columns, so that both stay in the cache. */
INLINE void product_part(const Product *p, int64_t from, int64_t to, int next) {
    const int most = next == SWIGLU ? 2 : THICK;
    for (int64_t t = from; t < to; t += ROWS_AT_ONCE)
        for (int64_t c = 0; c < p->columns; c += 16 * most)
            for (int64_t r = t; r < t + ROWS_AT_ONCE && r < to; r += TALL) {
                int thick = least((p->columns - c) / 16, most), rows = least(to - r, TALL);
                vec sums[TALL][THICK];
                CONSTANT_THICK(product_tile(p, sums, r, c, rows, thick, next));
                for (int i = 0; is_activation(next) && i < rows; i++) {
                    if (next == SWIGLU) finish_gated(p, sums[i][0], sums[i][1], r + i, c);
                    else
                        for (int v = 0; v < thick; v++) finish(p, sums[i][v], r + i, c + 16 * v, next);
                }
            }
}

static void multiply_all(const Product *p, int32_t next) {
#pragma omp parallel
    {
        THREAD_RANGE((p->M + TALL - 1) / TALL, first, end);
        int64_t from = first * TALL, to = end * TALL < p->M ? end * TALL : p->M;
        switch (next) {
        case STORE: product_part(p, from, to, STORE); break;
        case GELU: product_part(p, from, to, GELU); break;
        case GELU_TANH: product_part(p, from, to, GELU_TANH); break;
        case SWIGLU: product_part(p, from, to, SWIGLU); break;
        case TIMES_SLOPE: product_part(p, from, to, TIMES_SLOPE); break;
        case TIMES_SLOPES: product_part(p, from, to, TIMES_SLOPES); break;
        }
    }
}

/* out = x W^T + bias, then STORE, GELU, GELU_TANH or SWIGLU. */
int32_t linear_forward(const void *x, const float *w, const float *bias, void *out, void *slopes, int64_t M, int64_t N, int64_t K, int32_t next) {
    char *panels = aligned_alloc(64, N * K * 2);
    if (!panels) return 1;
#pragma omp parallel
    {
        THREAD_RANGE(N / 16, from, to);
        for (int64_t p = from; p < to; p++) { /* for SWIGLU panels of gate and of up take turns */
            int64_t row = next == SWIGLU ? p % 2 * (N / 2) + p / 2 * 16 : 16 * p;
            pack_rows(w + row * K, K, panels + p * K * 32, 0);
        }
    }
    Product product = {x, panels, bias, out, slopes, M, K, N};
    multiply_all(&product, next);
    free(panels);
    return 0;
}

/* out = dy W, then STORE, TIMES_SLOPE or TIMES_SLOPES. */
int32_t linear_backward(const void *dy, const float *w, const void *slopes, void *out, int64_t M, int64_t N, int64_t K, int32_t next) {
    char *panels = aligned_alloc(64, N * K * 2);
    if (!panels) return 1;
#pragma omp parallel
    {
        THREAD_RANGE(K / 16, from, to);
        pack_columns(w, N, K, 0, N, 16 * from, 16 * to, panels + from * N * 32, N * 32, 0, 0);
    }
    Product product = {dy, panels, 0, out, (char *)slopes, M, N, K};
    multiply_all(&product, next);
    free(panels);
    return 0;
}

/* ---- dW = dy^T x */

/* Columns from .. to of x (rows, width), and where they are packed. */
typedef struct {
    const char *x;
    int64_t rows, width, from, to;
    char *panels;
} Side;

INLINE void pack_side(const Side *s, int64_t t, int64_t n, float *sums) {
    pack_columns(s->x, s->rows, s->width, t, n, s->from, s->to, s->panels, PANEL, sums, 1);
}

/* Ask for rows t .. t + n, which are packed later. */
INLINE void fetch(const Side *s, int64_t t, int64_t n) {
    for (int64_t i = t; i < t + n && i < s->rows; i++)
        for (int64_t c = s->from; c < s->to; c += 32) __builtin_prefetch(s->x + (i * s->width + c) * 2, 0, 2);
}

/* dw += `thick` vectors from column c on of rows r .. r + TALL of the product of n rows, which are packed; `first`: dw is that. */
INLINE void gradient_tile(const Side *dy, const Side *x, float *dw, int64_t r, int64_t c, int64_t n, int thick, int first) {
    const char *at[TALL];
    vec sums[TALL][THICK];
    for (int i = 0; i < TALL; i++) at[i] = dy->panels + r / 16 * PANEL + (r % 16 + i) * 4;
    multiply(sums, at, 64, (Panels){x->panels + c / 16 * PANEL, PANEL}, n / 2, thick);
#pragma GCC unroll 8
    for (int i = 0; i < TALL; i++)
#pragma GCC unroll 3
        for (int v = 0; v < thick; v++) {
            int64_t to = (dy->from + r + i) * x->width + x->from + c + 16 * v;
            store(dw, to, first ? sums[i][v] : load(dw, to, 0) + sums[i][v], 0);
        }
}

/* dw += the product of n rows from t on, which are packed; meanwhile the next ones are asked for. */
INLINE void add_block(const Side *dy, const Side *x, float *dw, int64_t t, int64_t n) {
    int64_t rows = dy->to - dy->from, columns = x->to - x->from, tiles = rows / TALL * ((columns + 16 * THICK - 1) / (16 * THICK));
    int64_t share = (DEEP + tiles - 1) / tiles, ahead = t + DEEP;
    for (int64_t c = 0; c < columns; c += 16 * THICK)
        for (int64_t r = 0; r < rows; r += TALL, ahead += share) {
            int thick = least((columns - c) / 16, THICK);
            fetch(dy, ahead, share);
            fetch(x, ahead, share);
            CONSTANT_THICK(gradient_tile(dy, x, dw, r, c, n, thick, t == 0));
        }
}

/* d_bias, if not null: the sums of dy's columns, zero on entry. The wider side is shared out among the threads, each of which packs all of the other. */
int32_t linear_weight_gradient(const void *dy, const void *x, float *dw, float *d_bias, int64_t M, int64_t N, int64_t K) {
    int failed = 0;
#pragma omp parallel
    {
        int64_t wide = N > K ? N : K;
        THREAD_RANGE(wide / 16, from, to);
        Side a = {dy, M, N, 0, N, 0}, b = {x, M, K, 0, K, 0};
        Side *shared = N == wide ? &a : &b;
        shared->from = 16 * from, shared->to = 16 * to;
        a.panels = aligned_alloc(64, (a.to - a.from + b.to - b.from) / 16 * PANEL);
        if (!a.panels) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        else if (from < to) {
            float *sums = shared == &a || from == 0 ? d_bias : 0; /* of one thread */
            b.panels = a.panels + (a.to - a.from) / 16 * PANEL;
            for (int64_t t = 0; t < M; t += DEEP) {
                int64_t n = M - t < DEEP ? (M - t + 1) / 2 * 2 : DEEP;
                pack_side(&a, t, n, sums);
                pack_side(&b, t, n, 0);
                add_block(&a, &b, dw, t, n);
            }
        }
        free(a.panels);
    }
    return failed;
}
