/* A model as Python hands it over: sizes, packed matrices, layers; and whether its sizes agree.

   A matrix (N, I) of N outputs is packed in panels of PANEL outputs: (N / PANEL, I, PANEL), padded with zeros. */

#pragma once
#include "vectors.h"

#if defined(__linux__) && defined(__AMX_INT8__) && defined(__AVX512F__)
#define TILES 1 /* matrix tiles (amx.h) */
#endif

enum { PANEL = LANES * WIDE, MAX_THREADS = 16, MAX_TOP_K = 64, MAX_ROWS = 64 };
/* How the numbers of a matrix are stored: by their bits, or as bytes: TILED (16 bits) for amx.h, INT8_FOURS for dots.h. */
enum { INT8 = 8, INT16 = 16, FLOAT32 = 32, TILED = 15, INT8_FOURS = 7 };
enum { MOST_BYTES = 1 << 16 }; /* inputs whose products of bytes a sum of 32 bits holds */
enum { LARGEST = 1 << 24 }; /* that any size of a model may be, so that int holds every product of two of a row's sizes */

/* What the functions that Python calls return; c.py has a line for each. */
enum Status { OK, NO_MEMORY, BAD_MODEL, BAD_ROWS, BAD_TOKEN, BAD_SLOT, BAD_POSITION, NOT_FINITE };

typedef struct {
    const void *data;    /* packed */
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

static int is_size(int64_t n) { return n >= 1 && n <= LARGEST; }

static int is_matrix(const Matrix *m, int outputs, int inputs, int bits) {
    return m->data && (m->scale || bits == FLOAT32) && m->bits == bits && m->inputs == inputs && m->outputs == outputs && is_size(m->padded) &&
           m->padded >= outputs && m->padded % PANEL == 0;
}

/* Whether sizes and matrices agree, so that no step can leave its arrays. */
static int sizes_agree(const Model *d) {
    int64_t sizes[] = {d->V, d->C, d->H, d->K, d->D, d->F, d->E, d->L, d->W, d->slots, d->top_k, d->max_rows,
                       (int64_t)d->D * ((int64_t)d->H + 2 * (int64_t)d->K), 2 * ((int64_t)d->F + PANEL)};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!is_size(sizes[i])) return 0;
    int bits = d->head.bits, of_bytes = bits == TILED || bits == INT8_FOURS;
    int hidden = (d->F + PANEL - 1) / PANEL * PANEL, up = d->activation == SWIGLU ? 2 * hidden : d->F;
    if (d->H % d->K || d->top_k > d->E || d->top_k > MAX_TOP_K || d->max_rows > MAX_ROWS) return 0;
    if (!d->embedding || !d->layers || (d->learned && !d->positions) || !is_matrix(&d->head, d->V, d->C, bits)) return 0;
    if (bits != INT8 && bits != INT16 && bits != FLOAT32 && !of_bytes) return 0;
    if (of_bytes && (d->C > MOST_BYTES || d->F > MOST_BYTES || d->H * d->D > MOST_BYTES)) return 0;
#if !defined(TILES)
    if (bits == TILED) return 0;
#endif
#if !defined(DOTS)
    if (bits == INT8_FOURS) return 0;
#endif
    for (int i = 0; i < d->L; i++) {
        const Layer *layer = d->layers + i;
        if (!is_matrix(&layer->qkv, (d->H + 2 * d->K) * d->D, d->C, bits) || !is_matrix(&layer->out, d->C, d->H * d->D, bits)) return 0;
        if (d->qk_norm && !layer->qk_gain) return 0;
        if (layer->router.data ? !is_matrix(&layer->router, d->E, d->C, FLOAT32) : d->E != 1) return 0;
        for (int e = 0; e < d->E; e++)
            if (!is_matrix(layer->up + e, up, d->C, bits) || !is_matrix(layer->down + e, d->C, d->F, bits)) return 0;
    }
    return 1;
}
