/* Causal attention for training in bfloat16 on processors with matrix tiles (Intel AMX): formula and gradient as in attention.py.

   Scores stay in the cache: each block of queries is multiplied, normalised, dropped and used there. For the backward pass one number
   of each row is kept, the logarithm of the softmax's denominator, and probabilities are computed again from it (FlashAttention-2,
   Dao 2023). Tiles read q, k and v without a copy.

   A tile is 16 rows of 64 bytes. TDPBF16PS adds to C (16 x 16 float32) the product of A (16 x 32 bfloat16, as rows) and B (32 x 16
   bfloat16, as 16 rows of pairs: row r holds elements 2r and 2r + 1 of each column). So for C = X Y^T over D, B is Y's rows seen as
   32-bit words and transposed (`pack_transposed`); for C = X Y over rows of Y, B is those rows interleaved two by two (`pack_pairs`).

   Shapes: B batch, T tokens, H query heads, K key/value heads, D head size; heads (B, T, H + 2K, D) holds q, k, v. D and T are multiples of
   32. One task is one key/value head of one sequence, with the query heads that share it; tasks are shared out among torch's threads. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "dropout.h"
#include "openmp.h"

#define INLINE static inline __attribute__((always_inline))
typedef uint16_t half; /* bfloat16 */
typedef __m512 vec;
enum { TILE = 512 }; /* halves in a tile */

int32_t available(void) { /* Linux lets a process use tiles once it has asked */
    const long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

typedef struct {
    const half *heads;
    const int64_t *begins; /* (B, T) the first key that each query sees; NULL: 0 */
    int64_t B, T, H, K, D;
    uint64_t seed;
    int32_t threshold; /* a byte below it drops its weight; 0: no dropout */
    float drop_scale;  /* 1 / (the share that dropout keeps) */
    half *out;         /* (B, T, H, D) */
    float *lse;        /* (B, H, T) */
    const half *grad;  /* (B, T, H, D) */
    half *d_heads;     /* (B, T, H + 2K, D) */
} Task;

/* ---- small pieces */

INLINE vec vexp(vec x) { /* e^x for x <= 0, 0 below -87, relative error about 1e-5: results are rounded to 8 bits */
    vec n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    vec r = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504f), _mm512_sub_ps(_mm512_setzero_ps(), n)); /* in halves of a binade */
    vec y = _mm512_set1_ps(0.0096181291f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.0555041087f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.2402265070f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.6931471806f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    __mmask16 large = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ); /* or not a number */
    return _mm512_maskz_scalef_ps(large, y, n);
}

INLINE __m256i to_bf16(vec v) { return (__m256i)_mm512_cvtneps_pbh(v); }
INLINE __m512i from_bf16(__m256i h) { return _mm512_cvtepu16_epi32(h); }

/* Rows a and b of float32 as one row of pairs. */
INLINE __m512i to_bf16_pairs(vec a, vec b) { return _mm512_or_si512(from_bf16(to_bf16(a)), _mm512_slli_epi32(from_bf16(to_bf16(b)), 16)); }

/* Transpose 16 x 16 words: by 1, 2, 4 (within 128-bit lanes) and lanes. */
INLINE void transpose(__m512i *x) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
        x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
        x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xdd);
    }
}

/* Tiles (T / 16, D / 32) of x (T, D), rows `stride` halves apart: each 16 rows of 32 as words, transposed. */
static void pack_transposed(const half *x, int64_t stride, int64_t T, int64_t D, half *tiles) {
    for (int64_t t = 0; t < T; t += 16)
        for (int64_t d = 0; d < D; d += 32, tiles += TILE) {
            __m512i w[16];
            for (int i = 0; i < 16; i++) w[i] = _mm512_loadu_si512(x + (t + i) * stride + d);
            transpose(w);
            for (int i = 0; i < 16; i++) _mm512_store_si512(tiles + 32 * i, w[i]);
        }
}

