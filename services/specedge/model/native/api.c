/* What Python calls, beside specedge_forward. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#define EXPORT __attribute__((visibility("default")))

extern const Kernels specedge_plain;
#if defined(__x86_64__)
extern const Kernels specedge_avx2, specedge_avx512;
#endif

/* The widest instruction set that this processor has, no wider than `limit`: 0 plain, 1 AVX2, 2 AVX-512. */
static const Kernels *best_kernels(int32_t limit) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (limit >= 2 && has_avx2 && __builtin_cpu_supports("avx512f")) return &specedge_avx512;
    if (limit >= 1 && has_avx2) return &specedge_avx2;
#endif
    (void)limit;
    return &specedge_plain;
}

EXPORT void specedge_free(Engine *engine) {
    if (!engine) return;
    const int32_t num_threads = engine->pool ? pool_size(engine->pool) : 0;
    pool_free(engine->pool);
    for (int32_t i = 0; i < num_threads && engine->scratch; i++) free(engine->scratch[i]);
    free(engine->scratch);
    free(engine->scratch_capacity);
    free(engine->plan.memory);
    free(engine->buffers.memory);
    free(engine->states);
    free(engine);
}

/* NULL: out of memory. The model's weights and cache stay the caller's. */
EXPORT Engine *specedge_new(const Model *model, float attention_scale, int32_t num_threads, int32_t limit) {
    Engine *engine = calloc(1, sizeof(Engine));
    if (!engine) return NULL;
    engine->model = *model;
    engine->attention_scale = attention_scale;
    engine->kernels = best_kernels(limit);
    engine->pool = pool_new(num_threads);
    engine->scratch = calloc((size_t)num_threads, sizeof(float *));
    engine->scratch_capacity = calloc((size_t)num_threads, sizeof(int64_t));
    if (engine->pool && engine->scratch && engine->scratch_capacity) return engine;
    specedge_free(engine);
    return NULL;
}

EXPORT const char *specedge_message(const Engine *engine) { return engine->message; }
EXPORT const char *specedge_kernels(const Engine *engine) { return engine->kernels->name; }
EXPORT int32_t specedge_num_threads(const Engine *engine) { return pool_size(engine->pool); }

/* Whether single-precision numbers are all bfloat16 numbers too. */
EXPORT int32_t specedge_is_bf16(const uint32_t *numbers, int64_t num) {
    uint32_t lost = 0;
    for (int64_t i = 0; i < num; i++) lost |= numbers[i];
    return (lost & 0xffff) == 0;
}

static int64_t source_of(int64_t panel, int32_t lane, int32_t num_outputs, int32_t is_gated) {
    if (!is_gated) return panel * PANEL + lane < num_outputs ? panel * PANEL + lane : -1;
    const int64_t at = panel * LANES + lane % LANES, half = num_outputs / 2;
    return at >= half ? -1 : lane < LANES ? at : half + at;
}

/* Lays weights [num_outputs, num_inputs] out in panels; gated: the first half are gates, the second their ups. */
EXPORT void specedge_pack(const void *weights, int32_t is_bf16, int32_t num_outputs, int32_t num_inputs,
                          int32_t to_bf16, int32_t is_gated, void *panels) {
    const int64_t num_panels = is_gated ? (num_outputs / 2 + LANES - 1) / LANES : (num_outputs + PANEL - 1) / PANEL;
    for (int64_t panel = 0; panel < num_panels; panel++)
        for (int32_t lane = 0; lane < PANEL; lane++) {
            const int64_t source = source_of(panel, lane, num_outputs, is_gated);
            const int64_t place = panel * num_inputs * PANEL;
            for (int32_t i = 0; i < num_inputs; i++) {
                uint32_t bits = 0;
                if (source >= 0 && is_bf16)
                    bits = (uint32_t)((const uint16_t *)weights)[source * num_inputs + i] << 16;
                else if (source >= 0)
                    bits = ((const uint32_t *)weights)[source * num_inputs + i];
                if (to_bf16)
                    ((uint16_t *)panels)[place + i * PANEL + lane % LANES * 2 + lane / LANES] = (uint16_t)(bits >> 16);
                else
                    ((uint32_t *)panels)[place + i * PANEL + lane] = bits;
            }
        }
}
