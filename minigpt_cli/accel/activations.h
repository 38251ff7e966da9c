/* GELU and SwiGLU with their derivatives. `bf16`: the precision of the result. */

#pragma once
#include "vectors.h"

/* Phi(x) from exp(-x^2 / 2): Abramowitz & Stegun 7.1.26, absolute error below 1e-7. */
INLINE vec normal_cdf(vec x, vec gauss) {
    ivec sign = (ivec)x & INT32_MIN;
    vec t = reciprocal(1.0f + 0.23164189f * (vec)((ivec)x ^ sign), 0); /* 0.3275911 / sqrt(2), |x| */
    vec tail = ((((0.5307027145f * t - 0.7265760135f) * t + 0.7107068705f) * t - 0.142248368f) * t + 0.127414796f) * t * gauss;
    return 0.5f + (vec)((ivec)(0.5f - tail) ^ sign);
}

/* 1/2 + x times a polynomial in x^2: Phi(x), and the slope of x Phi(x), are symmetric like this. Beyond `END` both are 0 or 1, to 1e-5. */
enum { TERMS = 9 };
static const float END = 4.25f;
static const float CDF[TERMS] = {0.398937779f,    -0.0664110694f, 0.00985821187f,   -0.00112142734f, 9.5576019e-05f,
                                 -5.83644428e-06f, 2.37369525e-07f, -5.68504899e-09f, 6.01291064e-11f}; /* to 1.4e-5 */
static const float SLOPE[TERMS] = {0.797017825f,   -0.262989567f,  0.0568204759f,   -0.00807030931f, 0.000773211914f,
                                   -4.9265874e-05f, 1.98774054e-06f, -4.57000241e-08f, 4.54120358e-10f}; /* to 2.1e-4 */

INLINE vec symmetric(vec x, const float terms[TERMS]) {
    vec u = x * x, y = splat(terms[TERMS - 1]);
#pragma GCC unroll 8
    for (int i = TERMS - 2; i >= 0; i--) y = y * u + terms[i];
    return 0.5f + x * y;
}

/* x Phi(x), exact (to bfloat16's precision by polynomials) or by GPT-2's tanh. */
INLINE vec gelu(vec x, vec *slope, int tanh_form, int bf16) {
    vec share;
    if (bf16 && !tanh_form) {
        vec near = vmin(splat(END), vmax(splat(-END), x));
        *slope = symmetric(near, SLOPE);
        return x * symmetric(near, CDF);
    }
    if (tanh_form) {
        share = sigmoid(1.5957691216f * (x + 0.044715f * x * x * x), bf16);
        *slope = share + x * share * (1.0f - share) * (1.5957691216f + 0.2140702f * x * x);
    } else {
        vec gauss = vexp(-0.5f * x * x);
        share = normal_cdf(x, gauss);
        *slope = share + 0.3989422804f * x * gauss;
    }
    return x * share;
}

/* silu(gate) * up; slopes: its derivatives by each. */
INLINE vec swiglu(vec gate, vec up, vec slopes[2], int bf16) {
    vec s = sigmoid(gate, bf16), silu = gate * s;
    slopes[0] = up * (s + silu * (1.0f - s)), slopes[1] = silu;
    return silu * up;
}