/* Tiles (T / 32, D / 16) of x: each 32 rows of 16, interleaved two by two. If `transposed`, transposed after that: 16 columns of 32 rows. */
static void pack_pairs(const half *x, int64_t stride, int64_t T, int64_t D, int transposed, half *tiles) {
    for (int64_t t = 0; t < T; t += 32)
        for (int64_t d = 0; d < D; d += 16, tiles += TILE) {
            __m512i w[16];
            for (int i = 0; i < 16; i++) {
                const half *row = x + (t + 2 * i) * stride + d;
                __m512i a = from_bf16(_mm256_loadu_si256((const void *)row)), b = from_bf16(_mm256_loadu_si256((const void *)(row + stride)));
                w[i] = _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
            }
            if (transposed) transpose(w);
            for (int i = 0; i < 16; i++) _mm512_store_si512(tiles + 32 * i, w[i]);
        }
}

/* c (16, 16), rows c_stride floats apart, = or += the sum over n tiles of A (a + i a_step, rows a_stride halves apart) times B (b + i b_step). */
INLINE void tile_matmul(float *c, int64_t c_stride, const half *a, int64_t a_stride, int64_t a_step, const half *b, int64_t b_step, int64_t n, int add) {
    if (add) _tile_loadd(0, c, 4 * c_stride);
    else _tile_zero(0);
    for (int64_t i = 0; i < n; i++) {
        _tile_loadd(1, a + i * a_step, 2 * a_stride);
        _tile_loadd(2, b + i * b_step, 64);
        _tile_dpbf16ps(0, 1, 2);
    }
    _tile_stored(0, c, 4 * c_stride);
}

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileConfig;

/* Share out the B * K tasks; oneDNN's tile configuration is put back afterwards. 0, or 1 if there was no memory. */
static int run_tasks(const Task *a, size_t scratch_bytes, void (*task)(const Task *, int64_t b, int64_t k, char *scratch)) {
    int failed = 0;
#pragma omp parallel
    {
        TileConfig before __attribute__((aligned(64))), ours __attribute__((aligned(64)));
        memset(&ours, 0, sizeof ours);
        ours.palette = 1;
        for (int i = 0; i < 3; i++) ours.bytes[i] = 64, ours.rows[i] = 16;
        _tile_storeconfig(&before);
        _tile_loadconfig(&ours);
        char *scratch = aligned_alloc(64, (scratch_bytes + 63) / 64 * 64);
        int64_t n = a->B * a->K, threads = omp_get_num_threads(), me = omp_get_thread_num();
        for (int64_t i = n * me / threads; scratch && i < n * (me + 1) / threads; i++) task(a, i / a->K, i % a->K, scratch);
        if (!scratch) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        free(scratch);
        if (before.palette) _tile_loadconfig(&before);
        else _tile_release();
    }
    return failed;
}

static int fits_tiles(int64_t T, int64_t H, int64_t K, int64_t D) { return T > 0 && D > 0 && K > 0 && T % 32 == 0 && D % 32 == 0 && H % K == 0; }

INLINE const half *head(const Task *a, const half *heads, int64_t b, int64_t h) { return heads + (b * a->T * (a->H + 2 * a->K) + h) * a->D; }

INLINE const int64_t *begins_of(const Task *a, int64_t b) { return a->begins ? a->begins + b * a->T : 0; }

/* Lanes n and above: those keys from j that a query with its first key at j + n sees. */
INLINE __mmask16 lanes_from(int64_t n) { return n <= 0 ? 0xffff : n > 15 ? 0 : (__mmask16)(0xffffu << n); }

/* ---- forward */

