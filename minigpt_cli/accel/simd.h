/* Vectors of LANES floats in GCC's and Clang's vector extensions: what the training kernels and the decoder share. The file that includes
   this says how many LANES there are. */

#pragma once
#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

INLINE vec splat(float x) { return (vec){0} + x; }
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

INLINE float largest(vec v) {
#if defined(__AVX512F__) /* GCC makes a dozen instructions of the loop */
    return _mm512_reduce_max_ps((__m512)v);
#else
    float m = v[0];
    for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m;
    return m;
#endif
}

/* The larger and the smaller of each two; b where one is not a number. */
#if defined(__AVX512F__)
INLINE vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec vmin(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE vec vmax(vec a, vec b) { return choose(a > b, a, b); }
INLINE vec vmin(vec a, vec b) { return choose(a < b, a, b); }
#endif

INLINE vec vexp(vec x) { /* e^x, relative error about 1e-7 (Cephes), for x <= 88; 0 below -87, with AVX-512 below -104 */
#if defined(__AVX512F__)
    x = vmax(splat(-106.0f), x);
    vec n = (vec)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 8); /* to the nearest integer */
#else
    ivec tiny = x < -87.0f;
    x = choose(tiny, splat(-87.0f), x);
    const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vec n = x * 1.44269504f + magic;
    ivec exponent = ((ivec)n - 0x4b400000 + 127) << 23;
    n -= magic;
#endif
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    return choose(tiny, splat(0.0f), y * (vec)exponent);
#endif
}
