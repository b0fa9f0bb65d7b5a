/* Checks a batch and divides its attention into tasks. */
#include "engine.h"

#include <stdio.h>
#include <string.h>

enum { GROUPS_PER_THREAD = 3 };

#define REFUSE(...) return snprintf(engine->message, MESSAGE_SIZE, __VA_ARGS__), 0

static int check_rows(Engine *engine, const Batch *batch) {
    const Model *model = &engine->model;
    for (int32_t row = 0; row < batch->num_rows; row++) {
        const long long token = batch->token_ids[row], slot = batch->slots[row];
        const int32_t position = batch->positions[row];
        if (token < 0 || token >= model->vocab_size)
            REFUSE("row %d: token %lld is not below the vocabulary's %d", row, token, model->vocab_size);
        if (slot < 0 || slot >= model->num_slots)
            REFUSE("row %d: slot %lld is not below the cache's %d", row, slot, model->num_slots);
        if (position < 0 || position >= batch->num_positions)
            REFUSE("row %d: position %d is not below %d", row, position, batch->num_positions);
    }
    for (int32_t i = 0; i < batch->num_wanted; i++)
        if (batch->wanted[i] < 0 || batch->wanted[i] >= batch->num_rows)
            REFUSE("wanted row %lld is not below the batch's %d", (long long)batch->wanted[i], batch->num_rows);
    for (int32_t i = 0; i < batch->total_context; i++)
        if (batch->context_slots[i] < 0 || batch->context_slots[i] >= model->num_slots)
            REFUSE("context slot %d is not below the cache's %d", batch->context_slots[i], model->num_slots);
    return 1;
}

static int check_segments(Engine *engine, const Batch *batch) {
    const int32_t num = batch->num_segments;
    if (batch->row_starts[0] || batch->row_starts[num] != batch->num_rows || batch->context_starts[0] ||
        batch->context_starts[num] != batch->total_context || batch->tail_starts[0] ||
        batch->tail_starts[num] != batch->total_tail)
        REFUSE("the segments do not cover the batch's %d rows", batch->num_rows);
    for (int32_t i = 0; i < num; i++) {
        const int32_t num_rows = batch->row_starts[i + 1] - batch->row_starts[i];
        const int32_t num_tail = batch->tail_starts[i + 1] - batch->tail_starts[i];
        const int32_t num_context = batch->context_starts[i + 1] - batch->context_starts[i];
        if (num_rows < 1 || num_tail != batch->num_tails[i] || num_tail < num_rows || num_context < num_tail ||
            (batch->is_chain[i] ? num_tail != num_rows : num_tail > 64 * (int64_t)batch->num_words))
            REFUSE("segment %d: %d rows, %d tail tokens and %d tokens of context do not fit together", i, num_rows,
                   num_tail, num_context);
    }
    return 1;
}

/* The first bit from `from` on that equals `value`, or `num`. */
static int32_t find_bit(const uint64_t *words, int32_t from, int32_t num, int value) {
    while (from < num) {
        const uint64_t word = (value ? words[from / 64] : ~words[from / 64]) >> (from % 64);
        if (word) {
            from += __builtin_ctzll(word);
            return from < num ? from : num;
        }
        from = (from / 64 + 1) * 64;
    }
    return num;
}

/* How many tail tokens, from the first on, form a chain that every row sees up to itself. */
static int32_t shared_tail(const Batch *batch, int32_t segment) {
    const int32_t num_tail = batch->num_tails[segment];
    if (batch->is_chain[segment]) return num_tail;
    const int32_t num_prefix = batch->context_starts[segment + 1] - batch->context_starts[segment] - num_tail;
    const int32_t *positions = batch->tail_positions + batch->tail_starts[segment];
    int32_t shared = 0;
    while (shared < num_tail && positions[shared] == num_prefix + shared) shared++;
    for (int32_t row = batch->row_starts[segment]; row < batch->row_starts[segment + 1]; row++) {
        const uint64_t *words = batch->mask_words + (int64_t)row * batch->num_words;
        const int32_t own = num_tail - (batch->row_starts[segment + 1] - row);
        const int32_t lead = find_bit(words, 0, num_tail, 0);
        const int32_t limit = lead <= own ? lead : find_bit(words, own + 1, num_tail, 1);
        shared = limit < shared ? limit : shared;
    }
    return shared;
}

/* Lists the tokens of a row's path beyond the shared ones in position order. */
static int plan_path(Engine *engine, const Batch *batch, const Segment *segment, int32_t row, int32_t num_tail,
                     int32_t num_prefix, int32_t *num_links) {
    Path *path = engine->plan.paths + row;
    const int32_t own = num_tail - (segment->first_row + segment->num_rows - row),
                  num_shared = segment->shared - num_prefix;
    const int32_t end = num_prefix + (own + 1 < num_shared ? own + 1 : num_shared);
    *path = (Path){batch->positions[row], end, *num_links, 0};
    int32_t *links = engine->plan.links + *num_links;
    if (own >= num_shared) {
        const uint64_t *words = batch->mask_words + (int64_t)row * batch->num_words;
        for (int32_t bit = find_bit(words, num_shared, num_tail, 1); bit < num_tail;
             bit = find_bit(words, bit + 1, num_tail, 1)) {
            const int32_t link = bit - num_shared;
            int32_t at = path->num_links++;
            for (; at && segment->rest_positions[links[at - 1]] > segment->rest_positions[link]; at--)
                links[at] = links[at - 1];
            links[at] = link;
        }
    }
    for (int32_t i = 0; i < path->num_links; i++)
        if (segment->rest_positions[links[i]] != end + i)
            REFUSE("row %d: the tokens it sees are not one at each position, at %d", row, end + i);
    if (path->position + 1 != end + path->num_links)
        REFUSE("row %d: it is at position %d and sees %d tokens, itself included", row, path->position,
               end + path->num_links);
    *num_links += path->num_links;
    return 1;
}