/* scores (16, T) of queries t .. t + 16 become probabilities; weights (16, T) are those as halves, without the dropped. */
INLINE void softmax(const Task *a, float *scores, half *weights, float *lse, const int64_t *begins, int64_t t, uint64_t group) {
    int64_t T = a->T, groups = (T + 63) / 64;
    vec scale = _mm512_set1_ps(1.0f / sqrtf((float)a->D)), lowest = _mm512_set1_ps(-INFINITY);
    for (int64_t r = 0; r < 16; r++) {
        float *row = scores + r * T;
        vec top = lowest, total = _mm512_setzero_ps();
        int64_t begin = begins ? begins[t + r] : 0;
        __mmask16 diagonal = (__mmask16)((2u << r) - 1); /* keys t .. t + r */
        _mm512_store_ps(row + t, _mm512_mask_mov_ps(lowest, diagonal, _mm512_load_ps(row + t)));
        for (int64_t i = 0; i <= t; i += 16) {
            vec v = _mm512_mask_mul_ps(lowest, lanes_from(begin - i), _mm512_load_ps(row + i), scale);
            _mm512_store_ps(row + i, v);
            top = _mm512_max_ps(top, v);
        }
        float m = _mm512_reduce_max_ps(top);
        for (int64_t i = 0; i <= t; i += 16) {
            vec v = vexp(_mm512_sub_ps(_mm512_load_ps(row + i), _mm512_set1_ps(m)));
            _mm512_store_ps(row + i, v);
            total = _mm512_add_ps(total, v);
        }
        float sum = _mm512_reduce_add_ps(total);
        lse[t + r] = m + logf(sum);
        vec inverse = _mm512_set1_ps(1.0f / sum);
        uint64_t bits = ~0ull;
        for (int64_t i = 0; i <= t; i += 16) {
            if (a->threshold && i % 64 == 0) bits = keep_mask(a->seed, a->threshold, group + r * groups + i / 64);
            vec v = _mm512_maskz_mul_ps((__mmask16)(bits >> i % 64), _mm512_load_ps(row + i), inverse);
            _mm256_store_si256((void *)(weights + r * T + i), to_bf16(v));
        }
        if (t % 32 == 0) _mm256_store_si256((void *)(weights + r * T + t + 16), _mm256_setzero_si256()); /* tiles are 32 keys wide */
    }
}

static void forward_task(const Task *a, int64_t b, int64_t k, char *scratch) {
    int64_t T = a->T, D = a->D, stride = (a->H + 2 * a->K) * D, share = a->H / a->K;
    half *key_words = (half *)scratch, *value_pairs = key_words + T * D, *weights = value_pairs + T * D;
    float *scores = (float *)(weights + 16 * T), *y = scores + 16 * T;
    pack_transposed(head(a, a->heads, b, a->H + k), stride, T, D, key_words);
    pack_pairs(head(a, a->heads, b, a->H + a->K + k), stride, T, D, 0, value_pairs);
    vec scale = _mm512_set1_ps(a->drop_scale);
    for (int64_t h = k * share; h < (k + 1) * share; h++) {
        const half *q = head(a, a->heads, b, h);
        float *lse = a->lse + (b * a->H + h) * T;
        for (int64_t t = 0; t < T; t += 16) {
            for (int64_t j = 0; j <= t; j += 16) tile_matmul(scores + j, T, q + t * stride, stride, 32, key_words + j * D, TILE, D / 32, 0);
            softmax(a, scores, weights, lse, begins_of(a, b), t, ((b * a->H + h) * T + t) * ((T + 63) / 64));
            for (int64_t d = 0; d < D; d += 16) {
                tile_matmul(y, 16, weights, T, 32, value_pairs + d / 16 * TILE, D / 16 * TILE, t / 32 + 1, 0);
                half *out = a->out + ((b * T + t) * a->H + h) * D + d;
                for (int r = 0; r < 16; r++)
                    _mm256_storeu_si256((void *)(out + r * a->H * D), to_bf16(_mm512_mul_ps(_mm512_load_ps(y + 16 * r), scale)));
            }
        }
    }
}

/* 0, or 1 where the shape does not fit tiles or there is no memory; so too below. */
int32_t forward(const half *heads, const int64_t *begins, half *out, float *lse, int64_t B, int64_t T, int64_t H, int64_t K, int64_t D,
                uint64_t seed, int32_t threshold, float drop_scale) {
    if (!fits_tiles(T, H, K, D)) return 1;
    Task a = {heads, begins, B, T, H, K, D, seed, threshold, drop_scale, out, lse, 0, 0};
    return run_tasks(&a, 2 * (2 * T * D + 16 * T) + 4 * (16 * T + 256), forward_task);
}

/* ---- backward: with P the probabilities, M the mask times its scale, G the gradient of y = (P M) v, and delta = sum(G y) of each row,
   dS = P (M (G v^T) - delta), dq = dS k, dk = dS^T q, dv = (P M)^T G. Blocks of 32 queries; dk and dv are summed transposed, (D, T). */

typedef struct {
    half *key_words, *key_pairs, *value_words, *q_turned, *g_turned, *ds, *ds_pairs, *p_pairs;
    float *dk, *dv, *scores, *dp;
} Scratch;

