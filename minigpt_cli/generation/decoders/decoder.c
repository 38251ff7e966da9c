/* A step of a small transformer as one call: what torch does in a hundred calls, and with half the memory traffic.

   Built on the user's machine, for exactly its processor, with whatever C compiler is there; without one torch does the work.
   Plain C with GCC/Clang vector extensions, so that it serves AVX-512, AVX2 and NEON alike.

   Law: a row's result does not depend, to the bit, on the other rows, on how rows are grouped into calls, or on the number of
   threads. Every output is summed over its inputs in order, by one lane of one vector; threads share out outputs, never a sum.

   The model is plan.py's Plan: RMSNorm without gain, attention, RMSNorm without gain, feed-forward or experts.
   Shapes: R rows, C channels, H query heads, K key/value heads, D head size, F hidden width, E experts, V vocabulary, W window.
   A matrix (N, I) of N outputs is packed in panels of PANEL outputs: (N / PANEL, I, PANEL), padded with zeros. */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__linux__) && defined(__AMX_INT8__) && defined(__AVX512F__)
#define TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, WIDE = 4, TILE = 6 };
#elif defined(__AVX__)
enum { LANES = 8, WIDE = 2, TILE = 6 };
#else
enum { LANES = 4, WIDE = 4, TILE = 4 };
#endif
enum { PANEL = LANES * WIDE, MAX_THREADS = 16, MAX_TOP_K = 64, MAX_ROWS = 64 };
enum { LARGEST = 1 << 24 }; /* that any size of a model may be, so that int holds every product of two of a row's sizes */

/* What the functions that Python calls return; c.py has a line for each. */
enum Status { OK, NO_MEMORY, BAD_MODEL, BAD_ROWS, BAD_TOKEN, BAD_SLOT, BAD_POSITION, NOT_FINITE };

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int16_t hvec __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const void *data;    /* packed: float (bits 32), int16_t (16), or int16_t as tiles of bytes (8: see product_in_tiles) */
    const float *scale;  /* (N padded): one per output; NULL for float */
    const float *bias;   /* (N padded) or NULL */
    int32_t outputs, inputs, bits, padded;
} Matrix;

typedef struct {
    Matrix qkv, out;
    const float *qk_gain;                /* (H + K, D) or NULL */
    Matrix router;                       /* (E, C); data is NULL without experts */
    const float *router_bias;            /* (E) or NULL */
    const Matrix *up, *down;             /* (E) each; gate and up panels alternate where the feed-forward is gated */
} Layer;

typedef struct {
    int32_t V, C, H, K, D, F, E, L, W, slots, top_k, norm_top_k, activation, qk_norm, learned, max_rows;
    float eps;
    double rope_theta;
    const float *embedding, *positions;
    const Layer *layers;
    Matrix head;
    int32_t cache_bits;              /* 32: float; 16: whole numbers, each token's key and value with a scale of its own */
    void *keys;                      /* (L, slots, K, W / LANES rounded up, D, LANES) */
    void *values;                    /* (L, slots, K, W, D) */
    float *key_scales, *value_scales; /* (L, slots, K, W rounded up to LANES) */
} Model;

enum { GELU, GELU_TANH, RELU, SWIGLU };

/* ---- vectors */

INLINE vec splat(float x) { return (vec){0} + x; }
INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

INLINE vec vexp(vec x) { /* e^x, relative error below 2e-7 (Cephes); 0 far below, capped far above */
    ivec tiny = x < -87.0f;
    x = choose(x > 88.0f, splat(88.0f), choose(tiny, splat(-87.0f), x));
    const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vec n = x * 1.44269504f + magic;
    ivec exponent = (ivec)n << 23; /* the integer sits in the low bits */
    n -= magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return choose(tiny, splat(0.0f), (vec)((ivec)p + exponent));
}

INLINE vec vgelu(vec x) { /* x Phi(x), with erfc after Abramowitz & Stegun 7.1.26 */
    vec a = choose(x < 0.0f, -x, x), z = a * 0.70710678f, t = 1.0f / (z * 0.3275911f + 1.0f);
    vec s = splat(1.061405429f);
    s = s * t - 1.453152027f;
    s = s * t + 1.421413741f;
    s = s * t - 0.284496736f;
    s = s * t + 0.254829592f;
    return choose(x < 0.0f, splat(0.0f), x) - a * 0.5f * s * t * vexp(-z * z);
}

INLINE vec vsigmoid(vec x) { return 1.0f / (1.0f + vexp(-x)); }

INLINE vec activate(int kind, vec x) {
    if (kind == RELU) return choose(x < 0.0f, splat(0.0f), x);
    if (kind == GELU_TANH) /* (1 + tanh z) / 2 is the sigmoid of 2 z */
        return x * vsigmoid((x + x * x * x * 0.044715f) * 1.5957691216f);
    return vgelu(x);
}

static float sum_of_squares(const float *x, int n) {
    vec s = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES) s += load(x + i) * load(x + i);
    float total = 0;
    for (int l = 0; l < LANES; l++) total += s[l];
    for (; i < n; i++) total += x[i] * x[i];
    return total;
}

INLINE float largest_of(vec v) {
    float top = v[0];
    for (int l = 1; l < LANES; l++) top = v[l] > top ? v[l] : top;
    return top;
}

INLINE float largest_size(const float *x, int n) {
    vec tops = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec v = load(x + i), size = choose(v < 0.0f, -v, v);
        tops = choose(size > tops, size, tops);
    }
    float top = largest_of(tops);
    for (; i < n; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    return top;
}

/* The nearest whole number, of |x| < 2^22: the low bits of x + 1.5 * 2^23. Something, and not undefined, for what is no number. */
INLINE int32_t whole_number(float x) {
    union { float f; int32_t bits; } sum = {x + 12582912.0f};
    return (int32_t)((uint32_t)sum.bits - 0x4b400000u);
}

