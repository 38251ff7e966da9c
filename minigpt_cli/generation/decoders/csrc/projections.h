/* The products of a step, shared out among the threads, each with what is done to its outputs on the way to memory. */

#pragma once
#include "matmul.h"
#include "threads.h"

typedef struct { float *y; int64_t stride; const float *row_scale; const float *bias; int outputs, accumulate; } WriteOut;

static void write_out(void *context, int row, int panel, const vec *values) {
    WriteOut *w = context;
    float *y = w->y + row * w->stride + (int64_t)panel * PANEL;
    float row_scale = w->row_scale ? w->row_scale[row] : 1.0f;
    int left = w->outputs - panel * PANEL;
    for (int i = 0; i < WIDE; i++) {
        vec v = values[i] * row_scale;
        if (w->bias) v += load(w->bias + panel * PANEL + i * LANES);
        if (left >= (i + 1) * LANES) {
            if (w->accumulate) v += load(y + i * LANES);
            store(y + i * LANES, v);
        } else {
            for (int l = 0; i * LANES + l < left; l++) y[i * LANES + l] = w->accumulate ? y[i * LANES + l] + v[l] : v[l];
        }
    }
}

static void project(const Worker *worker, const Matrix *m, int rows, const float *const *x, WriteOut w) {
    int first, last;
    split_range(m->padded / PANEL, worker->active, worker->number, &first, &last);
    w.bias = m->bias;
    w.outputs = m->outputs;
    matmul(m, first, last, rows, x, &w, write_out);
}

/* Feed-forward up: the activation of each panel, or of a gate panel times the up panel behind it. */
typedef struct { float *y; int64_t stride; const float *row_scale; const float *bias; int kind; } UpProj;

static void write_activated(void *context, int row, int panel, const vec *values) {
    UpProj *w = context;
    float *y = w->y + row * w->stride + (int64_t)panel * PANEL;
    for (int i = 0; i < WIDE; i++) {
        vec v = values[i] * w->row_scale[row];
        if (w->bias) v += load(w->bias + panel * PANEL + i * LANES);
        store(y + i * LANES, activate(w->kind, v));
    }
}

static void write_gated(void *context, int row, int panel, const vec *values) {
    UpProj *w = context;
    float *y = w->y + row * w->stride + (int64_t)(panel / 2) * PANEL;
    for (int i = 0; i < WIDE; i++) {
        vec v = values[i] * w->row_scale[row];
        store(y + i * LANES, panel % 2 ? load(y + i * LANES) * v : v * vsigmoid(v));
    }
}

static void up_proj(const Worker *worker, const Matrix *m, int rows, const float *const *x, float *y, const float *row_scale) {
    const Model *d = &worker->pool->model;
    int first, last, gated = d->activation == SWIGLU, unit = gated ? 2 : 1;
    split_range(m->padded / PANEL / unit, worker->active, worker->number, &first, &last);
    UpProj w = {y, (d->F + PANEL - 1) / PANEL * PANEL, row_scale, m->bias, d->activation};
    matmul(m, first * unit, last * unit, rows, x, &w, gated ? write_gated : write_activated);
}

typedef struct { float *const *rows; const float *weights; int outputs; } ScatterAdd;

static void scatter_add(void *context, int row, int panel, const vec *values) {
    ScatterAdd *w = context;
    float *y = w->rows[row] + panel * PANEL;
    for (int l = 0; l < PANEL && panel * PANEL + l < w->outputs; l++) y[l] += values[l / LANES][l % LANES] * w->weights[row];
}
