/* What is done to one row at a time. */
#ifndef SPECEDGE_ROWS_H
#define SPECEDGE_ROWS_H

#include "native.h"
#include "simd.h"

/* The root mean square's inverse; squares are summed in 16 lanes by index. */
INLINE float inverse_rms(const float *row, int num, float eps) {
    Vector sums[UNITS];
    float lanes[LANES];
    for (int i = 0; i < UNITS; i++) sums[i] = every(0.0f);
    int at = 0;
    for (; at + LANES <= num; at += LANES)
        for (int i = 0; i < UNITS; i++) {
            const Vector values = load(row + at + i * WIDTH);
            sums[i] = fused(values, values, sums[i]);
        }
    for (int i = 0; i < UNITS; i++) store(lanes + i * WIDTH, sums[i]);
    for (int lane = 0; at < num; at++, lane++) lanes[lane] = fused_one(row[at], row[at], lanes[lane]);
    return 1.0f / sqrtf(sum_lanes(lanes) / (float)num + eps);
}

static void normalize(const float *row, const float *weight, int32_t num, float eps, float *out) {
    const float scale = inverse_rms(row, num, eps);
    for (int i = 0; i < num; i++) out[i] = row[i] * scale * weight[i];
}

/* out may be head itself. */
static void rotate(const float *head, const float *weight, int32_t head_dim, float eps, const float *cosines,
                   const float *sines, float scale, float *out) {
    const int half = head_dim / 2;
    const float inverse = weight ? inverse_rms(head, head_dim, eps) : 1.0f;
    for (int i = 0; i < half; i++) {
        float low = head[i] * inverse, high = head[i + half] * inverse;
        if (weight) {
            low *= weight[i];
            high *= weight[i + half];
        }
        out[i] = (low * cosines[i] - high * sines[i]) * scale;
        out[i + half] = (high * cosines[i] + low * sines[i]) * scale;
    }
}

#endif
