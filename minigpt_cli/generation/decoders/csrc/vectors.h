/* Vectors as wide as the processor's registers, and what is computed with them: activations, norms, rounding. */

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, WIDE = 4, TILE = 6 };
#elif defined(__AVX__)
enum { LANES = 8, WIDE = 2, TILE = 6 };
#else
enum { LANES = 4, WIDE = 4, TILE = 4 };
#endif

#include "../../../accel/simd.h"

typedef int16_t hvec __attribute__((vector_size(LANES * 2)));
typedef int8_t bvec __attribute__((vector_size(LANES)));

INLINE vec load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

/* DOTS: sum[i] plus four products of bytes of w[i] and x[i]; w is unsigned where WEIGHT_ZERO is not 0. */
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define DOTS 1
enum { WEIGHT_ZERO = 128 };
INLINE ivec dot(ivec sum, ivec w, ivec x) { return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x); }
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
#define DOTS 1
enum { WEIGHT_ZERO = 128 };
INLINE ivec dot(ivec sum, ivec w, ivec x) { return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x); }
#elif defined(__ARM_FEATURE_DOTPROD)
#define DOTS 1
enum { WEIGHT_ZERO = 0 };
INLINE ivec dot(ivec sum, ivec w, ivec x) { return (ivec)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x); }
#endif

INLINE vec vgelu(vec x) { /* x Phi(x), with erfc after Abramowitz & Stegun 7.1.26 */
    vec a = choose(x < 0.0f, -x, x), z = a * 0.70710678f, t = 1.0f / (z * 0.3275911f + 1.0f);
    vec s = splat(1.061405429f);
    s = s * t - 1.453152027f;
    s = s * t + 1.421413741f;
    s = s * t - 0.284496736f;
    s = s * t + 0.254829592f;
    return choose(x < 0.0f, splat(0.0f), x) - a * 0.5f * s * t * vexp(-z * z);
}

INLINE vec vsigmoid(vec x) { return 1.0f / (1.0f + vexp(choose(x < -88.0f, splat(88.0f), -x))); }

enum Activation { GELU, GELU_TANH, RELU, SWIGLU };

INLINE vec activate(int kind, vec x) {
    if (kind == RELU) return choose(x < 0.0f, splat(0.0f), x);
    if (kind == GELU_TANH) /* (1 + tanh z) / 2 is the sigmoid of 2 z */
        return x * vsigmoid((x + x * x * x * 0.044715f) * 1.5957691216f);
    return vgelu(x);
}

static float sum_of_squares(const float *x, int n) {
    vec s = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES) s += load(x + i) * load(x + i);
    float total = 0;
    for (int l = 0; l < LANES; l++) total += s[l];
    for (; i < n; i++) total += x[i] * x[i];
    return total;
}

INLINE float max_abs(const float *x, int n) {
    vec tops = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec v = load(x + i), size = choose(v < 0.0f, -v, v);
        tops = choose(size > tops, size, tops);
    }
    float top = largest(tops);
    for (; i < n; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    return top;
}

/* The nearest whole number, of |x| < 2^22: the low bits of x + 1.5 * 2^23. Of what is not a number, any whole number. */
INLINE int32_t round_to_int(float x) {
    union { float f; int32_t bits; } sum = {x + 12582912.0f};
    return (int32_t)((uint32_t)sum.bits - 0x4b400000u);
}

static float inverse_rms(const float *x, int n, float eps) { return 1.0f / sqrtf(sum_of_squares(x, n) / n + eps); }

INLINE vec widen_int16(const int16_t *p) { /* compilers make a dozen instructions of the generic form where the processor has two */
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)p)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const void *)p)));
#elif defined(__aarch64__)
    return (vec)vcvtq_f32_s32(vmovl_s16(vld1_s16(p)));
#else
    hvec h;
    memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, vec);
#endif
}

INLINE vec widen_int8(const int8_t *p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
#else
    bvec b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vec);
#endif
}

/* LANES numbers of `panel`, floats (bits 32), int16_t (16) or int8_t (8), as floats. */
INLINE vec load_floats(const void *panel, int64_t at, int bits) {
    if (bits == 32) return load((const float *)panel + at);
    return bits == 16 ? widen_int16((const int16_t *)panel + at) : widen_int8((const int8_t *)panel + at);
}