static float inverse_rms(const float *x, int n, float eps) { return 1.0f / sqrtf(sum_of_squares(x, n) / n + eps); }

/* ---- products: one panel of outputs for up to TILE rows, R and bits known to the compiler */

INLINE vec widen(const int16_t *p) { /* compilers make a dozen instructions of the generic form where the processor has two */
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)p)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const void *)p)));
#elif defined(__aarch64__)
    return (vec)vcvtq_f32_s32(vmovl_s16(vld1_s16(p)));
#else
    return __builtin_convertvector(*(const hvec *)p, vec);
#endif
}

INLINE vec weights(const void *panel, int64_t at, int bits) {
    return bits == 32 ? load((const float *)panel + at) : widen((const int16_t *)panel + at);
}

INLINE void tile(const void *panel, const char *ahead, int inputs, int R, int G, int bits, const float *const *x, vec (*acc)[WIDE]) {
    /* G panels side by side (G > 1 only with R == 1, for enough independent sums); acc is [R * G][WIDE] */
    vec a[TILE][WIDE];
    for (int i = 0; i < R * G; i++)
        for (int w = 0; w < WIDE; w++) a[i][w] = (vec){0};
    for (int k = 0; k < inputs; k++) {
        if (R > 1) __builtin_prefetch(ahead + (int64_t)k * 64, 0, 2); /* with several rows there is time to fetch what comes next */
        for (int g = 0; g < G; g++) {
            vec m[WIDE];
            for (int w = 0; w < WIDE; w++) m[w] = weights(panel, ((int64_t)g * inputs + k) * PANEL + w * LANES, bits);
            for (int r = 0; r < R; r++) {
                vec b = splat(x[r][k]);
                for (int w = 0; w < WIDE; w++) a[g * R + r][w] += m[w] * b;
            }
        }
    }
    for (int i = 0; i < R * G; i++)
        for (int w = 0; w < WIDE; w++) acc[i][w] = a[i][w];
}

#define ROWS(bits)                                                             \
    switch (rows) {                                                            \
    case 1:                                                                    \
        if (panels == 2) tile(panel, ahead, inputs, 1, 2, bits, x, acc);              \
        else tile(panel, ahead, inputs, 1, 1, bits, x, acc);                          \
        break;                                                                 \
    case 2: tile(panel, ahead, inputs, 2, 1, bits, x, acc); break;                    \
    case 3: tile(panel, ahead, inputs, 3, 1, bits, x, acc); break;                    \
    case 4: tile(panel, ahead, inputs, 4, 1, bits, x, acc); break;                    \
    case 5: if (TILE > 4) tile(panel, ahead, inputs, TILE > 4 ? 5 : 1, 1, bits, x, acc); break; \
    default: tile(panel, ahead, inputs, TILE, 1, bits, x, acc);                       \
    }

static void product_tile(const Matrix *m, const void *panel, const char *ahead, int rows, int panels, const float *const *x, vec (*acc)[WIDE]) {
    int inputs = m->inputs;
    if (m->bits == 32) { ROWS(32) }
    else { ROWS(16) }
}

/* outputs of panels [first, last) for any rows: handed, tile by tile, to `then` */
typedef void (*Then)(void *context, int row, int panel, const vec *values);

#if defined(TILES)
/* AMX: sixteen rows for the price of one. 16-bit weights are two planes of bytes, w = 256 h + l with both in [-128, 127], and so are the
   inputs, each row scaled by its largest. Four products of planes in 32-bit integers are exact, so their order does not matter.
   Packed: (N / PANEL, PANEL / 16, I / 64, 2 planes, 16, 16 outputs, 4): 64 inputs of 16 outputs are one tile, inputs by fours. */
enum { TILE_ROWS = 16, TILE_INPUTS = 64, TILE_BYTES = 1024, MOST = 32639, AHEAD = 1 << 13 /* bytes */ };
static _Thread_local int8_t *planes; /* of the inputs: (2, rows up to a multiple of TILE_ROWS, I) */

static void split(const float *x, int inputs, int padded, int8_t *high, int8_t *low, float *scale) {
    typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
    int i, vectors = inputs / LANES * LANES;
    const float most = largest_size(x, inputs), levels = most > 0 ? MOST / most : 0;
    const float magic = 12582912.0f; /* as in vexp: adding it rounds */
    *scale = most / MOST;
    for (i = 0; i < vectors; i += LANES) {
        ivec q = (ivec)(load(x + i) * levels + magic) - (ivec)splat(magic), h = (q + 128) >> 8;
        *(bytes *)(high + i) = __builtin_convertvector(h, bytes);
        *(bytes *)(low + i) = __builtin_convertvector(q - (h << 8), bytes);
    }
    for (; i < inputs; i++) {
        int32_t q = whole_number(x[i] * levels), h = (q + 128) >> 8;
        high[i] = (int8_t)h;
        low[i] = (int8_t)(q - h * 256);
    }
    memset(high + inputs, 0, padded - inputs);
    memset(low + inputs, 0, padded - inputs);
}

static void set_tiles(int rows) {
    struct __attribute__((packed)) { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } c = {.palette = 1};
    for (int t = 0; t < 8; t++) c.bytes[t] = 64, c.rows[t] = t < 6 ? rows : 16;
    _tile_loadconfig(&c);
}