static int64_t count_links(const Batch *batch) {
    int64_t num = 0;
    for (int64_t i = 0; i < (int64_t)batch->num_rows * batch->num_words; i++)
        num += __builtin_popcountll(batch->mask_words[i]);
    return num;
}

static void plan_tasks(Engine *engine, const Batch *batch, int split) {
    Plan *plan = &engine->plan;
    const int32_t group = engine->model.num_heads / engine->model.num_kv_heads;
    const int64_t size = state_size(engine->model.head_dim);
    plan->num_tasks = plan->num_groups = plan->most_rest = 0;
    plan->num_states = 0;
    for (int32_t i = 0; i < batch->num_segments; i++) {
        const Segment *segment = plan->segments + i;
        const int32_t end = segment->first_row + segment->num_rows;
        plan->most_rest = segment->num_rest > plan->most_rest ? segment->num_rest : plan->most_rest;
        for (int32_t first = segment->first_row; first < end; first += plan->rows_per_group) {
            const int32_t num_rows = end - first < plan->rows_per_group ? end - first : plan->rows_per_group;
            int32_t last = 0;
            for (int32_t row = first; row < first + num_rows; row++)
                last = plan->paths[row].position > last ? plan->paths[row].position : last;
            const int32_t num_chunks = last / CHUNK + 1;
            for (int32_t head = 0; head < engine->model.num_kv_heads; head++) {
                plan->groups[plan->num_groups++] = plan->num_tasks;
                for (int32_t chunk = 0; chunk < (split ? num_chunks : 1); chunk++) {
                    plan->tasks[plan->num_tasks] =
                        (Task){i, first, num_rows, head, chunk, split ? chunk + 1 : num_chunks};
                    plan->states[plan->num_tasks++] = plan->num_states;
                    plan->num_states += num_rows * group * size;
                }
            }
        }
    }
    plan->groups[plan->num_groups] = plan->num_tasks;
}

int32_t rows_per_group(int32_t group) { return group < GROUP_QUERIES ? GROUP_QUERIES / group : 1; }

static void *piece(char **memory, int64_t num_bytes) {
    void *start = *memory;
    *memory += round_up(num_bytes, 64);
    return start;
}

int plan_batch(Engine *engine, const Batch *batch) {
    Plan *plan = &engine->plan;
    const Model *model = &engine->model;
    if (!check_rows(engine, batch) || !check_segments(engine, batch)) return 0;
    plan->rows_per_group = rows_per_group(model->num_heads / model->num_kv_heads);
    int64_t num_groups = 0, num_tasks = 0;
    for (int32_t i = 0; i < batch->num_segments; i++) {
        const int32_t num_rows = batch->row_starts[i + 1] - batch->row_starts[i];
        const int64_t num = (num_rows + plan->rows_per_group - 1) / plan->rows_per_group * model->num_kv_heads;
        num_groups += num;
        num_tasks += num * ((batch->context_starts[i + 1] - batch->context_starts[i]) / CHUNK + 1);
    }
    const int split = pool_size(engine->pool) > 1 && num_groups < (int64_t)GROUPS_PER_THREAD * pool_size(engine->pool);
    num_tasks = split ? num_tasks : num_groups;
    const int64_t sizes[] = {batch->num_segments * (int64_t)sizeof(Segment), batch->num_rows * (int64_t)sizeof(Path),
                             count_links(batch) * (int64_t)sizeof(int32_t),  num_tasks * (int64_t)sizeof(Task),
                             (num_groups + 1) * (int64_t)sizeof(int32_t),    num_tasks * (int64_t)sizeof(int64_t)};
    int64_t total = 0;
    for (int i = 0; i < 6; i++) total += round_up(sizes[i], 64);
    if (!reserve(&plan->memory, &plan->capacity, total)) REFUSE("out of memory: %lld bytes of plan", (long long)total);
    char *memory = plan->memory;
    plan->segments = piece(&memory, sizes[0]);
    plan->paths = piece(&memory, sizes[1]);
    plan->links = piece(&memory, sizes[2]);
    plan->tasks = piece(&memory, sizes[3]);
    plan->groups = piece(&memory, sizes[4]);
    plan->states = piece(&memory, sizes[5]);
    int32_t num_links = 0;
    for (int32_t i = 0; i < batch->num_segments; i++) {
        const int32_t num_tail = batch->num_tails[i], num_shared = shared_tail(batch, i);
        const int32_t num_prefix = batch->context_starts[i + 1] - batch->context_starts[i] - num_tail;
        Segment *segment = plan->segments + i;
        *segment = (Segment){.first_row = batch->row_starts[i],
                             .num_rows = batch->row_starts[i + 1] - batch->row_starts[i],
                             .slots = batch->context_slots + batch->context_starts[i],
                             .rest_positions = batch->tail_positions + batch->tail_starts[i] + num_shared,
                             .shared = num_prefix + num_shared,
                             .num_rest = num_tail - num_shared};
        for (int32_t row = segment->first_row; row < segment->first_row + segment->num_rows; row++)
            if (!plan_path(engine, batch, segment, row, num_tail, num_prefix, &num_links)) return 0;
    }
    plan_tasks(engine, batch, split);
    return 1;
}
