/* A step of a small transformer in one call: torch needs a hundred calls and twice the memory traffic.

   Built on the user's machine for its processor, with any C compiler; without a compiler torch decodes.
   Plain C with GCC/Clang vector extensions, so that the same code uses AVX-512, AVX2 or NEON.

   Law: a row's result does not depend, to the bit, on the other rows, on how rows are grouped into calls, or on the number of
   threads. Every output is summed over its inputs in order, by one lane of one vector; a sum is never divided among threads.

   The model is weights.py's DecoderWeights: RMSNorm without gain, attention, RMSNorm without gain, feed-forward or experts.
   Shapes, here and in the headers: R rows, C channels, H query heads, K key/value heads, D head size, F hidden width, E experts,
   V vocabulary, W window. One file to the compiler; the parts are read in this order:
   vectors.h, model.h, matmul.h (bytes.h, dots.h, amx.h), memory.h, threads.h, projections.h, attention.h, experts.h, sampling.h. */

#include "attention.h"
#include "experts.h"
#include "sampling.h"
#if defined(TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static void row_pointers(const float **out, const float *base, int64_t stride, int rows) {
    for (int r = 0; r < rows; r++) out[r] = base + r * stride;
}

static void forward(const Worker *worker) {
    Pool *p = worker->pool;
    const Model *d = &p->model;
    const Task *task = &p->task;
    int R = task->rows, C = d->C;
    int64_t hidden = (d->F + PANEL - 1) / PANEL * PANEL;
    float row_scales[R];
    const float *x[R], *mixed[R], *up[R];
#if defined(TILES) || defined(DOTS)
    planes = worker->planes;
#endif
    row_pointers(x, p->x, C, R);
    row_pointers(mixed, p->mixed, d->H * d->D, R);
    row_pointers(up, p->hidden, hidden, R);
    for (int i = 0; i < d->L; i++) {
        const Layer *layer = d->layers + i;
        for (int r = 0; r < R; r++) row_scales[r] = inverse_rms(x[r], C, d->eps);
        project(worker, &layer->qkv, R, x, (WriteOut){p->qkv, (d->H + 2 * d->K) * d->D, row_scales, 0, 0, 0});
        barrier(worker);
        attend(worker, i);
        barrier(worker);
        project(worker, &layer->out, R, mixed, (WriteOut){p->x, C, 0, 0, 0, 1});
        barrier(worker);
        for (int r = 0; r < R; r++) row_scales[r] = inverse_rms(x[r], C, d->eps);
        if (layer->router.data) {
            experts(worker, layer, x, row_scales);
        } else {
            up_proj(worker, layer->up, R, x, p->hidden, row_scales);
            barrier(worker);
            project(worker, layer->down, R, up, (WriteOut){p->x, C, 0, 0, 0, 1});
        }
        barrier(worker);
    }
    int skip = task->first_logits, n = R - skip;
    for (int r = 0; r < n; r++) row_scales[r] = inverse_rms(x[skip + r], C, d->eps);
    if (n) project(worker, &d->head, n, x + skip, (WriteOut){task->logits, d->V, row_scales, 0, 0, 0});
#if defined(TILES)
    if (d->head.bits == TILED) _tile_release(); /* eight kilobytes that the system would save at every switch of threads */
#endif
    barrier(worker);
}

/* ---- what Python calls */

int mg_panel(void) { return PANEL; }

/* Whether TILED can be used: the processor has tiles and the system lends them. */
int mg_tiles(void) {
#if defined(TILES)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
#else
    return 0;
#endif
}

/* Whether INT8_FOURS can be used: 0, or 1 with signed weights, or 2 with unsigned ones. */
int mg_dots(void) {
#if defined(DOTS)
    return WEIGHT_ZERO ? 2 : 1;
#else
    return 0;
#endif
}