static void block_in_tiles(const int8_t *high, const int8_t *low, int padded, const int8_t *w, int32_t (*sums)[TILE_ROWS][16]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < padded; k += TILE_INPUTS, w += 2 * TILE_BYTES) {
        for (int line = 0; line < 2 * TILE_BYTES; line += 64) __builtin_prefetch(w + AHEAD + line, 0, 2);
        _tile_loadd(4, high + k, padded);
        _tile_loadd(5, low + k, padded);
        _tile_loadd(6, w, 64);
        _tile_loadd(7, w + TILE_BYTES, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
}

static void product_in_tiles(const Matrix *m, int first, int last, int rows, const float *const *x, void *context, Then then) {
    int padded = (m->inputs + TILE_INPUTS - 1) / TILE_INPUTS * TILE_INPUTS, room = (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    int8_t *high = planes, *low = planes + (int64_t)room * padded;
    float scale[room];
    int32_t sums[4][TILE_ROWS][16] __attribute__((aligned(64)));
    if (first >= last || !rows) return;
    for (int r = 0; r < rows; r++) split(x[r], m->inputs, padded, high + (int64_t)r * padded, low + (int64_t)r * padded, scale + r);
    set_tiles(rows < TILE_ROWS ? rows : TILE_ROWS); /* of more rows the last tile computes what was left there, and nobody looks */
    for (int p = first; p < last; p++)
        for (int r = 0; r < rows; r += TILE_ROWS) {
            vec acc[TILE_ROWS][WIDE];
            int now = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
            for (int w = 0; w < WIDE; w++) {
                const int8_t *tiles = (const int8_t *)m->data + ((int64_t)p * WIDE + w) * padded * 2 * 16;
                block_in_tiles(high + (int64_t)r * padded, low + (int64_t)r * padded, padded, tiles, sums);
                vec each = load(m->scale + p * PANEL + w * LANES);
                for (int i = 0; i < now; i++) {
                    ivec middle = *(ivec *)sums[1][i] + *(ivec *)sums[2][i];
                    vec v = __builtin_convertvector(*(ivec *)sums[0][i], vec) * 65536.0f + __builtin_convertvector(middle, vec) * 256.0f +
                            __builtin_convertvector(*(ivec *)sums[3][i], vec);
                    acc[i][w] = v * (each * scale[r + i]);
                }
            }
            for (int i = 0; i < now; i++) then(context, r + i, p, acc[i]);
        }
}
#endif

INLINE void product(const Matrix *m, int first, int last, int rows, const float *const *x, void *context, Then then) {
#if defined(TILES)
    if (m->bits == 8) {
        product_in_tiles(m, first, last, rows, x, context, then);
        return;
    }
#endif
    int64_t stride = (int64_t)m->inputs * PANEL * (m->bits / 8);
    vec acc[TILE][WIDE];
    for (int p = first; p < last;) {
        const char *panel = (const char *)m->data + p * stride;
        int together = rows == 1 && p + 2 <= last ? 2 : 1;
        for (int r = 0; r < rows; r += TILE) {
            int now = rows - r < TILE ? rows - r : TILE;
            const char *ahead = panel + stride + (int64_t)(r / TILE) * m->inputs * 64; /* each tile its part of the next panel */
            product_tile(m, panel, ahead, now, together, x + r, acc);
            for (int i = 0; i < now * together; i++) {
                int at = p + (now == 1 ? i : 0), row = r + (now == 1 ? 0 : i);
                if (m->scale)
                    for (int w = 0; w < WIDE; w++) acc[i][w] *= load(m->scale + at * PANEL + w * LANES);
                then(context, row, at, acc[i]);
            }
        }
        p += together;
    }
}

/* ---- threads: workers that spin while a step is on, and sleep soon after */

typedef struct Pool Pool;
typedef struct { int expert[MAX_TOP_K]; float weight[MAX_TOP_K]; } Choice;

/* A thread, and what it alone reads and writes. */
typedef struct {
    Pool *pool;
    int number, active; /* which thread of how many that share the step under way */
    float *scores;      /* of attention */
    int8_t *planes;     /* for product_in_tiles */
    Choice *choices;    /* of experts, by row; what follows is by (expert, row) pair */
    float *probs, *factors, *shares;
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

static inline void pause_(int spins) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
    if (spins > 2000 && spins % 64 == 0) sched_yield(); /* somebody else needs this core, perhaps the one waited for */
}

/* Wait until every thread of the step is here. How many those are each thread knows by itself: whoever is held up between arriving and
   counting may find that the next step, of another number of threads, has begun. */
static void barrier(const Worker *me) {
    Pool *p = me->pool;
    if (me->active == 1) return;
    int generation = atomic_load_explicit(&p->generation, memory_order_acquire);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) == me->active - 1) {
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&p->generation, (int)((unsigned)generation + 1), memory_order_release);
        return;
    }
    for (int i = 0; atomic_load_explicit(&p->generation, memory_order_acquire) == generation; i++) pause_(i);
}

INLINE void share(int n, int of, int number, int *first, int *last) {
    *first = (int)((int64_t)n * number / of);
    *last = (int)((int64_t)n * (number + 1) / of);
}

/* ---- parts of a step; each thread does its share of each */

typedef struct { float *y; int64_t stride; const float *factor; const float *bias; int outputs, accumulate; } Write;

static void write_out(void *context, int row, int panel, const vec *values) {
    Write *w = context;
    float *y = w->y + row * w->stride + (int64_t)panel * PANEL;
    float factor = w->factor ? w->factor[row] : 1.0f;
    int left = w->outputs - panel * PANEL;
    for (int i = 0; i < WIDE; i++) {
        vec v = values[i] * factor;
        if (w->bias) v += load(w->bias + panel * PANEL + i * LANES);
        if (left >= (i + 1) * LANES) {
            if (w->accumulate) v += load(y + i * LANES);
            store(y + i * LANES, v);
        } else {
            for (int l = 0; i * LANES + l < left; l++) y[i * LANES + l] = w->accumulate ? y[i * LANES + l] + v[l] : v[l];
        }
    }
}

static void project(const Worker *me, const Matrix *m, int rows, const float *const *x, Write w) {
    int first, last;
    share(m->padded / PANEL, me->active, me->number, &first, &last);
    w.bias = m->bias;
    w.outputs = m->outputs;
    product(m, first, last, rows, x, &w, write_out);
}

