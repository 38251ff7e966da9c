/* Products of 8-bit weights by an instruction that multiplies bytes by fours and adds them up (VNNI on x86, dot products on ARM).

   Packed: (N / PANEL, I / 4, PANEL, 4): four inputs of each output stand together. On x86 weights are unsigned, WEIGHT_ZERO more than they
   stand for; the sum of a row's inputs, times that, is taken off in the end. */

#pragma once
#include "bytes.h"

#if defined(DOTS)
enum { DOT_ROWS = 3 }; /* rows at once: their sums and the weights fit into the registers */

typedef struct { int8_t *high, *low; float scale; int32_t high_sum, low_sum; } ByteRow;

INLINE ivec splat_four(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return (ivec){0} + four;
}

static int32_t sum_of(const int8_t *x, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    return sum;
}

/* R rows of a panel, where the compiler knows R: sums[row] of products with the high bytes of its inputs, and with the low ones. `lines` of
   the next panel are fetched for every four inputs, or what comes soon where there is one row. */
INLINE void dot_kernel(const char *panel, const char *ahead, int lines, int fours, int R, const ByteRow *x, ivec (*sums)[2][WIDE]) {
    ivec a[DOT_ROWS][2][WIDE];
    for (int r = 0; r < R; r++)
        for (int w = 0; w < WIDE; w++) a[r][0][w] = a[r][1][w] = (ivec){0};
    for (int k = 0; k < fours; k++) {
        const char *now = panel + (int64_t)k * PANEL * 4;
        if (R == 1)
            for (int line = 0; line < PANEL * 4; line += 64) __builtin_prefetch(now + AHEAD + line);
        else
            for (int line = 0; line < lines; line++) __builtin_prefetch(ahead + ((int64_t)k * lines + line) * 64, 0, 2);
        ivec x_high[DOT_ROWS], x_low[DOT_ROWS];
        for (int r = 0; r < R; r++) x_high[r] = splat_four(x[r].high + 4 * k), x_low[r] = splat_four(x[r].low + 4 * k);
        for (int w = 0; w < WIDE; w++) {
            ivec weights = load_ints(now + w * LANES * 4);
            for (int r = 0; r < R; r++) {
                a[r][0][w] = dot(a[r][0][w], weights, x_high[r]);
                a[r][1][w] = dot(a[r][1][w], weights, x_low[r]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int w = 0; w < WIDE; w++) sums[r][0][w] = a[r][0][w], sums[r][1][w] = a[r][1][w];
}

static void matmul_dots(const Matrix *m, int first, int last, int rows, const float *const *x, void *context, Epilogue *epilogue) {
    int fours = (m->inputs + 3) / 4, padded = fours * 4, blocks = (rows + DOT_ROWS - 1) / DOT_ROWS; /* of at most DOT_ROWS rows each */
    int64_t stride = (int64_t)fours * PANEL * 4;
    ByteRow in[rows];
    if (first >= last) return;
    int lines = (PANEL * 4 / 64 + blocks - 1) / blocks; /* all blocks of rows together fetch the next panel */
    for (int r = 0; r < rows; r++) {
        in[r].high = planes + (int64_t)r * 2 * padded;
        in[r].low = in[r].high + padded;
        split_bytes(x[r], m->inputs, padded, in[r].high, in[r].low, &in[r].scale);
        in[r].high_sum = WEIGHT_ZERO * sum_of(in[r].high, padded);
        in[r].low_sum = WEIGHT_ZERO * sum_of(in[r].low, padded);
    }
    for (int p = first; p < last; p++) {
        const char *panel = (const char *)m->data + p * stride;
        for (int b = 0; b < blocks; b++) {
            ivec sums[DOT_ROWS][2][WIDE];
            int row = rows * b / blocks, now = rows * (b + 1) / blocks - row;
            const char *ahead = panel + stride + (int64_t)b * lines * fours * 64;
            if (now == 1) dot_kernel(panel, ahead, lines, fours, 1, in + row, sums);
            else if (now == 2) dot_kernel(panel, ahead, lines, fours, 2, in + row, sums);
            else dot_kernel(panel, ahead, lines, fours, DOT_ROWS, in + row, sums);
            for (int r = 0; r < now; r++) {
                vec values[WIDE];
                const ByteRow *each = in + row + r;
                for (int w = 0; w < WIDE; w++) {
                    vec high = __builtin_convertvector(sums[r][0][w] - each->high_sum, vec);
                    vec low = __builtin_convertvector(sums[r][1][w] - each->low_sum, vec);
                    values[w] = (high * 256.0f + low) * (load(m->scale + p * PANEL + w * LANES) * each->scale);
                }
                epilogue(context, row + r, p, values);
            }
        }
    }
}
#endif
