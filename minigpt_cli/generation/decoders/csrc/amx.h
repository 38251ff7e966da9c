/* Products on the matrix tiles of Intel's processors (AMX), where there are any: sixteen rows for the price of one.

   Of 16-bit weights and inputs the four products of their bytes are summed.
   Packed: (N / PANEL, PANEL / 16, I / 64, 2 planes, 16, 16 outputs, 4): 64 inputs of 16 outputs are one tile, inputs by fours. */

#pragma once
#include "bytes.h"

#if defined(TILES)
enum { TILE_ROWS = 16, TILE_INPUTS = 64, TILE_BYTES = 1024, TILES_AHEAD = 1 << 13 /* bytes */ };

static void configure_tiles(int rows) {
    struct __attribute__((packed)) { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } c = {.palette = 1};
    for (int t = 0; t < 8; t++) c.bytes[t] = 64, c.rows[t] = t < 6 ? rows : 16;
    _tile_loadconfig(&c);
}

static void amx_block(const int8_t *high, const int8_t *low, int padded, const int8_t *w, int32_t (*sums)[TILE_ROWS][16]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < padded; k += TILE_INPUTS, w += 2 * TILE_BYTES) {
        for (int line = 0; line < 2 * TILE_BYTES; line += 64) __builtin_prefetch(w + TILES_AHEAD + line, 0, 2);
        _tile_loadd(4, high + k, padded);
        _tile_loadd(5, low + k, padded);
        _tile_loadd(6, w, 64);
        _tile_loadd(7, w + TILE_BYTES, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
}

static void matmul_amx(const Matrix *m, int first, int last, int rows, const float *const *x, void *context, Epilogue *epilogue) {
    int padded = (m->inputs + TILE_INPUTS - 1) / TILE_INPUTS * TILE_INPUTS, room = (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    int8_t *high = planes, *low = planes + (int64_t)room * padded;
    float scale[room];
    int32_t sums[4][TILE_ROWS][16] __attribute__((aligned(64)));
    if (first >= last || !rows) return;
    for (int r = 0; r < rows; r++) split_bytes(x[r], m->inputs, padded, high + (int64_t)r * padded, low + (int64_t)r * padded, scale + r);
    configure_tiles(rows < TILE_ROWS ? rows : TILE_ROWS); /* with more rows the last block holds old ones too, whose results are not read */
    for (int p = first; p < last; p++)
        for (int r = 0; r < rows; r += TILE_ROWS) {
            vec acc[TILE_ROWS][WIDE];
            int now = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
            for (int w = 0; w < WIDE; w++) {
                const int8_t *tiles = (const int8_t *)m->data + ((int64_t)p * WIDE + w) * padded * 2 * 16;
                amx_block(high + (int64_t)r * padded, low + (int64_t)r * padded, padded, tiles, sums);
                vec each = load(m->scale + p * PANEL + w * LANES);
                for (int i = 0; i < now; i++) {
                    ivec middle = load_ints(sums[1][i]) + load_ints(sums[2][i]);
                    vec v = __builtin_convertvector(load_ints(sums[0][i]), vec) * 65536.0f + __builtin_convertvector(middle, vec) * 256.0f +
                            __builtin_convertvector(load_ints(sums[3][i]), vec);
                    acc[i][w] = v * (each * scale[r + i]);
                }
            }
            for (int i = 0; i < now; i++) epilogue(context, r + i, p, acc[i]);
        }
}
#endif