/* feed-forward up: the activation of each panel, or of a gate panel times the up panel behind it */
typedef struct { float *y; int64_t stride; const float *factor; const float *bias; int kind; } Rise;

static void rise_plain(void *context, int row, int panel, const vec *values) {
    Rise *w = context;
    float *y = w->y + row * w->stride + (int64_t)panel * PANEL;
    for (int i = 0; i < WIDE; i++) {
        vec v = values[i] * w->factor[row];
        if (w->bias) v += load(w->bias + panel * PANEL + i * LANES);
        store(y + i * LANES, activate(w->kind, v));
    }
}

static void rise_gated(void *context, int row, int panel, const vec *values) {
    Rise *w = context;
    float *y = w->y + row * w->stride + (int64_t)(panel / 2) * PANEL;
    for (int i = 0; i < WIDE; i++) {
        vec v = values[i] * w->factor[row];
        store(y + i * LANES, panel % 2 ? load(y + i * LANES) * v : v * vsigmoid(v));
    }
}

static void up_proj(const Worker *me, const Matrix *m, int rows, const float *const *x, float *y, const float *factor) {
    const Model *d = &me->pool->model;
    int first, last, gated = d->activation == SWIGLU, unit = gated ? 2 : 1;
    share(m->padded / PANEL / unit, me->active, me->number, &first, &last);
    Rise w = {y, (d->F + PANEL - 1) / PANEL * PANEL, factor, m->bias, d->activation};
    product(m, first * unit, last * unit, rows, x, &w, gated ? rise_gated : rise_plain);
}

static void turn_pair(float *x, const float *rope, int D) { /* halves, as Llama has them */
    for (int i = 0; i < D / 2; i++) {
        float left = x[i], right = x[i + D / 2], c = rope[i], s = rope[D / 2 + i];
        x[i] = left * c - right * s;
        x[i + D / 2] = right * c + left * s;
    }
}

static void ready_head(const Model *d, const Layer *layer, float *x, int head, const float *rope) {
    if (d->qk_norm) {
        float scale = inverse_rms(x, d->D, d->eps);
        for (int i = 0; i < d->D; i++) x[i] *= scale * layer->qk_gain[head * d->D + i];
    }
    if (!d->learned) turn_pair(x, rope, d->D);
}

/* What one sequence's key/value head has seen. keys: (W / LANES, D, LANES), so that a vector holds one channel of neighbouring tokens;
   values: (W, D). Of a batch of sequences they are far away in memory, and begin anew for each head: while keys are read values are
   fetched, and meanwhile the next head's keys. */
typedef struct { char *keys, *values; float *key_scales, *value_scales; } Seen;

INLINE Seen seen_by(const Model *d, int64_t cell) {
    int64_t stride = (d->W + LANES - 1) / LANES * LANES, size = d->cache_bits / 8;
    return (Seen){(char *)d->keys + cell * d->D * stride * size, (char *)d->values + cell * d->D * d->W * size,
                  d->key_scales + cell * stride, d->value_scales + cell * stride};
}

/* x as whole numbers up to 32767, `step` apart; the scale */
INLINE float shorten(const float *x, int n, int16_t *y, int step) {
    float most = largest_size(x, n), levels = most > 0 ? 32767.0f / most : 0;
    for (int i = 0; i < n; i++) y[i * step] = (int16_t)whole_number(x[i] * levels);
    return most / 32767.0f;
}

static void append_kv(const Model *d, Seen seen, int at, const float *k, const float *v) {
    int64_t column = (int64_t)(at / LANES) * d->D * LANES + at % LANES, row = (int64_t)at * d->D;
    if (d->cache_bits == 16) {
        seen.key_scales[at] = shorten(k, d->D, (int16_t *)seen.keys + column, LANES);
        seen.value_scales[at] = shorten(v, d->D, (int16_t *)seen.values + row, 1);
    } else {
        for (int i = 0; i < d->D; i++) ((float *)seen.keys)[column + (int64_t)i * LANES] = k[i];
        memcpy((float *)seen.values + row, v, d->D * sizeof(float));
    }
}

/* y[i] = sum over t of scores[t] values[t][i], N vectors of it from `begin`; even and odd tokens summed apart, for more sums under way */
INLINE void mix(const Seen *seen, const char *next, int begin, const float *scores, int n, int D, float inverse, float *y, int N, int bits) {
    vec even[N], odd[N];
    for (int i = 0; i < N; i++) even[i] = odd[i] = (vec){0};
    int t = 0;
    for (; t + 2 <= n; t += 2) {
        for (int b = 0; next && b < 2 * D * bits / 8; b += 64) __builtin_prefetch(next + (int64_t)t * D * (bits / 8) + b);
        for (int i = 0; i < N; i++) {
            even[i] += weights(seen->values, (int64_t)t * D + begin + i * LANES, bits) * scores[t];
            odd[i] += weights(seen->values, (int64_t)(t + 1) * D + begin + i * LANES, bits) * scores[t + 1];
        }
    }
    for (; t < n; t++)
        for (int i = 0; i < N; i++) even[i] += weights(seen->values, (int64_t)t * D + begin + i * LANES, bits) * scores[t];
    for (int i = 0; i < N; i++) store(y + begin + i * LANES, (even[i] + odd[i]) * inverse);
}