static size_t lay_out(Scratch *s, char *at, int64_t T, int64_t D) {
    char *start = at;
    half **halves[] = {&s->key_words, &s->key_pairs, &s->value_words, &s->q_turned, &s->g_turned};
    for (int i = 0; i < 5; i++, at += 2 * T * D) *halves[i] = (half *)at;
    s->ds = (half *)at, at += 2 * 32 * T;
    s->ds_pairs = (half *)at, at += 2 * 32 * T;
    s->p_pairs = (half *)at, at += 2 * 32 * T;
    s->dk = (float *)at, at += 4 * T * D;
    s->dv = (float *)at, at += 4 * T * D;
    s->scores = (float *)at, at += 4 * 512;
    s->dp = (float *)at, at += 4 * 512;
    return at - start;
}

/* From scores and dp (32, 16) of queries t .. t + 32 and keys j .. j + 16: dS as rows and as pairs, P without the dropped as pairs. */
INLINE void block(const Task *a, const Scratch *s, const float *lse, const float *delta, const uint64_t *bits, const int64_t *begins, int64_t t,
                  int64_t j) {
    vec scale = _mm512_set1_ps(1.0f / sqrtf((float)a->D)), drop_scale = _mm512_set1_ps(a->drop_scale);
    for (int r = 0; r < 32; r += 2) {
        vec ds[2], p[2];
        for (int i = 0; i < 2; i++) {
            int64_t row = r + i, seen = t + row - j; /* keys j .. j + seen */
            __mmask16 causal = seen >= 15 ? 0xffff : seen < 0 ? 0 : (__mmask16)((2u << seen) - 1);
            if (begins) causal &= lanes_from(begins[t + row] - j);
            __mmask16 keep = (__mmask16)(bits[row] >> j % 64);
            vec x = _mm512_fmsub_ps(_mm512_load_ps(s->scores + 16 * row), scale, _mm512_set1_ps(lse[row]));
            vec v = _mm512_maskz_mov_ps(causal, vexp(_mm512_mask_mov_ps(_mm512_setzero_ps(), causal, x)));
            vec g = _mm512_maskz_mul_ps(keep, _mm512_load_ps(s->dp + 16 * row), drop_scale);
            ds[i] = _mm512_mul_ps(v, _mm512_sub_ps(g, _mm512_set1_ps(delta[row])));
            p[i] = _mm512_maskz_mov_ps(keep, v);
            _mm256_store_si256((void *)(s->ds + row * a->T + j), to_bf16(ds[i]));
        }
        _mm512_store_si512(s->ds_pairs + j * 32 + 16 * r, to_bf16_pairs(ds[0], ds[1]));
        _mm512_store_si512(s->p_pairs + j * 32 + 16 * r, to_bf16_pairs(p[0], p[1]));
    }
}

