/* What the parts of the native engine share: the model, a batch, and the kernels of one instruction set.
 *
 * The law: a row's result is a function of its own text. Every sum has one order, fixed by index or by token position,
 * whatever else is in the batch, however rows are blocked and whichever thread works on them.
 */
#ifndef SPECEDGE_NATIVE_H
#define SPECEDGE_NATIVE_H

#include <stddef.h>
#include <stdint.h>

enum {
    PANEL = 32,        /* outputs stored together: [num_outputs / PANEL][num_inputs][PANEL] */
    LANES = 16,        /* partial sums of a reduction, on every instruction set */
    CHUNK = 256,       /* token positions whose softmax is computed at once */
    GROUP_QUERIES = 96 /* queries that share one pass over a chunk */
};

/* A linear layer. In a panel of bfloat16, outputs i and i + 16 share a 32-bit word, i in the low half. */
typedef struct {
    const void *panels;
    const float *bias; /* [num_outputs rounded up to PANEL], or NULL */
    int32_t num_outputs;
    int32_t num_inputs;
    int32_t is_bf16;
} Matrix;

typedef struct {
    Matrix qkv, o, gate_up, down; /* gate_up: a panel holds 16 gates and their 16 ups */
    const float *input_norm, *post_norm;
    const float *q_norm, *k_norm; /* [head_dim], or NULL */
    void *keys, *values;          /* [num_slots, num_kv_heads, head_dim] */
    int32_t window;               /* 0: the whole context */
} Layer;

typedef struct {
    int32_t hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, vocab_size, num_layers, num_slots;
    float rms_eps;
    int32_t embed_is_bf16, cache_is_bf16;
    const void *embed; /* [vocab_size, hidden_size] */
    const float *final_norm;
    const Layer *layers;
    Matrix head;
} Model;

/* AttentionPlan and PackedBatch, as pointers. */
typedef struct {
    int32_t num_rows, num_segments, num_wanted, num_words, num_positions, total_context, total_tail;
    const int64_t *token_ids, *slots, *wanted;
    const int32_t *positions, *row_starts, *context_starts, *context_slots, *num_tails, *tail_starts, *tail_positions;
    const uint8_t *is_chain;
    const uint64_t *mask_words;   /* [num_rows, num_words] */
    const float *cosines, *sines; /* [num_positions, head_dim / 2] */
} Batch;

/* One session of a batch. `shared` tokens are seen by every row up to the row's own position; the others, `num_rest`
 * of the tail, by those rows only that list them. */
typedef struct {
    int32_t first_row, num_rows;
    const int32_t *slots; /* [shared + num_rest] */
    const int32_t *rest_positions;
    int32_t shared, num_rest;
} Segment;

/* What one row sees: positions below `shared_end`, then the listed rest of its path, in position order. */
typedef struct {
    int32_t position, shared_end;
    int32_t first_link, num_links;
} Path;

/* Rows of one segment and one KV head over some chunks of positions. */
typedef struct {
    int32_t segment, first_row, num_rows, kv_head, first_chunk, end_chunk;
} Task;

/* Everything attention reads. */
typedef struct {
    const float *queries; /* [num_rows, query_stride], rotated and scaled */
    int64_t query_stride;
    const void *keys, *values;
    int32_t cache_is_bf16, num_heads, num_kv_heads, head_dim, window;
    const Segment *segments;
    const Path *paths;
    const int32_t *links; /* into the rest of a segment's tail */
} Attention;

typedef enum { STORE, ADD, GATE } Epilogue;

typedef struct {
    const char *name;
    /* out[:, of panels first..end) = rows @ weights.T + bias; ADD: added to out; GATE: silu(gate) * up. */
    void (*multiply)(const Matrix *matrix, const float *rows, int64_t row_stride, int32_t num_rows, int32_t first_panel,
                     int32_t end_panel, Epilogue epilogue, float *out, int64_t out_stride);
    void (*normalize)(const float *row, const float *weight, int32_t num, float eps, float *out);
    /* Normalises (where there is a weight), rotates and scales one head. */
    void (*rotate)(const float *head, const float *weight, int32_t head_dim, float eps, const float *cosines,
                   const float *sines, float scale, float *out);
    /* Softmax states of a task's queries, [num_rows * group][state_size]. */
    void (*attend)(const Attention *attention, const Task *task, float *scratch, float *states);
    /* Adds a later state to an earlier one. */
    void (*merge)(float *state, const float *later, int32_t head_dim);
} Kernels;

/* A softmax state: its maximum (-inf: it has seen nothing), its denominator, and from STATE_VALUES on the values. */
enum { STATE_MAX = 0, STATE_SUM = 1, STATE_VALUES = 16 };

/* What `attend` needs beside its input; `rest` counts tail tokens outside `shared`. */
typedef struct {
    float *queries;     /* [num_queries][head_dim] */
    float *keys;        /* panels of the chunk's shared tokens */
    float *rest_keys;   /* panels of the rest of the tail */
    float *scores;      /* [num_queries][CHUNK] */
    float *rest_scores; /* [num_queries][rest_stride] */
    float *state;       /* of one chunk, [num_queries][state_size] */
    int32_t *places;    /* [rest]: a token's place in rest_keys, or -1 */
    int64_t rest_stride, size;
} Scratch;

static inline int64_t round_up(int64_t number, int64_t to) { return (number + to - 1) / to * to; }
static inline int64_t state_size(int32_t head_dim) { return STATE_VALUES + round_up(head_dim, LANES); }

/* The parts of a piece of memory; their size in floats is `size`. */
static inline Scratch cut_scratch(float *memory, int32_t head_dim, int32_t num_queries, int32_t num_rest) {
    Scratch parts = {.rest_stride = round_up(num_rest, PANEL)};
    const int64_t sizes[] = {(int64_t)num_queries * head_dim,
                             (int64_t)CHUNK * head_dim,
                             parts.rest_stride * head_dim,
                             (int64_t)num_queries * CHUNK,
                             num_queries * parts.rest_stride,
                             num_queries * state_size(head_dim),
                             parts.rest_stride};
    float **starts[] = {&parts.queries, &parts.keys, &parts.rest_keys, &parts.scores, &parts.rest_scores, &parts.state};
    for (int i = 0; i < 7; i++) {
        if (memory && i < 6) *starts[i] = memory + parts.size;
        if (memory && i == 6) parts.places = (int32_t *)(memory + parts.size);
        parts.size += round_up(sizes[i], LANES);
    }
    return parts;
}

/* Rows whose queries, `group` for each KV head, are attended to together. */
int32_t rows_per_group(int32_t group);

#endif