INLINE void attend_head(int D, const float *q, const Seen *seen, const char *next, int n, float *scores, float *y, int bits) {
    for (int t = 0; t < n; t += LANES) {
        int64_t block = (int64_t)t * D;
        vec s0 = {0}, s1 = {0};
        int i = 0;
        for (; i + 2 <= D; i += 2) {
            __builtin_prefetch(seen->values + (block + i * LANES) * (bits / 8));
            if (bits == 32) __builtin_prefetch(seen->values + (block + (i + 1) * LANES) * (bits / 8));
            s0 += weights(seen->keys, block + i * LANES, bits) * q[i];
            s1 += weights(seen->keys, block + (i + 1) * LANES, bits) * q[i + 1];
        }
        if (i < D) s0 += weights(seen->keys, block + i * LANES, bits) * q[i];
        s0 += s1;
        if (bits == 16) s0 *= load(seen->key_scales + t);
        store(scores + t, s0);
    }
    for (int t = n; t % LANES; t++) scores[t] = -INFINITY;
    vec total = {0}, tops = splat(-INFINITY);
    for (int t = 0; t < n; t += LANES) {
        vec s = load(scores + t);
        tops = choose(s > tops, s, tops);
    }
    float top = largest_of(tops);
    for (int t = 0; t < n; t += LANES) {
        vec e = vexp(load(scores + t) - top);
        total += e;
        if (bits == 16) e *= load(seen->value_scales + t);
        store(scores + t, e);
    }
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += total[l];
    float inverse = 1.0f / sum;
    int i = 0;
    for (; i + 4 * LANES <= D; i += 4 * LANES) mix(seen, i ? 0 : next, i, scores, n, D, inverse, y, 4, bits);
    for (; i + 2 * LANES <= D; i += 2 * LANES) mix(seen, i ? 0 : next, i, scores, n, D, inverse, y, 2, bits);
    for (; i + LANES <= D; i += LANES) mix(seen, i ? 0 : next, i, scores, n, D, inverse, y, 1, bits);
    for (; i < D; i++) {
        float a = 0;
        for (int t = 0; t < n; t++) {
            int64_t at = (int64_t)t * D + i;
            a += scores[t] * (bits == 16 ? (float)((int16_t *)seen->values)[at] : ((float *)seen->values)[at]);
        }
        y[i] = a * inverse;
    }
}

static void attend_float(int D, const float *q, const Seen *seen, const char *next, int n, float *scores, float *y) {
    attend_head(D, q, seen, next, n, scores, y, 32);
}

static void attend_short(int D, const float *q, const Seen *seen, const char *next, int n, float *scores, float *y) {
    attend_head(D, q, seen, next, n, scores, y, 16);
}

static void attend(const Worker *me, int number) {
    const Pool *p = me->pool;
    const Model *d = &p->model;
    const Layer *layer = d->layers + number;
    const Task *task = &p->task;
    int D = d->D, G = d->H / d->K, width = (d->H + 2 * d->K) * D;
    float *scores = me->scores;
    int jobs = 0; /* (rows of one slot in a row, key/value head): the rows go in order, each writing its key before it looks */
    for (int begin = 0, end; begin < task->rows; begin = end) {
        for (end = begin + 1; end < task->rows && task->slots[end] == task->slots[begin]; end++) {}
        for (int head = 0; head < d->K; head++, jobs++) {
            if (jobs % me->active != me->number) continue;
            int64_t cell = ((int64_t)number * d->slots + task->slots[begin]) * d->K + head;
            Seen seen = seen_by(d, cell), next = seen_by(d, cell + me->active);
            for (int row = begin; row < end; row++) {
                float *qkv = p->qkv + (int64_t)row * width, *k = qkv + (d->H + head) * D, *v = k + d->K * D;
                const float *rope = p->rope + (int64_t)row * D;
                int position = task->positions[row], n = position < d->W ? position + 1 : d->W;
                ready_head(d, layer, k, d->H + head, rope);
                append_kv(d, seen, position % d->W, k, v);
                for (int h = head * G; h < (head + 1) * G; h++) {
                    float *y = p->mixed + ((int64_t)row * d->H + h) * D;
                    ready_head(d, layer, qkv + h * D, h, rope);
                    (d->cache_bits == 16 ? attend_short : attend_float)(D, qkv + h * D, &seen, end == begin + 1 ? next.keys : 0, n, scores, y);
                }
            }
        }
    }
}

static void route(const Model *d, const Layer *layer, float *probs, Choice *out) {
    float top = -INFINITY, sum = 0, kept = 0;
    for (int e = 0; e < d->E; e++) top = probs[e] > top ? probs[e] : top;
    for (int e = 0; e < d->E; e++) sum += probs[e] = expf(probs[e] - top);
    for (int e = 0; e < d->E; e++) probs[e] /= sum;
    for (int k = 0; k < d->top_k; k++) {
        int best = -1;
        float best_score = -INFINITY;
        for (int e = 0; e < d->E; e++) {
            float score = probs[e] + (layer->router_bias ? layer->router_bias[e] : 0.0f);
            int taken = 0;
            for (int j = 0; j < k; j++) taken |= out->expert[j] == e;
            if (!taken && (best < 0 || score > best_score)) best = e, best_score = score;
        }
        out->expert[k] = best;
        kept += out->weight[k] = probs[best];
    }
    if (d->norm_top_k)
        for (int k = 0; k < d->top_k; k++) out->weight[k] /= kept;
}

typedef struct { float *const *rows; const float *weights; int outputs; } Pour;

static void scatter_add(void *context, int row, int panel, const vec *values) {
    Pour *w = context;
    float *y = w->rows[row] + panel * PANEL;
    for (int l = 0; l < PANEL && panel * PANEL + l < w->outputs; l++) y[l] += values[l / LANES][l % LANES] * w->weights[row];
}

