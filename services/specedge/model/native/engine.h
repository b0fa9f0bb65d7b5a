/* An engine: a model, its threads and its buffers. One forward at a time. */
#ifndef SPECEDGE_ENGINE_H
#define SPECEDGE_ENGINE_H

#include "native.h"
#include "pool.h"

enum { MESSAGE_SIZE = 200 };

/* How a batch's attention is divided; the same for all layers. */
typedef struct {
    Segment *segments;
    Path *paths; /* [num_rows] */
    int32_t *links;
    Task *tasks;
    int32_t *groups; /* [num_groups + 1]: a group's first task; its tasks are its chunks in order */
    int64_t *states; /* [num_tasks]: where a task's states begin */
    int32_t num_tasks, num_groups, rows_per_group, most_rest;
    int64_t num_states; /* floats */
    void *memory;
    int64_t capacity;
} Plan;

typedef struct {
    float *x, *normal, *qkv, *heads, *inner, *last_x, *last_heads;
    void *memory;
    int64_t capacity;
} Buffers;

typedef struct {
    Model model;
    const Kernels *kernels;
    Pool *pool;
    float attention_scale;
    Plan plan;
    Buffers buffers;
    float *states;
    int64_t states_capacity;
    float **scratch; /* by worker */
    int64_t *scratch_capacity;
    char message[MESSAGE_SIZE];
} Engine;

/* Checks every number of a batch and plans it. 0: it is wrong or memory is short, and engine->message says why. */
int plan_batch(Engine *engine, const Batch *batch);

/* Makes a buffer at least this large; its old content is lost. 0: out of memory. */
int reserve(void **buffer, int64_t *capacity, int64_t num_bytes);

#endif
