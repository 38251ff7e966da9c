/* Small matrix products for attention, in tiles of 16 rows of 16 words of 32 bits.

   A word is one float32, or two bfloat16 numbers that are neighbours along the sum. So C (16 x 16 float32) += A B, where A has 16 rows of
   words, and B for each word of the sum a row of 16 columns. This is how processors with bfloat16 products want them (Intel's matrix
   tiles, AVX-512); others multiply float32 vectors. */

#pragma once
#include "transpose.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_AMX 1
#else
#define HAS_AMX 0
#endif

enum { TILE = 1024 }; /* bytes */
#define SIZE(bf16) ((bf16) ? 2 : 4)    /* bytes of a number */
#define DEPTH(bf16) ((bf16) ? 32 : 16) /* numbers of a tile's row */

static int32_t in_amx; /* whether bfloat16 is multiplied by AMX */

/* Multiply by AMX if `wanted` and the processor has it; whether it does. */
int32_t use_amx(int32_t wanted) {
#if HAS_AMX
    const long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18; /* Linux lets a process use tiles once it has asked */
    in_amx = wanted && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    (void)wanted;
#endif
    return in_amx;
}

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileConfig;

/* Set this thread's tiles to 16 x 64 bytes. `before` is what oneDNN had set, for `restore_tiles`. */
INLINE void set_tiles(TileConfig *before) {
    TileConfig ours __attribute__((aligned(64))) = {.palette = 1, .bytes = {64, 64, 64}, .rows = {16, 16, 16}};
#if HAS_AMX
    if (in_amx) _tile_storeconfig(before), _tile_loadconfig(&ours);
#endif
    (void)before, (void)ours;
}

INLINE void restore_tiles(const TileConfig *before) {
#if HAS_AMX
    if (in_amx && before->palette) _tile_loadconfig(before);
    else if (in_amx) _tile_release();
#endif
    (void)before;
}

#if defined(__AVX512F__)
enum { WIDE = 16, ROWS = 16 }; /* words in a register; rows of C that are summed at once, as many as there are registers for */
#elif defined(__AVX__)
enum { WIDE = 8, ROWS = 4 };
#elif defined(__aarch64__)
enum { WIDE = 4, ROWS = 4 };
#else
enum { WIDE = 4, ROWS = 2 };
#endif
typedef float wide_vec __attribute__((vector_size(WIDE * 4), aligned(4), may_alias));
typedef uint32_t wide_words __attribute__((vector_size(WIDE * 4), aligned(4), may_alias));
typedef uint32_t word __attribute__((aligned(4), may_alias));

/* sum + the word `a` times the words b: one product or two. */
INLINE wide_vec multiply_add(wide_vec sum, uint32_t a, wide_words b, int bf16) {
    if (!bf16) {
        float x;
        memcpy(&x, &a, sizeof x);
        return sum + x * (wide_vec)b;
    }
#if defined(__AVX512BF16__)
    return (wide_vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
#else
    float x[2];
    uint32_t halves[2] = {a << 16, a & 0xffff0000};
    memcpy(x, halves, sizeof x);
    return sum + x[0] * (wide_vec)(b << 16) + x[1] * (wide_vec)(b & 0xffff0000);
#endif
}

/* c (16, 16), rows c_stride floats apart, = or += the sum of n products of tiles A (a_step bytes from one to the next) and B (b_step). */
INLINE void multiply(float *c, int64_t c_stride, const char *a, int64_t a_step, const char *b, int64_t b_step, int64_t n, int add, int bf16) {
#if HAS_AMX
    if (bf16 && in_amx) {
        if (add) _tile_loadd(0, c, 4 * c_stride);
        else _tile_zero(0);
        for (int64_t i = 0; i < n; i++) {
            _tile_loadd(1, a + i * a_step, 64);
            _tile_loadd(2, b + i * b_step, 64);
            _tile_dpbf16ps(0, 1, 2);
        }
        _tile_stored(0, c, 4 * c_stride);
        return;
    }
#endif
    enum { PARTS = 16 / WIDE };
    for (int first = 0; first < 16; first += ROWS) {
        wide_vec sum[ROWS][PARTS], *to[ROWS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            to[r] = (wide_vec *)(c + (first + r) * c_stride);
#pragma GCC unroll 4
            for (int v = 0; v < PARTS; v++) sum[r][v] = add ? to[r][v] : (wide_vec){0};
        }
        for (int64_t i = 0; i < n; i++) {
            const word *of_a = (const word *)(a + i * a_step) + 16 * first;
            const wide_words *of_b = (const wide_words *)(b + i * b_step);
            for (int k = 0; k < 16; k++, of_a++, of_b += PARTS) {
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
                    for (int v = 0; v < PARTS; v++) sum[r][v] = multiply_add(sum[r][v], of_a[16 * r], of_b[v], bf16);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < PARTS; v++) to[r][v] = sum[r][v];
    }
}
