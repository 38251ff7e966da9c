/* Dropout masks. They are not stored but computed wherever they are needed: byte j of the hash of (seed, group) says whether element j of 64
   is kept. */

#pragma once
#include "vectors.h"

enum { GROUP = 64 };
typedef uint64_t wide __attribute__((vector_size(64)));

/* Which elements of a group are kept, one bit each: those whose byte is not below `threshold`. The bytes are SplitMix64's (Steele et al.
   2014) of eight counters. */
INLINE uint64_t keep_mask(uint64_t seed, int32_t threshold, uint64_t group) {
    wide z = ((wide){0, 1, 2, 3, 4, 5, 6, 7} + 8 * group + 1) * 0x9E3779B97F4A7C15ull + seed;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
#if defined(__AVX512BW__)
    return _mm512_cmpge_epu8_mask((__m512i)z, _mm512_set1_epi8((char)threshold));
#else
    uint8_t bytes[GROUP];
    uint64_t bits = 0;
    memcpy(bytes, &z, sizeof bytes);
    for (int i = 0; i < GROUP; i++) bits |= (uint64_t)(bytes[i] >= threshold) << i;
    return bits;
#endif
}

/* `v` with its dropped elements zero; the lanes of element i of the group on. */
INLINE vec masked(vec v, uint64_t bits, int i) {
#if defined(__AVX512BW__)
    return (vec)_mm512_maskz_mov_ps((__mmask16)(bits >> i), (__m512)v);
#else
    const ivec lane = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return (vec)(((((ivec){0} + (int32_t)(bits >> i & 0xffff)) & lane) != 0) & (ivec)v);
#endif
}
