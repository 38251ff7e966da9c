/* Read memory as fast as it comes: the sum of `bytes` (a multiple of 64) at `p`. */

#include <stdint.h>
#include <string.h>

typedef uint64_t line __attribute__((vector_size(64)));

uint64_t read_all(const char *p, int64_t bytes) {
    line sums[4] = {0};
    for (int64_t i = 0; i + 256 <= bytes; i += 256)
        for (int j = 0; j < 4; j++) {
            __builtin_prefetch(p + i + j * 64 + 4096); /* as the decoder does; without it up to a tenth slower */
            line now;
            memcpy(&now, p + i + j * 64, sizeof now);
            sums[j] += now;
        }
    line sum = sums[0] + sums[1] + sums[2] + sums[3];
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}
