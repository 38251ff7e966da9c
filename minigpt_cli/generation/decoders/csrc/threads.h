/* The threads of a decoder: workers that spin while a step is under way and sleep soon after; what each has for itself, and what all share. */

#pragma once
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "memory.h"
#include "model.h"

typedef struct Pool Pool;
typedef struct { int expert[MAX_TOP_K]; float weight[MAX_TOP_K]; } Routing;

/* A thread, and what it alone reads and writes. */
typedef struct {
    Pool *pool;
    int number, active; /* which thread of how many that take part in this step */
    float *scores;      /* of attention */
    int8_t *planes;     /* for bytes.h */
    Routing *routings;  /* by row; what follows is by (expert, row) pair */
    float *probs, *row_scales, *route_weights;
    const float **inputs;
    float **outputs;
    int *begin; /* (E + 1): the first pair of each expert */
} Worker;

typedef struct {
    const int32_t *ids, *slots, *positions;
    int rows, first_logits;
    float *logits;
} Task;

struct Pool {
    Model model;
    int threads, forks;
    pthread_t handles[MAX_THREADS];
    Worker workers[MAX_THREADS];
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    _Atomic int turn, arrived, generation, sleepers, quitting;
    Task task;
    float *x, *qkv, *mixed, *hidden, *rope;
};

static inline void spin(int spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
    if (spins > 2000 && spins % 64 == 0) sched_yield(); /* another thread needs this core, perhaps the one waited for */
}

/* Wait until every thread of the step is here. How many those are each thread knows by itself: a thread delayed between arriving and
   counting may find that the next step, of another number of threads, has begun. */
static void barrier(const Worker *worker) {
    Pool *p = worker->pool;
    if (worker->active == 1) return;
    int generation = atomic_load_explicit(&p->generation, memory_order_acquire);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) == worker->active - 1) {
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&p->generation, (int)((unsigned)generation + 1), memory_order_release);
        return;
    }
    for (int i = 0; atomic_load_explicit(&p->generation, memory_order_acquire) == generation; i++) spin(i);
}

INLINE void split_range(int n, int of, int number, int *first, int *last) {
    *first = (int)((int64_t)n * number / of);
    *last = (int)((int64_t)n * (number + 1) / of);
}

static void forward(const Worker *worker); /* a worker's share of a step: decoder.c */

static void *run_worker(void *argument) {
    Worker *worker = argument;
    Pool *p = worker->pool;
    for (int done = 0;;) {
        int spins = 0;
        while (atomic_load_explicit(&p->turn, memory_order_acquire) == done) {
            spin(spins);
            if (++spins < 20000) continue;
            pthread_mutex_lock(&p->mutex);
            atomic_fetch_add(&p->sleepers, 1);
            while (atomic_load(&p->turn) == done) pthread_cond_wait(&p->wake, &p->mutex);
            atomic_fetch_sub(&p->sleepers, 1);
            pthread_mutex_unlock(&p->mutex);
        }
        done = atomic_load_explicit(&p->turn, memory_order_acquire);
        if (atomic_load(&p->quitting)) return 0;
        worker->active = done % 256; /* the turn's low byte says how many take part */
        if (worker->number < worker->active) forward(worker);
    }
}

/* How often this process is the child of a fork: it has the memory of its parent's decoders and none of their threads. */
static _Atomic int forks;
static void forked(void) { atomic_fetch_add(&forks, 1); }
static void watch_forks(void) { pthread_atfork(0, 0, forked); }

static int is_forked_child(Pool *p) { return p->forks != atomic_load_explicit(&forks, memory_order_relaxed); }

void mg_free(Pool *p) {
    if (!p) return;
    if (!is_forked_child(p)) {
        pthread_mutex_lock(&p->mutex);
        atomic_store(&p->quitting, 1);
        atomic_fetch_add(&p->turn, 1);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->mutex);
        for (int i = 1; i < p->threads; i++) pthread_join(p->handles[i], 0);
        pthread_cond_destroy(&p->wake);
        pthread_mutex_destroy(&p->mutex);
    }
    for (int i = 0; i < MAX_THREADS; i++) {
        Worker *w = p->workers + i;
        free(w->scores), free(w->planes), free(w->routings), free(w->probs), free(w->row_scales), free(w->route_weights);
        free(w->inputs), free(w->outputs), free(w->begin);
    }
    free(p->x), free(p->qkv), free(p->mixed), free(p->hidden), free(p->rope);
    free(p->model.keys), free(p->model.values), free(p->model.key_scales), free(p->model.value_scales);
    free(p);
}

/* Allocate what a thread has for itself; whether there was enough memory. */
static int init_worker(Worker *w, Pool *p, int number) {
    const Model *d = &p->model;
    int64_t R = d->max_rows, pairs = R * d->top_k, stride = (d->W + LANES - 1) / LANES * LANES;
    int64_t widest = d->C > d->F ? d->C : d->F, room = (R + 15) / 16 * 16;
    if (d->H * d->D > widest) widest = d->H * d->D;
    *w = (Worker){.pool = p, .number = number};
    w->scores = mg_memory(4 * stride * sizeof(float)); /* of as many queries as attention.h takes at once */
    if ((d->head.bits == TILED || d->head.bits == INT8_FOURS) && !(w->planes = mg_memory(2 * room * ((widest + 63) / 64 * 64)))) return 0;
    if (d->layers[0].router.data) {
        w->routings = mg_memory(R * sizeof(Routing));
        w->probs = mg_memory(R * d->E * sizeof(float));
        w->row_scales = mg_memory(pairs * sizeof(float));
        w->route_weights = mg_memory(pairs * sizeof(float));
        w->inputs = mg_memory(pairs * sizeof(float *));
        w->outputs = mg_memory(pairs * sizeof(float *));
        w->begin = mg_memory((d->E + 1) * sizeof(int));
        if (!w->routings || !w->probs || !w->row_scales || !w->route_weights || !w->inputs || !w->outputs || !w->begin) return 0;
    }
    return w->scores != 0;
}

/* Allocate what the threads share; whether there was enough memory. */
static int allocate(Pool *p) {
    Model *d = &p->model;
    int64_t R = d->max_rows, stride = (d->W + LANES - 1) / LANES * LANES, size = d->cache_bits / 8;
    int64_t cells = product_or_max(product_or_max(d->L, d->slots), d->K), hidden = (d->F + PANEL - 1) / PANEL * PANEL;
    p->x = mg_memory(R * d->C * sizeof(float));
    p->qkv = mg_memory(R * (d->H + 2 * d->K) * d->D * sizeof(float));
    p->mixed = mg_memory(R * d->H * d->D * sizeof(float));
    p->hidden = mg_memory(R * d->top_k * hidden * sizeof(float));
    p->rope = mg_memory(R * d->D * sizeof(float));
    d->keys = mg_memory(product_or_max(product_or_max(cells, d->D * size), stride));
    d->values = mg_memory(product_or_max(product_or_max(cells, d->D * size), d->W));
    d->key_scales = mg_memory(product_or_max(cells, stride * sizeof(float)));
    d->value_scales = mg_memory(product_or_max(cells, stride * sizeof(float)));
    return p->x && p->qkv && p->mixed && p->hidden && p->rope && d->keys && d->values && d->key_scales && d->value_scales;
}
