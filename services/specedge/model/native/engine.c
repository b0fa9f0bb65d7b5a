/* The forward of a dense decoder: embedding, layers, logits of the wanted rows. */
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_PER_TASK = 8, TASKS_PER_THREAD = 4 };

typedef struct {
    Engine *engine;
    const Batch *batch;
    const Layer *layer;
    const Matrix *matrix;
    const float *in;
    float *out;
    const float *weight;
    int64_t in_stride, out_stride;
    int32_t num_rows, panels_per_task;
    Epilogue epilogue;
    Attention attention;
} Step;

int reserve(void **buffer, int64_t *capacity, int64_t num_bytes) {
    if (*capacity >= num_bytes) return 1;
    free(*buffer);
    *capacity = 0;
    const int64_t size = round_up(num_bytes + num_bytes / 4, 64);
    if (posix_memalign(buffer, 64, (size_t)size)) {
        *buffer = NULL;
        return 0;
    }
    memset(*buffer, 0, (size_t)size);
    *capacity = size;
    return 1;
}

/* Rows start on different cache sets: a power of two would put them all on the same few. */
static int64_t stride_of(int64_t num) { return round_up(num, PANEL) + LANES; }

static void multiply_panels(void *context, int32_t index, int32_t worker) {
    (void)worker;
    const Step *step = context;
    const int32_t num_panels = (step->matrix->num_outputs + PANEL - 1) / PANEL, first = index * step->panels_per_task;
    const int32_t end = first + step->panels_per_task < num_panels ? first + step->panels_per_task : num_panels;
    step->engine->kernels->multiply(step->matrix, step->in, step->in_stride, step->num_rows, first, end, step->epilogue,
                                    step->out, step->out_stride);
}

static void multiply(Engine *engine, const Matrix *matrix, const float *in, int64_t in_stride, int32_t num_rows,
                     Epilogue epilogue, float *out, int64_t out_stride) {
    const int32_t num_panels = (matrix->num_outputs + PANEL - 1) / PANEL;
    const int32_t num_tasks = pool_size(engine->pool) > 1 ? TASKS_PER_THREAD * pool_size(engine->pool) : 1;
    Step step = {.engine = engine,
                 .matrix = matrix,
                 .in = in,
                 .in_stride = in_stride,
                 .num_rows = num_rows,
                 .epilogue = epilogue,
                 .out = out,
                 .out_stride = out_stride};
    step.panels_per_task = (num_panels + num_tasks - 1) / num_tasks;
    pool_run(engine->pool, (num_panels + step.panels_per_task - 1) / step.panels_per_task, multiply_panels, &step);
}

/* A loop over rows; few rows are not worth another thread. */
static void run_rows(Engine *engine, Work *work, Step *step) {
    const int32_t num_tasks = (step->num_rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK;
    if (num_tasks > 1)
        pool_run(engine->pool, num_tasks, work, step);
    else if (num_tasks)
        work(step, 0, 0);
}

static int32_t end_row(const Step *step, int32_t index) {
    const int32_t end = (index + 1) * ROWS_PER_TASK;
    return end < step->num_rows ? end : step->num_rows;
}

static void normalize_rows(void *context, int32_t index, int32_t worker) {
    (void)worker;
    const Step *step = context;
    const Model *model = &step->engine->model;
    for (int32_t row = index * ROWS_PER_TASK; row < end_row(step, index); row++)
        step->engine->kernels->normalize(step->in + row * step->in_stride, step->weight, model->hidden_size,
                                         model->rms_eps, step->out + row * step->out_stride);
}

static void normalize(Engine *engine, const float *in, int64_t in_stride, int32_t num_rows, const float *weight,
                      float *out, int64_t out_stride) {
    Step step = {.engine = engine,
                 .in = in,
                 .in_stride = in_stride,
                 .num_rows = num_rows,
                 .weight = weight,
                 .out = out,
                 .out_stride = out_stride};
    run_rows(engine, normalize_rows, &step);
}

static void embed_rows(void *context, int32_t index, int32_t worker) {
    (void)worker;
    const Step *step = context;
    const Model *model = &step->engine->model;
    const int32_t num = model->hidden_size;
    for (int32_t row = index * ROWS_PER_TASK; row < end_row(step, index); row++) {
        float *out = step->out + row * step->out_stride;
        const int64_t from = step->batch->token_ids[row] * num;
        if (!model->embed_is_bf16) {
            memcpy(out, (const float *)model->embed + from, (size_t)num * sizeof(float));
            continue;
        }
        for (int32_t i = 0; i < num; i++) {
            const uint32_t bits = (uint32_t)((const uint16_t *)model->embed)[from + i] << 16;
            memcpy(out + i, &bits, sizeof(float));
        }
    }
}

/* To the nearest bfloat16, to the even one of two; NaN stays NaN. */
static void round_to_bf16(const float *from, int32_t num, uint16_t *to) {
    for (int32_t i = 0; i < num; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, sizeof(bits));
        const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
        to[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded >> 16);
    }
}