static void backward_block(const Task *a, const Scratch *s, int64_t b, int64_t h, int64_t t) {
    int64_t T = a->T, D = a->D, H = a->H, stride = (H + 2 * a->K) * D, groups = (T + 63) / 64;
    const half *q = head(a, a->heads, b, h) + t * stride, *g = a->grad + ((b * T + t) * H + h) * D, *y = a->out + ((b * T + t) * H + h) * D;
    float delta[32];
    uint64_t bits[32];
    for (int r = 0; r < 32; r++) {
        vec sum = _mm512_setzero_ps();
        for (int64_t d = 0; d < D; d += 16) {
            vec u = (vec)_mm512_slli_epi32(from_bf16(_mm256_loadu_si256((const void *)(g + r * H * D + d))), 16);
            vec v = (vec)_mm512_slli_epi32(from_bf16(_mm256_loadu_si256((const void *)(y + r * H * D + d))), 16);
            sum = _mm512_fmadd_ps(u, v, sum);
        }
        delta[r] = _mm512_reduce_add_ps(sum);
        bits[r] = ~0ull;
    }
    for (int64_t j = 0; j < t + 32; j += 16) {
        if (a->threshold && j % 64 == 0)
            for (int r = 0; r < 32; r++) bits[r] = keep_mask(a->seed, a->threshold, ((b * H + h) * T + t + r) * groups + j / 64);
        for (int r = 0; r < 32; r += 16) {
            tile_matmul(s->scores + 16 * r, 16, q + r * stride, stride, 32, s->key_words + j * D, TILE, D / 32, 0);
            tile_matmul(s->dp + 16 * r, 16, g + r * H * D, H * D, 32, s->value_words + j * D, TILE, D / 32, 0);
        }
        block(a, s, a->lse + (b * H + h) * T + t, delta, bits, begins_of(a, b), t, j);
        for (int64_t d = 0; d < D; d += 16) {
            int64_t tile = (t / 32 * D / 16 + d / 16) * TILE;
            tile_matmul(s->dk + d * T + j, T, s->q_turned + tile, 32, 0, s->ds_pairs + j * 32, 0, 1, 1);
            tile_matmul(s->dv + d * T + j, T, s->g_turned + tile, 32, 0, s->p_pairs + j * 32, 0, 1, 1);
        }
    }
    half *dq = (half *)head(a, a->d_heads, b, h) + t * stride;
    vec scale = _mm512_set1_ps(1.0f / sqrtf((float)D));
    for (int r = 0; r < 32; r += 16)
        for (int64_t d = 0; d < D; d += 16) {
            tile_matmul(s->scores, 16, s->ds + r * T, T, 32, s->key_pairs + d / 16 * TILE, D / 16 * TILE, t / 32 + 1, 0);
            for (int i = 0; i < 16; i++)
                _mm256_storeu_si256((void *)(dq + (r + i) * stride + d), to_bf16(_mm512_mul_ps(_mm512_load_ps(s->scores + 16 * i), scale)));
        }
}

/* sums (D, T), scaled, to the rows of x (T, D). */
INLINE void write_transposed(const float *sums, float scale, half *x, int64_t stride, int64_t T, int64_t D) {
    for (int64_t t = 0; t < T; t += 16)
        for (int64_t d = 0; d < D; d += 16) {
            __m512i w[16];
            for (int i = 0; i < 16; i++) w[i] = _mm512_load_si512(sums + (d + i) * T + t);
            transpose(w);
            for (int i = 0; i < 16; i++)
                _mm256_storeu_si256((void *)(x + (t + i) * stride + d), to_bf16(_mm512_mul_ps((vec)w[i], _mm512_set1_ps(scale))));
        }
}

static void backward_task(const Task *a, int64_t b, int64_t k, char *scratch) {
    int64_t T = a->T, D = a->D, H = a->H, stride = (H + 2 * a->K) * D, share = H / a->K;
    Scratch s;
    lay_out(&s, scratch, T, D);
    pack_transposed(head(a, a->heads, b, H + k), stride, T, D, s.key_words);
    pack_pairs(head(a, a->heads, b, H + k), stride, T, D, 0, s.key_pairs);
    pack_transposed(head(a, a->heads, b, H + a->K + k), stride, T, D, s.value_words);
    memset(s.dk, 0, 4 * T * D);
    memset(s.dv, 0, 4 * T * D);
    for (int64_t h = k * share; h < (k + 1) * share; h++) {
        pack_pairs(head(a, a->heads, b, h), stride, T, D, 1, s.q_turned);
        pack_pairs(a->grad + (b * T * H + h) * D, H * D, T, D, 1, s.g_turned);
        for (int64_t t = 0; t < T; t += 32) backward_block(a, &s, b, h, t);
    }
    write_transposed(s.dk, 1.0f / sqrtf((float)D), (half *)head(a, a->d_heads, b, H + k), stride, T, D);
    write_transposed(s.dv, a->drop_scale, (half *)head(a, a->d_heads, b, H + a->K + k), stride, T, D);
}

int32_t backward(const half *heads, const int64_t *begins, const half *out, const float *lse, const half *grad, half *d_heads, int64_t B, int64_t T,
                 int64_t H, int64_t K, int64_t D, uint64_t seed, int32_t threshold, float drop_scale) {
    if (!fits_tiles(T, H, K, D)) return 1;
    Task a = {heads, begins, B, T, H, K, D, seed, threshold, drop_scale, (half *)out, (float *)lse, grad, d_heads};
    Scratch s;
    return run_tasks(&a, lay_out(&s, 0, T, D), backward_task);
}

#else

int32_t available(void) { return 0; }

#endif