/* A decoder of `model`, whose arrays the caller keeps alive, to *made. */
int mg_new(const Model *model, int threads, Pool **made) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    *made = 0;
    if (!sizes_agree(model)) return BAD_MODEL;
    Pool *p = calloc(1, sizeof(Pool));
    if (!p) return NO_MEMORY;
    p->model = *model;
    p->forks = atomic_load(&forks);
    p->model.cache_bits = model->head.bits == FLOAT32 ? 32 : 16;
    p->model.keys = p->model.values = 0;
    p->model.key_scales = p->model.value_scales = 0;
    pthread_mutex_init(&p->mutex, 0);
    pthread_cond_init(&p->wake, 0);
    p->threads = 1;
    if (!allocate(p) || !init_worker(p->workers, p, 0)) return mg_free(p), NO_MEMORY;
    for (int wanted = threads < MAX_THREADS ? threads : MAX_THREADS; p->threads < wanted; p->threads++) { /* or fewer, where they cannot be had */
        Worker *w = p->workers + p->threads;
        if (!init_worker(w, p, p->threads) || pthread_create(p->handles + p->threads, 0, run_worker, w)) break;
    }
    *made = p;
    return OK;
}

static enum Status check_rows(const Model *d, const int32_t *ids, const int32_t *slots, const int32_t *positions, int rows) {
    for (int r = 0; r < rows; r++) {
        if (ids[r] < 0 || ids[r] >= d->V) return BAD_TOKEN;
        if (slots[r] < 0 || slots[r] >= d->slots) return BAD_SLOT;
        if (positions[r] < 0 || (d->learned && positions[r] >= d->W)) return BAD_POSITION;
        for (int before = 0; r && slots[r] != slots[r - 1] && before < r; before++)
            if (slots[before] == slots[r]) return BAD_SLOT; /* two threads would write to it */
    }
    return OK;
}

/* One more token in each of `rows` rows (at most max_rows; rows of one slot stand together, in order). Logits of the rows from
   `first_logits` on (none if it is `rows`) go to `logits` (rows - first_logits, V). Nothing is done if anything is out of range. */
int mg_step(Pool *p, const int32_t *ids, const int32_t *slots, const int32_t *positions, int rows, int first_logits, float *logits,
            int threads) {
    Model *d = &p->model;
    if (rows < 1 || rows > d->max_rows || first_logits < 0 || first_logits > rows) return BAD_ROWS;
    enum Status status = check_rows(d, ids, slots, positions, rows);
    if (status != OK) return status;
    p->task = (Task){ids, slots, positions, rows, first_logits, logits};
    for (int r = 0; r < rows; r++) {
        float *x = p->x + (int64_t)r * d->C;
        memcpy(x, d->embedding + (int64_t)ids[r] * d->C, d->C * sizeof(float));
        if (d->learned)
            for (int i = 0; i < d->C; i++) x[i] += d->positions[(int64_t)positions[r] * d->C + i];
        else
            for (int i = 0; i < d->D / 2; i++) {
                double angle = positions[r] * pow(d->rope_theta, -2.0 * i / d->D);
                p->rope[r * d->D + i] = (float)cos(angle);
                p->rope[r * d->D + d->D / 2 + i] = (float)sin(angle);
            }
    }
    Worker *worker = p->workers;
    worker->active = threads < 1 || is_forked_child(p) ? 1 : threads > p->threads ? p->threads : threads;
    if (worker->active > 1) {
        int turn = atomic_load(&p->turn);
        atomic_store(&p->turn, (int)(((unsigned)turn / 256 + 1) * 256 % (1u << 30)) + worker->active);
        if (atomic_load(&p->sleepers)) {
            pthread_mutex_lock(&p->mutex);
            pthread_cond_broadcast(&p->wake);
            pthread_mutex_unlock(&p->mutex);
        }
    }
    forward(worker);
    return OK;
}

/* The first `length` tokens of slot `source` into slot `target`. */
int mg_copy(Pool *p, int source, int target, int length) {
    Model *d = &p->model;
    if (source < 0 || source >= d->slots || target < 0 || target >= d->slots) return BAD_SLOT;
    if (length < 0) return BAD_POSITION;
    if (source == target) return OK;
    if (length > d->W) length = d->W;
    int64_t whole = (length + LANES - 1) / LANES * LANES, size = d->cache_bits / 8;
    for (int l = 0; l < d->L; l++)
        for (int k = 0; k < d->K; k++) {
            HeadCache from = head_cache(d, ((int64_t)l * d->slots + source) * d->K + k), to = head_cache(d, ((int64_t)l * d->slots + target) * d->K + k);
            memcpy(to.keys, from.keys, whole * d->D * size);
            memcpy(to.values, from.values, (int64_t)length * d->D * size);
            memcpy(to.key_scales, from.key_scales, length * sizeof(float));
            memcpy(to.value_scales, from.value_scales, length * sizeof(float));
        }
    return OK;
}
