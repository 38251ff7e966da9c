/* The feed-forward of a mixture of experts: each row goes through the experts that its router finds most probable. */

#pragma once
#include "projections.h"

static void route(const Model *d, const Layer *layer, float *probs, Routing *out) {
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

static void experts(const Worker *worker, const Layer *layer, const float *const *rows, const float *row_scales) {
    /* every thread finds the same routes; hidden row j belongs to the j-th (expert, row) pair, experts ascending */
    Pool *p = worker->pool;
    const Model *d = &p->model;
    int R = p->task.rows, k = d->top_k, pairs = 0, *begin = worker->begin;
    int64_t hidden = (d->F + PANEL - 1) / PANEL * PANEL;
    const float **x = worker->inputs;
    float **y = worker->outputs;
    WriteOut scores = {worker->probs, d->E, row_scales, 0, d->E, 0};
    matmul(&layer->router, 0, layer->router.padded / PANEL, R, rows, &scores, write_out);
    for (int r = 0; r < R; r++) route(d, layer, worker->probs + (int64_t)r * d->E, worker->routings + r);
    for (int e = 0; e < d->E; e++) {
        begin[e] = pairs;
        for (int r = 0; r < R; r++)
            for (int j = 0; j < k; j++)
                if (worker->routings[r].expert[j] == e) {
                    x[pairs] = y[pairs] = p->x + (int64_t)r * d->C;
                    worker->row_scales[pairs] = row_scales[r];
                    worker->route_weights[pairs++] = worker->routings[r].weight[j];
                }
    }
    begin[d->E] = pairs;
    for (int e = 0; e < d->E; e++)
        if (begin[e + 1] > begin[e])
            up_proj(worker, layer->up + e, begin[e + 1] - begin[e], x + begin[e], p->hidden + begin[e] * hidden, worker->row_scales + begin[e]);
    barrier(worker);
    for (int j = 0; j < pairs; j++) x[j] = p->hidden + j * hidden;
    for (int e = 0; e < d->E; e++)
        if (begin[e + 1] > begin[e]) {
            const Matrix *m = layer->down + e;
            int first, last;
            split_range(m->padded / PANEL, worker->active, worker->number, &first, &last);
            ScatterAdd w = {y + begin[e], worker->route_weights + begin[e], m->outputs};
            matmul(m, first, last, begin[e + 1] - begin[e], x + begin[e], &w, scatter_add);
        }
}
