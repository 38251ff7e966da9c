/* Sixteen numbers at a time, in GCC's and Clang's vector extensions, and a loop shared out among torch's threads.

   Tensors are contiguous, float32 or bfloat16 (`bf16` says which); arithmetic is float32. */

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "openmp.h"
#if defined(__AVX512BW__)
#include <immintrin.h> /* where GCC makes a dozen instructions of what is one */
#endif

enum { LANES = 16, CHUNK = 256 }; /* numbers in a vector; rows whose sum is one partial sum */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));
typedef uint16_t hvec __attribute__((vector_size(LANES * 2)));
typedef uint8_t bvec __attribute__((vector_size(LANES)));
typedef uint64_t wide __attribute__((vector_size(64)));

INLINE vec splat(float x) { return (vec){0} + x; }
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
INLINE vec vmax(vec a, vec b) { return choose(a > b, a, b); }
#if defined(__AVX512BW__)
INLINE float sum(vec v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE float largest(vec v) { return _mm512_reduce_max_ps((__m512)v); }
#else
INLINE float sum(vec v) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}
INLINE float largest(vec v) {
    float m = v[0];
    for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m;
    return m;
}
#endif

/* Elements i .. i + LANES of a tensor. */
INLINE vec load(const void *p, int64_t i, int bf16) {
    if (bf16) {
        hvec h;
        memcpy(&h, (const uint16_t *)p + i, sizeof h);
#if defined(__AVX512BW__)
        return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
        return (vec)(__builtin_convertvector(h, uvec) << 16);
#endif
    }
    vec v;
    memcpy(&v, (const float *)p + i, sizeof v);
    return v;
}

INLINE hvec rounded(vec v) { /* to nearest, ties to even */
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
        hvec h = rounded(v);
        memcpy((uint16_t *)p + i, &h, sizeof h);
    } else
        memcpy((float *)p + i, &v, sizeof v);
}

/* The first n < LANES elements from i; the others read as `rest` and are not written. */
INLINE vec load_n(const void *p, int64_t i, int n, float rest, int bf16) {
    uint32_t u[LANES];
    float fill = rest;
    for (int j = 0; j < LANES; j++) memcpy(&u[j], &fill, 4);
    for (int j = 0; j < n; j++) {
        if (bf16) u[j] = (uint32_t)((const uint16_t *)p)[i + j] << 16;
        else memcpy(&u[j], (const float *)p + i + j, 4);
    }
    vec v;
    memcpy(&v, u, sizeof v);
    return v;
}

INLINE void store_n(void *p, int64_t i, int n, vec v, int bf16) {
    if (bf16) {
        hvec h = rounded(v);
        memcpy((uint16_t *)p + i, &h, 2 * n);
    } else
        memcpy((float *)p + i, &v, 4 * n);
}

INLINE vec vexp(vec x) { /* e^x, relative error about 1e-7, for x <= 88; 0 below -87 */
    ivec tiny = x < -87.0f;
    x = choose(tiny, splat(-87.0f), x);
    const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vec n = x * 1.44269504f + magic;
    ivec exponent = ((ivec)n - 0x4b400000 + 127) << 23;
    n -= magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    return choose(tiny, splat(0.0f), y * (vec)exponent);
}

INLINE vec reciprocal(vec x, int bf16) { /* to bfloat16's precision or float32's */
#if defined(__AVX512BW__)
    vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return bf16 ? r : r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

INLINE vec sigmoid(vec x, int bf16) {
    return reciprocal(1.0f + vexp(choose(x < -80.0f, splat(80.0f), choose(x > 80.0f, splat(-80.0f), -x))), bf16);
}

/* Share out n things among the threads of a parallel region. */
#define MINE(n, from, to)                                                      \
    int64_t threads_ = omp_get_num_threads(), me_ = omp_get_thread_num();      \
    int64_t from = (n) * me_ / threads_, to = (n) * (me_ + 1) / threads_
#define PARALLEL(n, body)                                                      \
    _Pragma("omp parallel") {                                                  \
        MINE(n, from, to);                                                     \
        if (bf16) body(1);                                                     \
        else body(0);                                                          \
    }