static void experts(const Worker *me, const Layer *layer, const float *const *rows, const float *factors) {
    /* every thread finds the same routes; hidden row j belongs to the j-th (expert, row) pair, experts ascending */
    Pool *p = me->pool;
    const Model *d = &p->model;
    int R = p->task.rows, k = d->top_k, pairs = 0, *begin = me->begin;
    int64_t hidden = (d->F + PANEL - 1) / PANEL * PANEL;
    const float **x = me->inputs;
    float **y = me->outputs;
    Write scores = {me->probs, d->E, factors, 0, d->E, 0};
    product(&layer->router, 0, layer->router.padded / PANEL, R, rows, &scores, write_out);
    for (int r = 0; r < R; r++) route(d, layer, me->probs + (int64_t)r * d->E, me->choices + r);
    for (int e = 0; e < d->E; e++) {
        begin[e] = pairs;
        for (int r = 0; r < R; r++)
            for (int j = 0; j < k; j++)
                if (me->choices[r].expert[j] == e) {
                    x[pairs] = y[pairs] = p->x + (int64_t)r * d->C;
                    me->factors[pairs] = factors[r];
                    me->shares[pairs++] = me->choices[r].weight[j];
                }
    }
    begin[d->E] = pairs;
    for (int e = 0; e < d->E; e++)
        if (begin[e + 1] > begin[e])
            up_proj(me, layer->up + e, begin[e + 1] - begin[e], x + begin[e], p->hidden + begin[e] * hidden, me->factors + begin[e]);
    barrier(me);
    for (int j = 0; j < pairs; j++) x[j] = p->hidden + j * hidden;
    for (int e = 0; e < d->E; e++)
        if (begin[e + 1] > begin[e]) {
            const Matrix *m = layer->down + e;
            int first, last;
            share(m->padded / PANEL, me->active, me->number, &first, &last);
            Pour w = {y + begin[e], me->shares + begin[e], m->outputs};
            product(m, first, last, begin[e + 1] - begin[e], x + begin[e], &w, scatter_add);
        }
}

static void rows_of(const float **out, const float *base, int64_t stride, int rows) {
    for (int r = 0; r < rows; r++) out[r] = base + r * stride;
}

static void work(const Worker *me) {
    Pool *p = me->pool;
    const Model *d = &p->model;
    const Task *task = &p->task;
    int R = task->rows, C = d->C;
    int64_t hidden = (d->F + PANEL - 1) / PANEL * PANEL;
    float factors[R];
    const float *x[R], *mixed[R], *up[R];
#if defined(TILES)
    planes = me->planes;
#endif
    rows_of(x, p->x, C, R);
    rows_of(mixed, p->mixed, d->H * d->D, R);
    rows_of(up, p->hidden, hidden, R);
    for (int i = 0; i < d->L; i++) {
        const Layer *layer = d->layers + i;
        for (int r = 0; r < R; r++) factors[r] = inverse_rms(x[r], C, d->eps);
        project(me, &layer->qkv, R, x, (Write){p->qkv, (d->H + 2 * d->K) * d->D, factors, 0, 0, 0});
        barrier(me);
        attend(me, i);
        barrier(me);
        project(me, &layer->out, R, mixed, (Write){p->x, C, 0, 0, 0, 1});
        barrier(me);
        for (int r = 0; r < R; r++) factors[r] = inverse_rms(x[r], C, d->eps);
        if (layer->router.data) {
            experts(me, layer, x, factors);
        } else {
            up_proj(me, layer->up, R, x, p->hidden, factors);
            barrier(me);
            project(me, layer->down, R, up, (Write){p->x, C, 0, 0, 0, 1});
        }
        barrier(me);
    }
    int skip = task->first_logits, n = R - skip;
    for (int r = 0; r < n; r++) factors[r] = inverse_rms(x[skip + r], C, d->eps);
    project(me, &d->head, n, x + skip, (Write){task->logits, d->V, factors, 0, 0, 0});
#if defined(TILES)
    if (d->head.bits == 8) _tile_release(); /* eight kilobytes that the kernel would save whenever it runs somebody else */
#endif
    barrier(me);
}

static void *serve(void *argument) {
    Worker *me = argument;
    Pool *p = me->pool;
    for (int seen = 0;;) {
        int spins = 0;
        while (atomic_load_explicit(&p->turn, memory_order_acquire) == seen) {
            pause_(spins);
            if (++spins < 20000) continue;
            pthread_mutex_lock(&p->mutex);
            atomic_fetch_add(&p->sleepers, 1);
            while (atomic_load(&p->turn) == seen) pthread_cond_wait(&p->wake, &p->mutex);
            atomic_fetch_sub(&p->sleepers, 1);
            pthread_mutex_unlock(&p->mutex);
        }
        seen = atomic_load_explicit(&p->turn, memory_order_acquire);
        if (atomic_load(&p->quitting)) return 0;
        me->active = seen % 256; /* the turn's low byte says how many take part */
        if (me->number < me->active) work(me);
    }
}

/* ---- what Python calls */

int mg_panel(void) { return PANEL; }

/* Whether bits 8 can be used: the processor has it and the kernel gives leave. */
int mg_tiles(void) {
#if defined(TILES)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
#else
    return 0;
#endif
}

enum { HUGE_PAGE = 1 << 21 };

