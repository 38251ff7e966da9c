/* Muon's iteration in bfloat16: each of N matrices becomes nearly orthogonal (training/optimizers.py has the formula).

   A matrix stays in the cache for all of its iterations. Of the two symmetric products of an iteration only one half is computed. Sides are
   multiples of 16. Threads share out the matrices, so that results do not depend on their number. */

#include <stdlib.h>

#include "pair_tiles.h"

/* One matrix X (r, c), r <= c, and what an iteration computes from it. */
typedef struct {
    int64_t r, c;
    char *x;           /* (r, c) */
    char *panels;      /* of X, X^T or the Gram matrix */
    char *gram, *poly; /* (r, r) X X^T, and b X X^T + c (X X^T)^2 */
} Matrix;

/* out (rows, columns) = a y + b left right, left (rows, depth); y may be null, or out. */
typedef struct {
    const char *left, *panels, *y;
    char *out;
    int64_t rows, columns, depth;
    float a, b;
} Combination;

INLINE void combine_tile(const Combination *s, int64_t r, int64_t c, int thick) {
    const char *at[TALL];
    vec sums[TALL][THICK];
    for (int i = 0; i < TALL; i++) at[i] = s->left + (r + i) * s->depth * 2;
    multiply(sums, at, 4, (Panels){s->panels + c * s->depth * 2, s->depth * 32}, s->depth / 2, thick);
#pragma GCC unroll 8
    for (int i = 0; i < TALL; i++)
#pragma GCC unroll 3
        for (int v = 0; v < thick; v++) {
            int64_t to = (r + i) * s->columns + c + 16 * v;
            store(s->out, to, s->y ? s->a * load(s->y, to, 1) + s->b * sums[i][v] : s->b * sums[i][v], 1);
        }
}

/* If `symmetric`, tiles below the diagonal are left out. */
INLINE void combine(Combination s, int symmetric) {
    for (int64_t t = 0; t < s.rows; t += ROWS_AT_ONCE)
        for (int64_t c = 0; c < s.columns; c += 16 * THICK)
            for (int64_t r = t; r < t + ROWS_AT_ONCE && r < s.rows; r += TALL) {
                int thick = least((s.columns - c) / 16, THICK);
                if (!symmetric || c + 16 * THICK > r) CONSTANT_THICK(combine_tile(&s, r, c, thick));
            }
}

/* The block of 16 x 16 numbers at (r, c) of `from`, transposed, to (c, r) of `to`. */
INLINE void turn_block(const void *from, int64_t width, int bf16, int64_t r, int64_t c, void *to, int64_t to_width, int to_bf16, float scale) {
    uvec block[16];
    for (int i = 0; i < 16; i++) block[i] = (uvec)(load(from, (r + i) * width + c, bf16) * scale);
    transpose(block);
    for (int i = 0; i < 16; i++) store(to, (c + i) * to_width + r, (vec)block[i], to_bf16);
}

/* The half below the diagonal of a symmetric matrix (n, n) from the other. */
INLINE void mirror(char *x, int64_t n) {
    for (int64_t r = 0; r < n; r += 16)
        for (int64_t c = r + 16; c < n; c += 16) turn_block(x, n, 1, r, c, x, n, 1, 1);
}

INLINE void iterate(const Matrix *m, const float q[3]) {
    int64_t r = m->r, c = m->c;
    for (int64_t p = 0; p < r / 16; p++) pack_rows(m->x + p * 16 * c * 2, c, m->panels + p * c * 32, 1);
    combine((Combination){m->x, m->panels, 0, m->gram, r, r, c, 0, 1}, 1);
    mirror(m->gram, r);
    pack_columns(m->gram, r, r, 0, r, 0, r, m->panels, r * 32, 0, 1);
    combine((Combination){m->gram, m->panels, m->gram, m->poly, r, r, r, q[1], q[2]}, 1);
    mirror(m->poly, r);
    pack_columns(m->x, r, c, 0, r, 0, c, m->panels, r * 32, 0, 1);
    combine((Combination){m->poly, m->panels, m->x, m->x, r, c, r, q[0], 1}, 0);
}

/* out = scale times in (rows, columns) of `size`, transposed if `turned`. */
INLINE void copy(const void *in, int64_t rows, int64_t columns, int bf16, void *out, int out_bf16, int turned, float scale) {
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t c = 0; c < columns; c += 16) {
            if (turned) turn_block(in, columns, bf16, r, c, out, rows, out_bf16, scale);
            else
                for (int64_t i = r; i < r + 16; i++) store(out, i * columns + c, load(in, i * columns + c, bf16) * scale, out_bf16);
        }
}

INLINE float norm(const float *x, int64_t n) {
    vec total = splat(0);
    for (int64_t i = 0; i < n; i += LANES) total += load(x, i, 0) * load(x, i, 0);
    return sqrtf(sum(total));
}

/* out = in (N, rows, columns), each matrix divided by its norm and put through X <- q0 X + (q1 A + q2 A A) X, A = X X^T, `iterations` times.
   0, or 1 where there is no memory. */
int32_t orthogonalise(const float *in, float *out, int64_t N, int64_t rows, int64_t columns, int32_t iterations, float q0, float q1, float q2) {
    int failed = 0, turned = rows > columns;
    int64_t r = turned ? columns : rows, c = turned ? rows : columns, n = r * c;
    const float q[3] = {q0, q1, q2};
#pragma omp parallel
    {
        THREAD_RANGE(N, from, to);
        char *x = aligned_alloc(64, (2 * n + 2 * r * r) * 2);
        Matrix m = {r, c, x, x + 2 * n, x + 4 * n, x + 4 * n + 2 * r * r};
        if (!x) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        for (int64_t i = from; x && i < to; i++) {
            copy(in + i * n, rows, columns, 0, m.x, 1, turned, 1.0f / (norm(in + i * n, n) + 1e-7f));
            for (int k = 0; k < iterations; k++) iterate(&m, q);
            copy(m.x, r, c, 1, out + i * n, 0, turned, 1);
        }
        free(x);
    }
    return failed;
}
