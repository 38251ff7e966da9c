/* What the compiler makes of `omp parallel`, with threads that a sanitizer can watch: the real library's own waiting is hidden from it. */

#include <pthread.h>

enum { MOST = 64 };
static int size = 1; /* threads of a team */
static _Thread_local int me;

typedef struct { void (*body)(void *); void *data; int number; } Member;

void set_threads(int n) { size = n < 1 ? 1 : n > MOST ? MOST : n; }
int omp_get_num_threads(void) { return size; }
int omp_get_thread_num(void) { return me; }

static void *run(void *argument) {
    Member *member = argument;
    me = member->number;
    member->body(member->data);
    return 0;
}

void GOMP_parallel(void (*body)(void *), void *data, unsigned n, unsigned flags) {
    (void)n, (void)flags;
    pthread_t threads[MOST];
    Member members[MOST];
    for (int i = 1; i < size; i++) {
        members[i] = (Member){body, data, i};
        pthread_create(threads + i, 0, run, members + i);
    }
    body(data);
    for (int i = 1; i < size; i++) pthread_join(threads[i], 0);
}