/* a times b, neither negative; the largest number where that is too large, which no allocation grants */
static int64_t times(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

/* Zeroed memory, in large pages where it is worth it: a step reads all of it, and thousands of small pages cost time to look up. */
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

/* How often this process is the child of a fork: it has the memory of its parent's decoders and none of their threads. */
static _Atomic int forks;
static void forked(void) { atomic_fetch_add(&forks, 1); }
static void watch_forks(void) { pthread_atfork(0, 0, forked); }

static int is_orphan(Pool *p) { return p->forks != atomic_load_explicit(&forks, memory_order_relaxed); }

void mg_free(Pool *p) {
    if (!p) return;
    if (!is_orphan(p)) {
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
        free(w->scores), free(w->planes), free(w->choices), free(w->probs), free(w->factors), free(w->shares);
        free(w->inputs), free(w->outputs), free(w->begin);
    }
    free(p->x), free(p->qkv), free(p->mixed), free(p->hidden), free(p->rope);
    free(p->model.keys), free(p->model.values), free(p->model.key_scales), free(p->model.value_scales);
    free(p);
}

static int is_size(int64_t n) { return n >= 1 && n <= LARGEST; }

static int fits(const Matrix *m, int outputs, int inputs, int bits) {
    return m->data && (m->scale || bits == 32) && m->bits == bits && m->inputs == inputs && m->outputs == outputs && is_size(m->padded) &&
           m->padded >= outputs && m->padded % PANEL == 0;
}

/* Whether sizes and matrices agree, so that no step can leave its arrays. */
static int is_sound(const Model *d) {
    int64_t sizes[] = {d->V, d->C, d->H, d->K, d->D, d->F, d->E, d->L, d->W, d->slots, d->top_k, d->max_rows,
                       (int64_t)d->D * ((int64_t)d->H + 2 * (int64_t)d->K), 2 * ((int64_t)d->F + PANEL)};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!is_size(sizes[i])) return 0;
    int bits = d->head.bits, hidden = (d->F + PANEL - 1) / PANEL * PANEL, up = d->activation == SWIGLU ? 2 * hidden : d->F;
    if (d->H % d->K || d->top_k > d->E || d->top_k > MAX_TOP_K || d->max_rows > MAX_ROWS) return 0;
    if (!d->embedding || !d->layers || (d->learned && !d->positions) || !fits(&d->head, d->V, d->C, bits)) return 0;
#if defined(TILES)
    if (bits != 8 && bits != 16 && bits != 32) return 0;
#else
    if (bits != 16 && bits != 32) return 0;
#endif
    for (int i = 0; i < d->L; i++) {
        const Layer *layer = d->layers + i;
        if (!fits(&layer->qkv, (d->H + 2 * d->K) * d->D, d->C, bits) || !fits(&layer->out, d->C, d->H * d->D, bits)) return 0;
        if (d->qk_norm && !layer->qk_gain) return 0;
        if (layer->router.data ? !fits(&layer->router, d->E, d->C, 32) : d->E != 1) return 0;
        for (int e = 0; e < d->E; e++)
            if (!fits(layer->up + e, up, d->C, bits) || !fits(layer->down + e, d->C, d->F, bits)) return 0;
    }
    return 1;
}

/* Room for a thread; whether there is enough. */
static int make_worker(Worker *w, Pool *p, int number) {
    const Model *d = &p->model;
    int64_t R = d->max_rows, pairs = R * d->top_k, stride = (d->W + LANES - 1) / LANES * LANES;
    int64_t widest = d->C > d->F ? d->C : d->F, room = (R + 15) / 16 * 16;
    if (d->H * d->D > widest) widest = d->H * d->D;
    *w = (Worker){.pool = p, .number = number};
    w->scores = mg_memory(stride * sizeof(float));
    if (d->head.bits == 8 && !(w->planes = mg_memory(2 * room * ((widest + 63) / 64 * 64)))) return 0;
    if (d->layers[0].router.data) {
        w->choices = mg_memory(R * sizeof(Choice));
        w->probs = mg_memory(R * d->E * sizeof(float));
        w->factors = mg_memory(pairs * sizeof(float));
        w->shares = mg_memory(pairs * sizeof(float));
        w->inputs = mg_memory(pairs * sizeof(float *));
        w->outputs = mg_memory(pairs * sizeof(float *));
        w->begin = mg_memory((d->E + 1) * sizeof(int));
        if (!w->choices || !w->probs || !w->factors || !w->shares || !w->inputs || !w->outputs || !w->begin) return 0;
    }
    return w->scores != 0;
}

/* Room for what the threads share; whether there is enough. */
static int make_room(Pool *p) {
    Model *d = &p->model;
    int64_t R = d->max_rows, stride = (d->W + LANES - 1) / LANES * LANES, size = d->cache_bits / 8;
    int64_t cells = times(times(d->L, d->slots), d->K), hidden = (d->F + PANEL - 1) / PANEL * PANEL;
    p->x = mg_memory(R * d->C * sizeof(float));
    p->qkv = mg_memory(R * (d->H + 2 * d->K) * d->D * sizeof(float));
    p->mixed = mg_memory(R * d->H * d->D * sizeof(float));
    p->hidden = mg_memory(R * d->top_k * hidden * sizeof(float));
    p->rope = mg_memory(R * d->D * sizeof(float));
    d->keys = mg_memory(times(times(cells, d->D * size), stride));
    d->values = mg_memory(times(times(cells, d->D * size), d->W));
    d->key_scales = mg_memory(times(cells, stride * sizeof(float)));
    d->value_scales = mg_memory(times(cells, stride * sizeof(float)));
    return p->x && p->qkv && p->mixed && p->hidden && p->rope && d->keys && d->values && d->key_scales && d->value_scales;
}

