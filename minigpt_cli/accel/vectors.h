/* Sixteen numbers at a time, in GCC's and Clang's vector extensions, and a loop shared out among torch's threads.

   Tensors are contiguous, float32 or bfloat16 (`bf16` says which); arithmetic is float32. */

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16, CHUNK = 256 }; /* numbers in a vector; rows whose sum is one partial sum */

#include "openmp.h"
#include "simd.h"

typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));
typedef uint16_t hvec __attribute__((vector_size(LANES * 2)));
typedef uint16_t hvec32 __attribute__((vector_size(LANES * 4)));

#if defined(__AVX512BW__)
INLINE float sum(vec v) { return _mm512_reduce_add_ps((__m512)v); }
#else
INLINE float sum(vec v) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}
#endif

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE uvec widen(hvec h) {
#if defined(__AVX512BW__)
    return (uvec)_mm512_cvtepu16_epi32((__m256i)h);
#else
    return __builtin_convertvector(h, uvec);
#endif
}

/* Elements i .. i + LANES of a tensor. */
INLINE vec load(const void *p, int64_t i, int bf16) {
    if (bf16) {
        hvec h;
        memcpy(&h, (const uint16_t *)p + i, sizeof h);
        return (vec)(widen(h) << 16);
    }
    vec v;
    memcpy(&v, (const float *)p + i, sizeof v);
    return v;
}

INLINE hvec to_bf16(vec v) { /* to nearest, ties to even */
#if defined(__AVX512BF16__)
    return (hvec)_mm512_cvtneps_pbh((__m512)v);
#else
    uvec u = (uvec)v;
    uvec r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    ivec nan = v != v;
    return __builtin_convertvector(((uvec)nan & 0x7fc0) | (~(uvec)nan & r), hvec);
#endif
}

INLINE void store(void *p, int64_t i, vec v, int bf16) {
    if (bf16) {
        hvec h = to_bf16(v);
        memcpy((uint16_t *)p + i, &h, sizeof h);
    } else
        memcpy((float *)p + i, &v, sizeof v);
}

/* The first n elements from i, all LANES of them where n is larger; the others are read as `rest` and not written. */
INLINE vec load_n(const void *p, int64_t i, int64_t n, float rest, int bf16) {
    if (n >= LANES) return load(p, i, bf16);
    uint32_t u[LANES];
    for (int j = 0; j < LANES; j++) memcpy(&u[j], &rest, 4);
    for (int j = 0; j < n; j++) {
        if (bf16) u[j] = (uint32_t)((const uint16_t *)p)[i + j] << 16;
        else memcpy(&u[j], (const float *)p + i + j, 4);
    }
    vec v;
    memcpy(&v, u, sizeof v);
    return v;
}

INLINE void store_n(void *p, int64_t i, int64_t n, vec v, int bf16) {
    if (n >= LANES) {
        store(p, i, v, bf16);
    } else if (bf16) {
        hvec h = to_bf16(v);
        memcpy((uint16_t *)p + i, &h, 2 * n);
    } else {
        memcpy((float *)p + i, &v, 4 * n);
    }
}

INLINE uvec interleave(vec even, vec odd) { /* pairs of bfloat16 */
#if defined(__AVX512BF16__)
    const hvec32 order = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (uvec)_mm512_permutexvar_epi16((__m512i)order, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
#else
    return widen(to_bf16(even)) | widen(to_bf16(odd)) << 16;
#endif
}

INLINE vec reciprocal(vec x, int bf16) { /* to bfloat16's precision or float32's */
#if defined(__AVX512BW__)
    vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return bf16 ? r : r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

/* 2^x for x <= 127, to bfloat16's precision (relative error below 1e-4) or float32's (below 1e-7); 0 below -126, with
   AVX-512 below -150. Polynomials with the smallest relative error between -1/2 and 1/2. */
INLINE vec vexp2(vec x, int bf16) {
#if defined(__AVX512F__)
    x = vmax(splat(-152.0f), x);
    vec n = (vec)_mm512_roundscale_ps((__m512)x, 8); /* to the nearest integer */
#else
    ivec tiny = x < -126.0f;
    x = choose(tiny, splat(-126.0f), x);
    const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vec n = x + magic;
    ivec exponent = ((ivec)n - 0x4b400000 + 127) << 23;
    n -= magic;
#endif
    vec r = x - n, y;
    if (bf16) {
        y = (0.0551716653f * r + 0.2426111246f) * r + 0.6932609864f;
        y = y * r + 0.9999280734f;
    } else {
        y = ((1.534581162e-4f * r + 1.339993126e-3f) * r + 9.618488959e-3f) * r + 5.550328777e-2f;
        y = ((y * r + 0.2402264689f) * r + 0.6931472057f) * r + 1.0f;
    }
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    return choose(tiny, splat(0.0f), y * (vec)exponent);
#endif
}

INLINE vec sigmoid(vec x, int bf16) {
    return reciprocal(1.0f + vexp(-vmax(splat(-80.0f), x)), bf16);
}

/* Share out n things among the threads of a parallel region. */
#define THREAD_RANGE(n, from, to)                                                 \
    int64_t threads_ = omp_get_num_threads(), thread_ = omp_get_thread_num();     \
    int64_t from = (n) * thread_ / threads_, to = (n) * (thread_ + 1) / threads_

/* Run a statement for the things from `from` to `to` in every thread; the compiler sees each value of bf16 as a constant. */
#define PARALLEL(n, ...)                          \
    _Pragma("omp parallel") {                     \
        THREAD_RANGE(n, from, to);                \
        if (bf16) {                               \
            enum { bf16 = 1 };                    \
            __VA_ARGS__;                          \
        } else {                                  \
            enum { bf16 = 0 };                    \
            __VA_ARGS__;                          \
        }                                         \
    }
