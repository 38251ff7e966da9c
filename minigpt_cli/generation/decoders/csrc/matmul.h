/* Products of a packed matrix with rows of inputs. Every output is summed over its inputs in order, by one lane of one vector. */

#pragma once
#include "model.h"

/* What is done with the outputs of a panel for a row. */
typedef void Epilogue(void *context, int row, int panel, const vec *values);

enum { AHEAD = 1 << 12 }; /* bytes that one row fetches beforehand: memory then gives twice as many a second as the processor's own guesses */

#include "amx.h"
#include "dots.h"

/* R rows times G panels side by side (G > 1 only with R == 1, for enough independent sums), where the compiler knows R, G and bits.
   acc is [R * G][WIDE]. */
INLINE void micro_kernel(const void *panel, const char *ahead, int inputs, int R, int G, int bits, const float *const *x, vec (*acc)[WIDE]) {
    vec a[TILE][WIDE];
    for (int i = 0; i < R * G; i++)
        for (int w = 0; w < WIDE; w++) a[i][w] = (vec){0};
    for (int k = 0; k < inputs; k++) {
        if (R > 1) __builtin_prefetch(ahead + (int64_t)k * 64, 0, 2); /* with several rows there is time to fetch what comes next */
        for (int g = 0; g < G; g++) {
            const char *now = (const char *)panel + ((int64_t)g * inputs + k) * PANEL * (bits / 8);
            for (int line = 0; R == 1 && line < PANEL * bits / 8; line += 64) __builtin_prefetch(now + AHEAD + line);
            vec m[WIDE];
            for (int w = 0; w < WIDE; w++) m[w] = load_floats(panel, ((int64_t)g * inputs + k) * PANEL + w * LANES, bits);
            for (int r = 0; r < R; r++) {
                vec b = splat(x[r][k]);
                for (int w = 0; w < WIDE; w++) a[g * R + r][w] += m[w] * b;
            }
        }
    }
    for (int i = 0; i < R * G; i++)
        for (int w = 0; w < WIDE; w++) acc[i][w] = a[i][w];
}

#define ROWS(bits)                                                                                       \
    switch (rows) {                                                                                      \
    case 1:                                                                                              \
        if (panels == 2) micro_kernel(panel, ahead, inputs, 1, 2, bits, x, acc);                         \
        else micro_kernel(panel, ahead, inputs, 1, 1, bits, x, acc);                                     \
        break;                                                                                           \
    case 2: micro_kernel(panel, ahead, inputs, 2, 1, bits, x, acc); break;                               \
    case 3: micro_kernel(panel, ahead, inputs, 3, 1, bits, x, acc); break;                               \
    case 4: micro_kernel(panel, ahead, inputs, 4, 1, bits, x, acc); break;                               \
    case 5: if (TILE > 4) micro_kernel(panel, ahead, inputs, TILE > 4 ? 5 : 1, 1, bits, x, acc); break;  \
    default: micro_kernel(panel, ahead, inputs, TILE, 1, bits, x, acc);                                  \
    }

static void matmul_panels(const Matrix *m, const void *panel, const char *ahead, int rows, int panels, const float *const *x, vec (*acc)[WIDE]) {
    int inputs = m->inputs;
    if (m->bits == FLOAT32) { ROWS(FLOAT32) }
    else if (m->bits == INT16) { ROWS(INT16) }
    else { ROWS(INT8) }
}

/* The outputs of panels [first, last) for any number of rows, handed to `epilogue`. */
INLINE void matmul(const Matrix *m, int first, int last, int rows, const float *const *x, void *context, Epilogue *epilogue) {
#if defined(TILES)
    if (m->bits == TILED) {
        matmul_amx(m, first, last, rows, x, context, epilogue);
        return;
    }
#endif
#if defined(DOTS)
    if (m->bits == INT8_FOURS) {
        matmul_dots(m, first, last, rows, x, context, epilogue);
        return;
    }
#endif
    int64_t stride = (int64_t)m->inputs * PANEL * (m->bits / 8);
    vec acc[TILE][WIDE];
    for (int p = first; p < last;) {
        const char *panel = (const char *)m->data + p * stride;
        int together = rows == 1 && p + 2 <= last ? 2 : 1;
        for (int r = 0; r < rows; r += TILE) {
            int now = rows - r < TILE ? rows - r : TILE;
            const char *ahead = panel + stride + (int64_t)(r / TILE) * m->inputs * 64; /* each block of rows fetches its part of the next panel */
            matmul_panels(m, panel, ahead, now, together, x + r, acc);
            for (int i = 0; i < now * together; i++) {
                int at = p + (now == 1 ? i : 0), row = r + (now == 1 ? 0 : i);
                if (m->scale)
                    for (int w = 0; w < WIDE; w++) acc[i][w] *= load(m->scale + at * PANEL + w * LANES);
                epilogue(context, row, at, acc[i]);
            }
        }
        p += together;
    }
}
