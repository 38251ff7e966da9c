/* Products of bfloat16 matrices, in tiles of TALL rows and up to THICK vectors of columns, whose sums stay in registers.

   Two numbers of each sum, a pair, are multiplied at once (AVX-512 BF16); other processors do the same in several instructions. The right side is
   packed for this in panels of 16 columns: for each pair a row of 16 words of 32 bits. */

#pragma once
#include "transpose.h"

enum { TALL = 8, THICK = 3, ROWS_AT_ONCE = 96 };

INLINE vec multiply_pairs(vec sum, const char *a, uvec b) {
    uint32_t pair;
    memcpy(&pair, a, 4);
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)pair), (__m512bh)b);
#else
    float x[2];
    uint32_t halves[2] = {pair << 16, pair & 0xffff0000};
    memcpy(x, halves, sizeof x);
    return sum + x[0] * (vec)(b << 16) + x[1] * (vec)(b & 0xffff0000);
#endif
}

/* The right side of a tile: panels of `panel` bytes. */
typedef struct {
    const char *at;
    int64_t panel;
} Panels;

/* `thick` vectors of sums of n pairs; those of row r of the left side are at a[r], `step` bytes apart. */
INLINE void multiply(vec sums[TALL][THICK], const char *const a[TALL], int64_t step, Panels b, int64_t n, int thick) {
    const char *row[TALL];
#pragma GCC unroll 8
    for (int r = 0; r < TALL; r++) {
        row[r] = a[r];
#pragma GCC unroll 3
        for (int v = 0; v < THICK; v++) sums[r][v] = splat(0);
    }
    for (int64_t i = 0, at = 0; i < n; i++, at += step) {
        uvec of_b[THICK];
#pragma GCC unroll 3
        for (int v = 0; v < thick; v++) memcpy(&of_b[v], b.at + v * b.panel + 64 * i, 64);
#pragma GCC unroll 8
        for (int r = 0; r < TALL; r++)
#pragma GCC unroll 3
            for (int v = 0; v < thick; v++) sums[r][v] = multiply_pairs(sums[r][v], row[r] + at, of_b[v]);
    }
}

/* A statement in which the compiler sees each value of `thick` as a constant, so that the sums of a tile stay in registers. */
#define CONSTANT_THICK(...)         \
    do {                            \
        if (thick == 3) {           \
            enum { thick = 3 };     \
            __VA_ARGS__;            \
        } else if (thick == 2) {    \
            enum { thick = 2 };     \
            __VA_ARGS__;            \
        } else {                    \
            enum { thick = 1 };     \
            __VA_ARGS__;            \
        }                           \
    } while (0)

INLINE uvec halves(vec v) { return widen(to_bf16(v)); }

/* Columns from .. to of rows t .. t + n of x (rows, width), n even, as panels of pairs of rows; rows from `rows` on are zero. `sums`, or null: their
   sums are added to it. */
INLINE void pack_columns(const void *x, int64_t rows, int64_t width, int64_t t, int64_t n, int64_t from, int64_t to, char *panels, int64_t panel,
                         float *sums, int bf16) {
    for (int64_t i = 0; i < n; i += 2)
        for (int64_t c = from; c < to; c += 16) {
            vec low = t + i < rows ? load(x, (t + i) * width + c, bf16) : splat(0);
            vec high = t + i + 1 < rows ? load(x, (t + i + 1) * width + c, bf16) : splat(0);
            uvec pairs = bf16 ? (uvec)low >> 16 | (uvec)high : halves(low) | halves(high) << 16;
            memcpy(panels + (c - from) / 16 * panel + i / 2 * 64, &pairs, 64);
            if (sums) store(sums, c, load(sums, c, 0) + low + high, 0);
        }
}

/* 16 rows of x (16, K) as the columns of a panel. K is a multiple of 16. */
INLINE void pack_rows(const void *x, int64_t K, char *panel, int bf16) {
    for (int64_t k = 0; k < K; k += 32) {
        uvec pairs[16];
        for (int i = 0; i < 16; i++) {
            hvec both[2] = {to_bf16(load(x, i * K + k, bf16))};
            if (k + 16 < K) both[1] = to_bf16(load(x, i * K + k + 16, bf16));
            memcpy(&pairs[i], both, 64);
        }
        transpose(pairs);
        memcpy(panel + k / 2 * 64, pairs, 64 * least(16, (K - k) / 2));
    }
}
