/* Products of bytes, many times as many an instruction as of floats: dots.h and amx.h.

   A number of 16 bits is two bytes, q = 256 h + l with both in [-128, 127]. Inputs have 16 bits, each row scaled by its
   largest. Sums of products of bytes are whole numbers of 32 bits, so they are exact, and their order does not matter. */

#pragma once
#include "model.h"

#if defined(DOTS) || defined(TILES)
enum { MOST = 32639 /* of the whole numbers whose halves are bytes */ };
static _Thread_local int8_t *planes; /* of the inputs: (2, rows, padded inputs), high bytes first */

INLINE ivec load_ints(const void *p) {
    ivec v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The bytes of a row of inputs, zeros up to `padded`, and its scale, which is not a number where an input is not finite. */
static void split_bytes(const float *x, int inputs, int padded, int8_t *high, int8_t *low, float *scale) {
    typedef int8_t bytes __attribute__((vector_size(LANES)));
    int i, vectors = inputs / LANES * LANES;
    const float most = max_abs(x, inputs), levels = most > 0 ? MOST / most : 0;
    const float magic = 12582912.0f; /* as in vexp: adding it rounds */
    vec finite = {0};
    for (i = 0; i < vectors; i += LANES) {
        vec v = load(x + i);
        finite += v - v;
        ivec q = (ivec)(v * levels + magic) - (ivec)splat(magic), h = (q + 128) >> 8;
        bytes high_bytes = __builtin_convertvector(h, bytes), low_bytes = __builtin_convertvector(q - (h << 8), bytes);
        memcpy(high + i, &high_bytes, sizeof high_bytes);
        memcpy(low + i, &low_bytes, sizeof low_bytes);
    }
    *scale = most / MOST;
    for (int l = 0; l < LANES; l++) *scale += finite[l];
    for (; i < inputs; i++) {
        *scale += x[i] - x[i];
        int32_t q = round_to_int(x[i] * levels), h = (q + 128) >> 8;
        high[i] = (int8_t)h;
        low[i] = (int8_t)(q - h * 256);
    }
    memset(high + inputs, 0, padded - inputs);
    memset(low + inputs, 0, padded - inputs);
}
#endif