static void store_in_slot(const Model *model, const float *numbers, int64_t slot, void *cache) {
    const int32_t num = model->num_kv_heads * model->head_dim;
    if (model->cache_is_bf16)
        round_to_bf16(numbers, num, (uint16_t *)cache + slot * num);
    else
        memcpy((float *)cache + slot * num, numbers, (size_t)num * sizeof(float));
}

/* Rotates queries and keys in place, and puts keys and values into their slots. */
static void rotate_rows(void *context, int32_t index, int32_t worker) {
    (void)worker;
    const Step *step = context;
    const Model *model = &step->engine->model;
    const Layer *layer = step->layer;
    const Kernels *kernels = step->engine->kernels;
    const int32_t dim = model->head_dim;
    for (int32_t row = index * ROWS_PER_TASK; row < end_row(step, index); row++) {
        float *queries = step->out + row * step->out_stride;
        float *keys = queries + (int64_t)model->num_heads * dim;
        const float *values = keys + (int64_t)model->num_kv_heads * dim;
        const int64_t angle = (int64_t)step->batch->positions[row] * (dim / 2);
        const float *cosines = step->batch->cosines + angle, *sines = step->batch->sines + angle;
        for (int32_t head = 0; head < model->num_heads; head++)
            kernels->rotate(queries + head * dim, layer->q_norm, dim, model->rms_eps, cosines, sines,
                            step->engine->attention_scale, queries + head * dim);
        for (int32_t head = 0; head < model->num_kv_heads; head++)
            kernels->rotate(keys + head * dim, layer->k_norm, dim, model->rms_eps, cosines, sines, 1.0f,
                            keys + head * dim);
        store_in_slot(model, keys, step->batch->slots[row], layer->keys);
        store_in_slot(model, values, step->batch->slots[row], layer->values);
    }
}

static void attend_task(void *context, int32_t index, int32_t worker) {
    const Step *step = context;
    Engine *engine = step->engine;
    engine->kernels->attend(&step->attention, engine->plan.tasks + index, engine->scratch[worker],
                            engine->states + engine->plan.states[index]);
}

/* Joins the states of a group's chunks in order and writes the heads' outputs. */
static void join_group(void *context, int32_t index, int32_t worker) {
    (void)worker;
    const Step *step = context;
    Engine *engine = step->engine;
    const Model *model = &engine->model;
    const Plan *plan = &engine->plan;
    const int32_t dim = model->head_dim, group = model->num_heads / model->num_kv_heads;
    const int32_t first = plan->groups[index], end = plan->groups[index + 1];
    const Task *task = plan->tasks + first;
    const int64_t size = state_size(dim);
    for (int32_t query = 0; query < task->num_rows * group; query++) {
        float *state = engine->states + plan->states[first] + query * size;
        for (int32_t i = first + 1; i < end; i++)
            engine->kernels->merge(state, engine->states + plan->states[i] + query * size, dim);
        const int32_t row = task->first_row + query / group, head = task->kv_head * group + query % group;
        float *out = step->out + row * step->out_stride + head * dim;
        for (int32_t i = 0; i < dim; i++) out[i] = state[STATE_VALUES + i] / state[STATE_SUM];
    }
}

static void attend(Engine *engine, const Layer *layer, const float *queries, int64_t query_stride, float *out,
                   int64_t out_stride) {
    const Model *model = &engine->model;
    const Plan *plan = &engine->plan;
    Step step = {.engine = engine,
                 .out = out,
                 .out_stride = out_stride,
                 .attention = {queries, query_stride, layer->keys, layer->values, model->cache_is_bf16, model->num_heads, model->num_kv_heads,
                               model->head_dim, layer->window, plan->segments, plan->paths, plan->links}};
    pool_run(engine->pool, plan->num_tasks, attend_task, &step);
    if (plan->num_groups * plan->rows_per_group <= ROWS_PER_TASK)
        for (int32_t i = 0; i < plan->num_groups; i++) join_group(&step, i, 0);
    else
        pool_run(engine->pool, plan->num_groups, join_group, &step);
}

static void pick_rows(const float *in, int64_t stride, const int64_t *rows, int32_t num, int32_t size, float *out) {
    for (int32_t i = 0; i < num; i++) memcpy(out + i * stride, in + rows[i] * stride, (size_t)size * sizeof(float));
}

