/* GELU and SwiGLU with their derivatives. `bf16`: the precision of the result. */

#pragma once
#include "vectors.h"

/* Phi(x) from exp(-x^2 / 2): Abramowitz & Stegun 7.1.26, absolute error below 1e-7. */
INLINE vec normal_cdf(vec x, vec gauss, int bf16) {
    ivec sign = (ivec)x & INT32_MIN;
    vec t = reciprocal(1.0f + 0.23164189f * (vec)((ivec)x ^ sign), bf16); /* 0.3275911 / sqrt(2), |x| */
    vec tail = ((((0.5307027145f * t - 0.7265760135f) * t + 0.7107068705f) * t - 0.142248368f) * t + 0.127414796f) * t * gauss;
    return 0.5f + (vec)((ivec)(0.5f - tail) ^ sign);
}

/* x Phi(x), exact or by GPT-2's tanh. */
INLINE vec gelu(vec x, vec *slope, int tanh_form, int bf16) {
    vec share;
    if (tanh_form) {
        share = sigmoid(1.5957691216f * (x + 0.044715f * x * x * x), bf16);
        *slope = share + x * share * (1.0f - share) * (1.5957691216f + 0.2140702f * x * x);
    } else {
        vec gauss = vexp(-0.5f * x * x);
        share = normal_cdf(x, gauss, bf16);
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
