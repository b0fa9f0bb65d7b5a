/* Tree attention over paged keys and values. Positions are cut in chunks of CHUNK, counted from position 0. In a chunk
 * a query's scores lie at their positions, whatever slots and branches the tokens come from; the denominator is summed
 * in 16 lanes by position and the values in the order of positions, and a token that the query does not see adds
 * nothing. */
#ifndef SPECEDGE_ATTENTION_H
#define SPECEDGE_ATTENTION_H

#include "gemm.h"

#if NUM_REGISTERS == 32
#define VALUE_VECTORS 4
#else
#define VALUE_VECTORS 2
#endif
#define VALUE_QUERIES 6

/* Keys or values of one KV head: floats or bfloat16, a slot's numbers being `stride` after those of the one before. */
typedef struct {
    const char *numbers;
    int64_t stride;
    int is_bf16;
} Cached;

INLINE Cached cached_head(const Attention *attention, const void *numbers, int kv_head) {
    const int64_t size = attention->cache_is_bf16 ? 2 : 4;
    return (Cached){(const char *)numbers + (int64_t)kv_head * attention->head_dim * size,
                    (int64_t)attention->num_kv_heads * attention->head_dim, attention->cache_is_bf16};
}

INLINE const void *cached_at(const Cached *cached, int32_t slot, const int is_bf16) {
    return cached->numbers + slot * cached->stride * (is_bf16 ? 2 : 4);
}

INLINE float cached_number(const void *numbers, int at, const int is_bf16) {
    if (!is_bf16) return ((const float *)numbers)[at];
    const uint32_t bits = (uint32_t)((const uint16_t *)numbers)[at] << 16;
    float number;
    memcpy(&number, &bits, sizeof(number));
    return number;
}

/* Lays a key out in a panel: token j of the panel is output j. */
static void gather_key(const Cached *keys, int32_t slot, int head_dim, float *panel, int token) {
    const void *key = cached_at(keys, slot, keys->is_bf16);
    for (int i = 0; i < head_dim; i++) panel[i * PANEL + token] = cached_number(key, i, keys->is_bf16);
}

