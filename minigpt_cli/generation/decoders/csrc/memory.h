/* Zeroed memory, in large pages where it is worth it: a step reads all of it, and thousands of small pages cost time to look up. */

#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 1 << 21 };

/* a times b, neither negative; the largest number where that is too large, which no allocation grants */
static int64_t product_or_max(int64_t a, int64_t b) {
    int64_t result;
    return __builtin_mul_overflow(a, b, &result) ? INT64_MAX : result;
}

/* `bytes` of it; NULL where there is not enough. */
void *mg_memory(int64_t bytes) {
    void *memory = 0;
    int64_t page = bytes < HUGE_PAGE ? 64 : HUGE_PAGE;
    if (bytes < 0 || bytes > INT64_MAX - HUGE_PAGE) return 0;
    bytes = (bytes + page - 1) / page * page;
    if (posix_memalign(&memory, page, bytes ? bytes : page)) return 0;
#if defined(MADV_HUGEPAGE)
    if (page == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memset(memory, 0, bytes);
}

void mg_release(void *memory) { free(memory); }