/* The last layer's rows are needed as keys and values only, but for the wanted ones. */
static void run_layers(Engine *engine, const Batch *batch, float *logits) {
    const Model *model = &engine->model;
    const int32_t width = model->num_heads * model->head_dim;
    const int64_t hidden = stride_of(model->hidden_size), heads = stride_of(width);
    const int64_t inner = stride_of(model->intermediate_size);
    const int64_t qkv = stride_of(width + 2 * (int64_t)model->num_kv_heads * model->head_dim);
    Buffers *at = &engine->buffers;
    float *x = at->x, *heads_out = at->heads;
    int32_t num_rows = batch->num_rows;
    Step step = {.engine = engine, .batch = batch, .num_rows = num_rows, .out = x, .out_stride = hidden};
    run_rows(engine, embed_rows, &step);
    for (int32_t i = 0; i < model->num_layers; i++) {
        const Layer *layer = model->layers + i;
        normalize(engine, x, hidden, num_rows, layer->input_norm, at->normal, hidden);
        multiply(engine, &layer->qkv, at->normal, hidden, num_rows, STORE, at->qkv, qkv);
        step = (Step){
            .engine = engine, .batch = batch, .layer = layer, .num_rows = num_rows, .out = at->qkv, .out_stride = qkv};
        run_rows(engine, rotate_rows, &step);
        attend(engine, layer, at->qkv, qkv, heads_out, heads);
        if (i == model->num_layers - 1) {
            num_rows = batch->num_wanted;
            pick_rows(x, hidden, batch->wanted, num_rows, model->hidden_size, at->last_x);
            pick_rows(heads_out, heads, batch->wanted, num_rows, width, at->last_heads);
            x = at->last_x;
            heads_out = at->last_heads;
        }
        multiply(engine, &layer->o, heads_out, heads, num_rows, ADD, x, hidden);
        normalize(engine, x, hidden, num_rows, layer->post_norm, at->normal, hidden);
        multiply(engine, &layer->gate_up, at->normal, hidden, num_rows, GATE, at->inner, inner);
        multiply(engine, &layer->down, at->inner, inner, num_rows, ADD, x, hidden);
    }
    normalize(engine, x, hidden, num_rows, model->final_norm, at->normal, hidden);
    multiply(engine, &model->head, at->normal, hidden, num_rows, STORE, logits, model->vocab_size);
}

static int reserve_all(Engine *engine, const Batch *batch) {
    const Model *model = &engine->model;
    const int32_t group = model->num_heads / model->num_kv_heads, width = model->num_heads * model->head_dim;
    const int64_t hidden = stride_of(model->hidden_size), heads = stride_of(width), rows = batch->num_rows;
    const int64_t qkv = stride_of(width + 2 * (int64_t)model->num_kv_heads * model->head_dim);
    const int64_t inner = stride_of(model->intermediate_size), wanted = batch->num_wanted;
    const int64_t most = rows > wanted ? rows : wanted; /* a row can be wanted twice */
    const int64_t num = rows * (hidden + qkv + heads) + most * (inner + hidden) + wanted * (hidden + heads);
    Buffers *buffers = &engine->buffers;
    if (!reserve(&buffers->memory, &buffers->capacity, num * (int64_t)sizeof(float))) return 0;
    buffers->x = buffers->memory;
    buffers->qkv = buffers->x + rows * hidden;
    buffers->heads = buffers->qkv + rows * qkv;
    buffers->inner = buffers->heads + rows * heads;
    buffers->last_x = buffers->inner + most * inner;
    buffers->last_heads = buffers->last_x + wanted * hidden;
    buffers->normal = buffers->last_heads + wanted * heads;
    if (!reserve((void **)&engine->states, &engine->states_capacity, engine->plan.num_states * (int64_t)sizeof(float)))
        return 0;
    const int32_t num_queries = rows_per_group(group) * group;
    const int64_t scratch =
        cut_scratch(NULL, model->head_dim, num_queries, engine->plan.most_rest).size * (int64_t)sizeof(float);
    for (int32_t worker = 0; worker < pool_size(engine->pool); worker++)
        if (!reserve((void **)&engine->scratch[worker], &engine->scratch_capacity[worker], scratch)) return 0;
    return 1;
}

__attribute__((visibility("default"))) int32_t specedge_forward(Engine *engine, const Batch *batch, float *logits) {
    engine->message[0] = 0;
    if (!plan_batch(engine, batch)) return 0;
    if (!reserve_all(engine, batch)) {
        snprintf(engine->message, MESSAGE_SIZE, "out of memory for the buffers of %d rows", batch->num_rows);
        return 0;
    }
    pool_wake(engine->pool);
    run_layers(engine, batch, logits);
    pool_rest(engine->pool);
    return 1;
}