#if WIDTH >= 8
/* The same for 8 tokens. */
INLINE __m256 load_eight(const void *numbers, int at, const int is_bf16) {
    if (!is_bf16) return _mm256_loadu_ps((const float *)numbers + at);
    const __m128i halves = _mm_loadu_si128((const __m128i_u *)((const uint16_t *)numbers + at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

INLINE void gather_eight(const Cached *keys, const int32_t *slots, int head_dim, float *panel, int token,
                         const int is_bf16) {
    const void *key[8];
    for (int i = 0; i < 8; i++) key[i] = cached_at(keys, slots[i], is_bf16);
    int at = 0;
    for (; at + 8 <= head_dim; at += 8) {
        __m256 a[8], b[8];
        for (int i = 0; i < 8; i++) a[i] = load_eight(key[i], at, is_bf16);
        for (int i = 0; i < 8; i += 2) {
            b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
            a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
            a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
            a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
        }
        for (int i = 0; i < 4; i++) {
            _mm256_storeu_ps(panel + (at + i) * PANEL + token, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
            _mm256_storeu_ps(panel + (at + i + 4) * PANEL + token, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
        }
    }
    for (; at < head_dim; at++)
        for (int i = 0; i < 8; i++) panel[at * PANEL + token + i] = cached_number(key[i], at, is_bf16);
}
#endif

/* Asks for a token's numbers before they are needed: slots lie anywhere. */
INLINE void expect(const Cached *cached, int32_t slot, int head_dim) {
    const char *numbers = cached_at(cached, slot, cached->is_bf16);
    for (int i = 0; i < head_dim * (cached->is_bf16 ? 2 : 4); i += 64) __builtin_prefetch(numbers + i);
}

/* Keys of a chunk's tokens first..end, or a few more before them. */
static void gather_keys(const Cached *keys, const Cached *values, const int32_t *slots, int first, int end,
                        int head_dim, float *panels) {
    for (int at = first / 8 * 8; at < end; at += 8) {
        float *panel = panels + (int64_t)(at / PANEL) * PANEL * head_dim;
        const int stop = at + 8 < end ? at + 8 : end;
        for (int i = at; i < stop; i++) {
            if (i + 16 < end) expect(keys, slots[i + 16], head_dim);
            expect(values, slots[i], head_dim);
        }
#if WIDTH >= 8
        if (stop == at + 8) {
            if (keys->is_bf16)
                gather_eight(keys, slots + at, head_dim, panel, at % PANEL, 1);
            else
                gather_eight(keys, slots + at, head_dim, panel, at % PANEL, 0);
            continue;
        }
#endif
        for (int i = at; i < stop; i++) gather_key(keys, slots[i], head_dim, panel, i % PANEL);
    }
}

/* A run of a task's queries: their scores [num][CHUNK] and their states' values [num][size]. */
typedef struct {
    const float *scores;
    float *sums;
    int64_t size;
    int num;
} Queries;

/* sums[query][at..] += scores[query][k] * value of token k, for k from `first` to `end` in order. */
INLINE void weigh_slice(const Queries *queries, const Cached *values, const int32_t *slots, int first, int end, int at,
                        const int num_queries, const int num_vectors, const int is_bf16) {
    Vector sum[VALUE_QUERIES][VALUE_VECTORS];
    const float *scores = queries->scores;
#pragma GCC unroll 8
    for (int query = 0; query < num_queries; query++)
#pragma GCC unroll 8
        for (int i = 0; i < num_vectors; i++)
            sum[query][i] = load(queries->sums + query * queries->size + at + i * WIDTH);
    for (int k = first; k < end; k++) {
        const void *value = cached_at(values, slots[k], is_bf16);
        Vector parts[VALUE_VECTORS];
#pragma GCC unroll 8
        for (int i = 0; i < num_vectors; i++) parts[i] = load_either(value, at + i * WIDTH, is_bf16);
#pragma GCC unroll 8
        for (int query = 0; query < num_queries; query++) {
            const Vector probability = every(scores[query * CHUNK + k]);
#pragma GCC unroll 8
            for (int i = 0; i < num_vectors; i++) sum[query][i] = fused(probability, parts[i], sum[query][i]);
        }
    }
#pragma GCC unroll 8
    for (int query = 0; query < num_queries; query++)
#pragma GCC unroll 8
        for (int i = 0; i < num_vectors; i++)
            store(queries->sums + query * queries->size + at + i * WIDTH, sum[query][i]);
}

INLINE void weigh_queries(const Queries *queries, const Cached *values, const int32_t *slots, int first, int end,
                          int head_dim, const int num_queries, const int is_bf16) {
    int at = 0;
    for (; at + VALUE_VECTORS * WIDTH <= head_dim; at += VALUE_VECTORS * WIDTH)
        weigh_slice(queries, values, slots, first, end, at, num_queries, VALUE_VECTORS, is_bf16);
    for (; at + 2 * WIDTH <= head_dim; at += 2 * WIDTH)
        weigh_slice(queries, values, slots, first, end, at, num_queries, 2, is_bf16);
    for (; at < head_dim; at += WIDTH) /* lanes past head_dim are never read */
        weigh_slice(queries, values, slots, first, end, at, num_queries, 1, is_bf16);
}

INLINE void weigh_kind(const Queries *queries, const Cached *values, const int32_t *slots, int first, int end,
                       int head_dim, const int is_bf16) {
    switch (queries->num) {
        case 1: weigh_queries(queries, values, slots, first, end, head_dim, 1, is_bf16); break;
        case 2: weigh_queries(queries, values, slots, first, end, head_dim, 2, is_bf16); break;
        case 3: weigh_queries(queries, values, slots, first, end, head_dim, 3, is_bf16); break;
        case 4: weigh_queries(queries, values, slots, first, end, head_dim, 4, is_bf16); break;
        case 5: weigh_queries(queries, values, slots, first, end, head_dim, 5, is_bf16); break;
        default: weigh_queries(queries, values, slots, first, end, head_dim, 6, is_bf16); break;
    }
}

static void weigh(const Queries *queries, const Cached *values, const int32_t *slots, int first, int end,
                  int head_dim) {
    if (first >= end) return;
    if (values->is_bf16)
        weigh_kind(queries, values, slots, first, end, head_dim, 1);
    else
        weigh_kind(queries, values, slots, first, end, head_dim, 0);
}

/* Turns the scores of positions first..end of a chunk into exp(score - maximum), in place; returns their sum. */
static float soften(float *scores, int first, int end, float *maximum) {
    const int start = first / LANES * LANES, stop = (int)round_up(end, LANES);
    float lanes[LANES];
    for (int i = start; i < first; i++) scores[i] = -INFINITY;
    for (int i = end; i < stop; i++) scores[i] = -INFINITY;
    Vector largest = every(-INFINITY);
    for (int i = start; i < stop; i += WIDTH) largest = larger(load(scores + i), largest);
    store(lanes, largest);
    float top = lanes[0];
    for (int lane = 1; lane < WIDTH; lane++) top = lanes[lane] > top ? lanes[lane] : top;
    Vector sums[UNITS];
    for (int i = 0; i < UNITS; i++) sums[i] = every(0.0f);
    for (int i = start; i < stop; i += LANES)
        for (int unit = 0; unit < UNITS; unit++) {
            const Vector part = exponential(load(scores + i + unit * WIDTH) - every(top));
            store(scores + i + unit * WIDTH, part);
            sums[unit] += part;
        }
    for (int i = 0; i < UNITS; i++) store(lanes + i * WIDTH, sums[i]);
    *maximum = top;
    return sum_lanes(lanes);
}

static void merge(float *state, const float *later, int32_t head_dim) {
    const int size = (int)state_size(head_dim);
    if (later[STATE_MAX] == -INFINITY) return;
    if (state[STATE_MAX] == -INFINITY) {
        memcpy(state, later, (size_t)size * sizeof(float));
        return;
    }
    const float top = state[STATE_MAX] > later[STATE_MAX] ? state[STATE_MAX] : later[STATE_MAX];
    float factors[LANES] = {state[STATE_MAX] - top, later[STATE_MAX] - top};
    store(factors, exponential(load(factors)));
    const Vector ours = every(factors[0]), theirs = every(factors[1]);
    state[STATE_MAX] = top;
    state[STATE_SUM] = fused_one(later[STATE_SUM], factors[1], state[STATE_SUM] * factors[0]);
    for (int i = STATE_VALUES; i < size; i += WIDTH)
        store(state + i, fused(load(later + i), theirs, load(state + i) * ours));
}

/* Which positions of a chunk a row sees: first..shared_end of the shared tokens, shared_end..end of its own path. */
typedef struct {
    int first, shared_end, end;
} Span;

static Span span_of(const Path *path, int window, int base) {
    const int lowest = window && path->position - window + 1 > 0 ? path->position - window + 1 : 0;
    Span span = {lowest - base, path->shared_end - base, path->position + 1 - base};
    span.end = span.end > CHUNK ? CHUNK : span.end;
    span.first = span.first < 0 ? 0 : span.first;
    span.shared_end = span.shared_end < span.first ? span.first : span.shared_end;
    span.shared_end = span.shared_end > span.end ? span.end : span.shared_end;
    return span;
}

/* Scores of a block of queries against the shared tokens between the block's lowest and highest visible position. */
static void score_shared(const Scratch *scratch, int head_dim, const Span *spans, int group, int query, int num) {
    int first = CHUNK, end = 0;
    for (int row = query / group; row <= (query + num - 1) / group; row++) {
        if (spans[row].first >= spans[row].shared_end) continue;
        first = spans[row].first < first ? spans[row].first : first;
        end = spans[row].shared_end > end ? spans[row].shared_end : end;
    }
    if (first >= end) return;
    const Matrix keys = {scratch->keys, NULL, CHUNK, head_dim, 0};
    multiply(&keys, scratch->queries + (int64_t)query * head_dim, head_dim, num, first / PANEL,
             (end + PANEL - 1) / PANEL, STORE, scratch->scores + (int64_t)query * CHUNK, CHUNK);
}

/* Scores of a block of queries against those panels of the rest that hold a token one of its rows sees. */
static void score_rest(const Attention *attention, const Task *task, const Scratch *scratch, int group, int query,
                       int num) {
    const Path *paths = attention->paths + task->first_row;
    const Matrix keys = {scratch->rest_keys, NULL, (int32_t)scratch->rest_stride, attention->head_dim, 0};
    uint64_t wanted[64] = {0}; /* a bit per panel; more panels than bits share them */
    for (int row = query / group; row <= (query + num - 1) / group; row++)
        for (int i = 0; i < paths[row].num_links; i++) {
            const int place = scratch->places[attention->links[paths[row].first_link + i]];
            if (place >= 0) wanted[place / PANEL / 64 % 64] |= 1ull << (place / PANEL % 64);
        }
    for (int panel = 0; panel < scratch->rest_stride / PANEL; panel++)
        if (wanted[panel / 64 % 64] >> (panel % 64) & 1)
            multiply(&keys, scratch->queries + (int64_t)query * attention->head_dim, attention->head_dim, num, panel,
                     panel + 1, STORE, scratch->rest_scores + query * scratch->rest_stride, scratch->rest_stride);
}

/* Puts the keys that a chunk's scores need into panels. */
static void gather(const Attention *attention, const Task *task, const Scratch *scratch, const Span *spans, int base) {
    const Segment *segment = attention->segments + task->segment;
    const int head_dim = attention->head_dim;
    const Cached keys = cached_head(attention, attention->keys, task->kv_head);
    const Cached values = cached_head(attention, attention->values, task->kv_head);
    int first = CHUNK, end = 0, num = 0;
    for (int row = 0; row < task->num_rows; row++) {
        if (spans[row].first >= spans[row].shared_end) continue;
        first = spans[row].first < first ? spans[row].first : first;
        end = spans[row].shared_end > end ? spans[row].shared_end : end;
    }
    gather_keys(&keys, &values, segment->slots + base, first, end, head_dim, scratch->keys);
    for (int i = 0; i < segment->num_rest; i++) {
        const int at = segment->rest_positions[i] - base;
        scratch->places[i] = at >= 0 && at < CHUNK ? num++ : -1;
        if (scratch->places[i] < 0) continue;
        const int place = scratch->places[i];
        gather_key(&keys, segment->slots[segment->shared + i], head_dim,
                   scratch->rest_keys + (int64_t)(place / PANEL) * PANEL * head_dim, place % PANEL);
    }
}

INLINE Queries queries_from(const Scratch *scratch, float *states, int64_t size, int query, int num) {
    return (Queries){scratch->scores + (int64_t)query * CHUNK, states + query * size + STATE_VALUES, size, num};
}

/* Adds the values of the shared tokens to a block of queries; what only some of them see, one by one. */
static void weigh_shared(const Scratch *scratch, float *states, const Cached *values, const int32_t *slots,
                         int head_dim, const Span *spans, int group, int query, int num) {
    const int64_t size = state_size(head_dim);
    int first = 0, end = CHUNK;
    for (int i = query; i < query + num; i++) {
        first = spans[i / group].first > first ? spans[i / group].first : first;
        end = spans[i / group].shared_end < end ? spans[i / group].shared_end : end;
    }
    end = end < first ? first : end;
    for (int i = query; i < query + num; i++) {
        const Span *span = spans + i / group;
        const Queries one = queries_from(scratch, states, size, i, 1);
        weigh(&one, values, slots, span->first, span->shared_end < first ? span->shared_end : first, head_dim);
    }
    const Queries all = queries_from(scratch, states, size, query, num);
    weigh(&all, values, slots, first, end, head_dim);
    for (int i = query; i < query + num; i++) {
        const Span *span = spans + i / group;
        const Queries one = queries_from(scratch, states, size, i, 1);
        weigh(&one, values, slots, span->first > end ? span->first : end, span->shared_end, head_dim);
    }
}

/* Moves the scores of a row's own path to their positions, and says which slots they come from. */
static void place_path(const Attention *attention, const Segment *segment, const Path *path, const Scratch *scratch,
                       int base, int first_query, int group, int32_t *slots) {
    for (int i = 0; i < path->num_links; i++) {
        const int link = attention->links[path->first_link + i], place = scratch->places[link];
        if (place < 0) continue;
        const int at = segment->rest_positions[link] - base;
        slots[at] = segment->slots[segment->shared + link];
        for (int query = first_query; query < first_query + group; query++)
            scratch->scores[query * CHUNK + at] = scratch->rest_scores[query * scratch->rest_stride + place];
    }
}

/* The states of all queries of a task for one chunk. */
static void attend_chunk(const Attention *attention, const Task *task, const Scratch *scratch, int base,
                         float *states) {
    const Segment *segment = attention->segments + task->segment;
    const Path *paths = attention->paths + task->first_row;
    const int head_dim = attention->head_dim, group = attention->num_heads / attention->num_kv_heads;
    const int num_queries = task->num_rows * group;
    const int64_t size = state_size(head_dim);
    const Cached values = cached_head(attention, attention->values, task->kv_head);
    Span spans[GROUP_QUERIES];
    int32_t slots[CHUNK];

    for (int row = 0; row < task->num_rows; row++) spans[row] = span_of(paths + row, attention->window, base);
    gather(attention, task, scratch, spans, base);
    for (int query = 0; query < num_queries; query += MAX_PAIRS) {
        const int num = num_queries - query < MAX_PAIRS ? num_queries - query : MAX_PAIRS;
        score_shared(scratch, head_dim, spans, group, query, num);
        if (segment->num_rest) score_rest(attention, task, scratch, group, query, num);
    }
    for (int query = 0; query < num_queries; query++) {
        const Span *span = spans + query / group;
        float *state = states + query * size;
        memset(state, 0, (size_t)size * sizeof(float));
        state[STATE_MAX] = -INFINITY;
        if (query % group == 0 && span->shared_end < span->end)
            place_path(attention, segment, paths + query / group, scratch, base, query, group, slots);
        if (span->first < span->end)
            state[STATE_SUM] = soften(scratch->scores + query * CHUNK, span->first, span->end, state + STATE_MAX);
    }
    for (int query = 0; query < num_queries; query += VALUE_QUERIES) {
        const int num = num_queries - query < VALUE_QUERIES ? num_queries - query : VALUE_QUERIES;
        weigh_shared(scratch, states, &values, segment->slots + base, head_dim, spans, group, query, num);
    }
    for (int row = 0; row < task->num_rows && segment->num_rest; row++) {
        if (spans[row].shared_end >= spans[row].end) continue;
        place_path(attention, segment, paths + row, scratch, base, 0, 0, slots);
        for (int query = row * group; query < (row + 1) * group; query += VALUE_QUERIES) {
            const int num = (row + 1) * group - query < VALUE_QUERIES ? (row + 1) * group - query : VALUE_QUERIES;
            const Queries queries = queries_from(scratch, states, size, query, num);
            weigh(&queries, &values, slots, spans[row].shared_end, spans[row].end, head_dim);
        }
    }
}

static void attend(const Attention *attention, const Task *task, float *memory, float *states) {
    const int head_dim = attention->head_dim, group = attention->num_heads / attention->num_kv_heads;
    const int num_queries = task->num_rows * group;
    const int64_t size = state_size(head_dim);
    const Scratch scratch = cut_scratch(memory, head_dim, num_queries, attention->segments[task->segment].num_rest);
    for (int query = 0; query < num_queries; query++) {
        const int64_t row = task->first_row + query / group, head = (int64_t)task->kv_head * group + query % group;
        memcpy(scratch.queries + (int64_t)query * head_dim,
               attention->queries + row * attention->query_stride + head * head_dim, (size_t)head_dim * sizeof(float));
    }
    attend_chunk(attention, task, &scratch, task->first_chunk * CHUNK, states);
    for (int chunk = task->first_chunk + 1; chunk < task->end_chunk; chunk++) {
        attend_chunk(attention, task, &scratch, chunk * CHUNK, scratch.state);
        for (int query = 0; query < num_queries; query++)
            merge(states + query * size, scratch.state + query * size, head_dim);
    }
}

#endif