/* A decoder of `model`, whose arrays the caller keeps alive, to *made. */
int mg_new(const Model *model, int threads, Pool **made) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    *made = 0;
    if (!is_sound(model)) return BAD_MODEL;
    Pool *p = calloc(1, sizeof(Pool));
    if (!p) return NO_MEMORY;
    p->model = *model;
    p->forks = atomic_load(&forks);
    p->model.cache_bits = model->head.bits == 32 ? 32 : 16;
    p->model.keys = p->model.values = 0;
    p->model.key_scales = p->model.value_scales = 0;
    pthread_mutex_init(&p->mutex, 0);
    pthread_cond_init(&p->wake, 0);
    p->threads = 1;
    if (!make_room(p) || !make_worker(p->workers, p, 0)) return mg_free(p), NO_MEMORY;
    for (int wanted = threads < MAX_THREADS ? threads : MAX_THREADS; p->threads < wanted; p->threads++) { /* or fewer, where they cannot be had */
        Worker *w = p->workers + p->threads;
        if (!make_worker(w, p, p->threads) || pthread_create(p->handles + p->threads, 0, serve, w)) break;
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
   `first_logits` on go to `logits` (rows - first_logits, V). Nothing is done if anything is out of range. */
int mg_step(Pool *p, const int32_t *ids, const int32_t *slots, const int32_t *positions, int rows, int first_logits, float *logits,
            int threads) {
    Model *d = &p->model;
    if (rows < 1 || rows > d->max_rows || first_logits < 0 || first_logits >= rows) return BAD_ROWS;
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
    Worker *me = p->workers;
    me->active = threads < 1 || is_orphan(p) ? 1 : threads > p->threads ? p->threads : threads;
    if (me->active > 1) {
        int turn = atomic_load(&p->turn);
        atomic_store(&p->turn, (int)(((unsigned)turn / 256 + 1) * 256 % (1u << 30)) + me->active);
        if (atomic_load(&p->sleepers)) {
            pthread_mutex_lock(&p->mutex);
            pthread_cond_broadcast(&p->wake);
            pthread_mutex_unlock(&p->mutex);
        }
    }
    work(me);
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
            Seen from = seen_by(d, ((int64_t)l * d->slots + source) * d->K + k), to = seen_by(d, ((int64_t)l * d->slots + target) * d->K + k);
            memcpy(to.keys, from.keys, whole * d->D * size);
            memcpy(to.values, from.values, (int64_t)length * d->D * size);
            memcpy(to.key_scales, from.key_scales, length * sizeof(float));
            memcpy(to.value_scales, from.value_scales, length * sizeof(float));
        }
    return OK;
}

/* ---- choosing a token, as sampling.py does it: the same settings, in the same order, in double precision */

static double kth_largest(double *a, int n, int k) { /* of a[0..n), which is reordered */
    int low = 0, high = n - 1, wanted = k - 1;
    while (low < high) {
        double pivot = a[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (a[i] > pivot) i++;
            while (a[j] < pivot) j--;
            if (i <= j) {
                double swap = a[i];
                a[i++] = a[j];
                a[j--] = swap;
            }
        }
        if (wanted <= j) high = j;
        else if (wanted >= i) low = i;
        else break;
    }
    return a[wanted];
}

typedef struct { double p; int32_t token; } Weighed;

static int by_weight(const void *a, const void *b) {
    const Weighed *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : (x->token > y->token) - (x->token < y->token);
}

static void keep_top_p(double *z, int V, double top_p, double top, Weighed *kept) {
    double total = 0, before = 0;
    int n = 0;
    for (int i = 0; i < V; i++)
        if (z[i] > -INFINITY) total += (kept[n] = (Weighed){exp(z[i] - top), i}).p, n++;
    qsort(kept, n, sizeof(Weighed), by_weight);
    for (int i = 0; i < n; i++) {
        if (before >= top_p * total) z[kept[i].token] = -INFINITY;
        before += kept[i].p;
    }
}

typedef struct { double temperature, top_p, min_p, penalty; int32_t top_k; } Settings;

/* The token, or -1 if a logit is not finite. z and spare (V) are room to work, and so is kept (V) where top_p is below 1. */
static int32_t choose_token(const float *logits, int V, const Settings *s, const uint8_t *seen, double uniform, double *z, double *spare,
                            Weighed *kept, double *margin) {
    double top = -INFINITY, second = -INFINITY;
    int32_t best = 0, odd = 0;
    for (int i = 0; i < V; i++) {
        z[i] = logits[i];
        if (seen && seen[i]) z[i] = z[i] > 0 ? z[i] / s->penalty : z[i] * s->penalty;
        odd |= !(fabs(z[i]) < INFINITY);
        if (z[i] > top) second = top, top = z[i], best = i;
        else if (z[i] > second) second = z[i];
    }
    if (odd) return -1;
    *margin = top - second;
    if (s->temperature == 0) return best;
    for (int i = 0; i < V; i++) z[i] = (z[i] - top) / s->temperature;
    if (s->top_k > 0 && s->top_k < V) {
        memcpy(spare, z, V * sizeof(double));
        double least = kth_largest(spare, V, s->top_k);
        for (int i = 0; i < V; i++)
            if (z[i] < least) z[i] = -INFINITY;
    }
    if (s->top_p < 1) keep_top_p(z, V, s->top_p, 0, kept);
    if (s->min_p > 0) {
        double least = log(s->min_p);
        for (int i = 0; i < V; i++)
            if (z[i] < least) z[i] = -INFINITY;
    }
    double total = 0, target, nearest = INFINITY;
    for (int i = 0; i < V; i++) spare[i] = total += z[i] > -INFINITY ? exp(z[i]) : 0;
    target = uniform * total;
    if (!(target < total)) target = nextafter(total, 0);
    int32_t token = -1;
    for (int i = 0; i < V; i++) {
        if (token < 0 && spare[i] > target) token = i;
        double away = fabs(spare[i] - target);
        if (i + 1 < V && away < nearest) nearest = away;
    }
    *margin = nearest / total;
    return token;
}

/* The next token of each row of logits (rows, V), and how narrow each choice was; `seen` (rows, V) or NULL. */
int mg_choose(const float *logits, int rows, int V, const Settings *s, const uint8_t *seen, const double *uniforms, int64_t *ids,
              double *margins) {
    if (rows < 0) return BAD_ROWS;
    if (V < 1) return BAD_MODEL;
    double *z = malloc(V * (2 * sizeof(double) + (s->top_p < 1 ? sizeof(Weighed) : 0)));
    int status = z ? OK : NO_MEMORY;
    for (int r = 0; r < rows && status == OK; r++) {
        const uint8_t *marks = seen ? seen + (int64_t)r * V : 0;
        ids[r] = choose_token(logits + (int64_t)r * V, V, s, marks, uniforms[r], z, z + V, (Weighed *)(z + 2 * (int64_t)V), margins + r);
        if (ids[r] < 0) status = NOT_FINITE;
    }
    free(z);
    return status;
}
