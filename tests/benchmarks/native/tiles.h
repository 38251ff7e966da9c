/* Matrix tiles (Intel AMX) in plain C, put before a source that uses them by -include: sanitizers see every load and store, and what a
   processor refuses ends the program. For processors with AVX-512 and without tiles. */

#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TilesSetUp;

static _Thread_local TilesSetUp tiles_set_up;
static _Thread_local uint8_t tiles_data[8][16][64] __attribute__((aligned(64)));

static void tiles_need(int fulfilled, const char *what) {
    if (fulfilled) return;
    fprintf(stderr, "a processor with tiles would refuse: %s\n", what);
    abort();
}

static void tiles_check(int t) {
    tiles_need(tiles_set_up.palette == 1, "a tile before it is set up");
    tiles_need(t >= 0 && t < 8 && tiles_set_up.rows[t] && tiles_set_up.bytes[t], "a tile without a shape");
}

static void tiles_load_config(const void *from) {
    TilesSetUp c;
    memcpy(&c, from, sizeof c);
    tiles_need(c.palette <= 1 && !c.start_row, "this palette");
    for (int i = 0; i < 14; i++) tiles_need(!c.reserved[i], "reserved bytes that are not zero");
    for (int t = 0; t < 16; t++) {
        tiles_need(c.rows[t] <= 16 && c.bytes[t] <= 64, "a tile of this size");
        tiles_need(!c.rows[t] == !c.bytes[t] && (t < 8 || !c.rows[t]), "half a shape, or a ninth tile");
    }
    tiles_set_up = c;
    memset(tiles_data, 0, sizeof tiles_data);
}

static void tiles_store_config(void *to) { memcpy(to, &tiles_set_up, sizeof tiles_set_up); }
static void tiles_release(void) { memset(&tiles_set_up, 0, sizeof tiles_set_up); }

static void tiles_zero(int t) {
    tiles_check(t);
    memset(tiles_data[t], 0, sizeof tiles_data[t]);
}

static void tiles_load(int t, const void *from, int64_t stride) {
    tiles_zero(t);
    for (int r = 0; r < tiles_set_up.rows[t]; r++) memcpy(tiles_data[t][r], (const char *)from + r * stride, tiles_set_up.bytes[t]);
}

static void tiles_store(int t, void *to, int64_t stride) {
    tiles_check(t);
    for (int r = 0; r < tiles_set_up.rows[t]; r++) memcpy((char *)to + r * stride, tiles_data[t][r], tiles_set_up.bytes[t]);
}

static void tiles_check_product(int c, int a, int b) {
    tiles_check(a), tiles_check(b), tiles_check(c);
    const TilesSetUp *s = &tiles_set_up;
    tiles_need(s->rows[c] == s->rows[a] && s->bytes[c] == s->bytes[b] && s->bytes[a] == 4 * s->rows[b], "a product of these shapes");
}

/* The arithmetic touches no memory but the tiles, so that it need not be watched, which makes it ten times as fast. */
#define TILES_ARITHMETIC static __attribute__((no_sanitize("address", "undefined", "thread"), optimize("O3")))

TILES_ARITHMETIC void tiles_multiply_bfloat16(int c, int a, int b) {
    float left[16][32], right[32][16], sum[16][16];
    const uint16_t(*x)[32] = (const void *)tiles_data[a], (*y)[32] = (const void *)tiles_data[b];
    for (int r = 0; r < 16; r++)
        for (int i = 0; i < 32; i++) {
            uint32_t u = (uint32_t)x[r][i] << 16, v = (uint32_t)y[r][i] << 16;
            __builtin_memcpy(&left[r][i], &u, 4);
            __builtin_memcpy(&right[2 * r + i % 2][i / 2], &v, 4);
        }
    __builtin_memcpy(sum, tiles_data[c], sizeof sum);
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 32; k++)
            for (int n = 0; n < 16; n++) sum[m][n] += left[m][k] * right[k][n];
    __builtin_memcpy(tiles_data[c], sum, sizeof sum);
}

TILES_ARITHMETIC void tiles_multiply_int8(int c, int a, int b) {
    int32_t left[16][64], right[64][16];
    uint32_t sum[16][16];
    const int8_t(*x)[64] = (const void *)tiles_data[a], (*y)[64] = (const void *)tiles_data[b];
    for (int r = 0; r < 16; r++)
        for (int i = 0; i < 64; i++) left[r][i] = x[r][i], right[4 * r + i % 4][i / 4] = y[r][i];
    __builtin_memcpy(sum, tiles_data[c], sizeof sum);
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 64; k++)
            for (int n = 0; n < 16; n++) sum[m][n] += (uint32_t)(left[m][k] * right[k][n]);
    __builtin_memcpy(tiles_data[c], sum, sizeof sum);
}

/* Beyond a tile's shape its data are zero, as they are in the processor. */
static void tiles_product_bfloat16(int c, int a, int b) {
    tiles_check_product(c, a, b);
    tiles_multiply_bfloat16(c, a, b);
}

static void tiles_product_int8(int c, int a, int b) {
    tiles_check_product(c, a, b);
    tiles_multiply_int8(c, a, b);
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig tiles_load_config
#define _tile_storeconfig tiles_store_config
#define _tile_release tiles_release
#define _tile_zero tiles_zero
#define _tile_loadd tiles_load
#define _tile_stored tiles_store
#define _tile_dpbf16ps tiles_product_bfloat16
#define _tile_dpbssd tiles_product_int8
#define syscall(...) 0L /* the system's leave to use tiles */
