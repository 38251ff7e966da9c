/* Loops shared out among torch's own threads: OpenMP, as far as it is used here, without its header, which only some compilers bring.

   The functions are those of the library that torch has loaded. On Linux that is GNU's, also where Clang compiles, whose parallel
   regions call LLVM's: such a call is handed on to GNU's here. */

#pragma once

int omp_get_num_threads(void);
int omp_get_thread_num(void);

#if defined(__clang__) && defined(__linux__)
#include <stdarg.h>

void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags); /* 0 threads: as many as are set */

enum { MAX_SHARED = 24 }; /* variables of the function around a region that the region uses */
typedef void Outlined(int *thread, int *bound, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *,
                      void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *);
typedef struct {
    Outlined *body;
    void *shared[MAX_SHARED];
} Region;

static void run_region(void *data) {
    Region *region = data;
    void **s = region->shared;
    int thread = omp_get_thread_num();
    /* A body takes as many of them as it uses; more are ignored by the calling conventions of x86-64 and aarch64. */
    region->body(&thread, &thread, s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15],
                 s[16], s[17], s[18], s[19], s[20], s[21], s[22], s[23]);
}

/* What Clang calls at `#pragma omp parallel`, with the addresses of the variables. */
__attribute__((visibility("hidden"))) void __kmpc_fork_call(void *location, int count, Outlined *body, ...) {
    (void)location;
    Region region = {body, {0}};
    if (count > MAX_SHARED) __builtin_trap();
    va_list shared;
    va_start(shared, body);
    for (int i = 0; i < count; i++) region.shared[i] = va_arg(shared, void *);
    va_end(shared);
    GOMP_parallel(run_region, &region, 0, 0);
}
#endif
