/* Products of few rows with packed weights. Every output is one chain of multiply-adds over the inputs in order,
 * whatever the number of rows that are computed with it. */
#ifndef SPECEDGE_GEMM_H
#define SPECEDGE_GEMM_H

#include "native.h"
#include "simd.h"

#define ROW_BYTES (384 << 10) /* of inputs that stay in the cache while the weights pass */
/* A unit is a pair of vectors of a panel: outputs u * WIDTH on, and 16 + u * WIDTH on. */
#define UNITS (LANES / WIDTH)
#if NUM_REGISTERS == 32
#define MAX_PAIRS 12 /* of sums kept in registers */
#else
#define MAX_PAIRS 6
#endif

/* Where a unit's first outputs are in a row. */
INLINE int column(int unit) { return unit / UNITS * PANEL + unit % UNITS * WIDTH; }

/* Sums of `num_rows` rows and `num_units` consecutive units into out[row], the first unit's column being 0. */
INLINE void tile_of(const float *rows, int64_t stride, const char *panels, int64_t panel_bytes, int first_unit,
                    int num_inputs, const int num_rows, const int num_units, const int is_bf16, float *out,
                    int64_t out_stride) {
    Vector sums[MAX_PAIRS][4][2]; /* constant bounds: the compiler keeps what is used in registers */
    const char *weights[4];
    const int64_t step = is_bf16 ? PANEL * 2 : PANEL * 4;
#pragma GCC unroll 16
    for (int unit = 0; unit < num_units; unit++) {
        const int at = first_unit + unit;
        weights[unit] = panels + at / UNITS * panel_bytes + at % UNITS * (WIDTH * 4);
#pragma GCC unroll 16
        for (int row = 0; row < num_rows; row++) sums[row][unit][0] = sums[row][unit][1] = every(0.0f);
    }
    for (int input = 0; input < num_inputs; input++) {
        Vector pair[4][2];
#pragma GCC unroll 16
        for (int unit = 0; unit < num_units; unit++) {
            const char *at = weights[unit] + input * step;
            if (is_bf16) {
                const Words words = load_words(at);
                pair[unit][0] = low_halves(words);
                pair[unit][1] = high_halves(words);
            } else {
                pair[unit][0] = load((const float *)at);
                pair[unit][1] = load((const float *)at + LANES);
            }
        }
#pragma GCC unroll 16
        for (int row = 0; row < num_rows; row++) {
            const Vector value = every(rows[row * stride + input]);
#pragma GCC unroll 16
            for (int unit = 0; unit < num_units; unit++) {
                sums[row][unit][0] = fused(value, pair[unit][0], sums[row][unit][0]);
                sums[row][unit][1] = fused(value, pair[unit][1], sums[row][unit][1]);
            }
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 16
        for (int unit = 0; unit < num_units; unit++) {
            float *at = out + row * out_stride + column(first_unit + unit) - column(first_unit);
            store(at, sums[row][unit][0]);
            store(at + LANES, sums[row][unit][1]);
        }
}

typedef void Tile(const float *, int64_t, const char *, int64_t, int, int, float *, int64_t);

#define DEFINE(ROWS, NUM_UNITS, NAME, IS_BF16)                                                                         \
    static void NAME##ROWS##_##NUM_UNITS(const float *rows, int64_t stride, const char *panels, int64_t panel_bytes,   \
                                         int first_unit, int num_inputs, float *out, int64_t out_stride) {             \
        tile_of(rows, stride, panels, panel_bytes, first_unit, num_inputs, ROWS, NUM_UNITS, IS_BF16, out, out_stride); \
    }
#define TILES(ROWS, NUM_UNITS) DEFINE(ROWS, NUM_UNITS, float_, 0) DEFINE(ROWS, NUM_UNITS, bf16_, 1)
#define PAIR(ROWS, NUM_UNITS) {float_##ROWS##_##NUM_UNITS, bf16_##ROWS##_##NUM_UNITS}

TILES(1, 1) TILES(2, 1) TILES(3, 1) TILES(4, 1) TILES(5, 1) TILES(6, 1)
TILES(1, 2) TILES(2, 2) TILES(3, 2)
TILES(1, 4)
#if MAX_PAIRS == 12
TILES(7, 1) TILES(8, 1) TILES(9, 1) TILES(10, 1) TILES(11, 1) TILES(12, 1)
TILES(4, 2) TILES(5, 2) TILES(6, 2)
TILES(2, 4) TILES(3, 4)
#define WIDE(...) , __VA_ARGS__
#else
#define WIDE(...)
#endif

/* By number of units, rows - 1 and kind of weights. */
static Tile *const ONE_UNIT[MAX_PAIRS][2] = {
    PAIR(1, 1), PAIR(2, 1), PAIR(3, 1), PAIR(4, 1), PAIR(5, 1), PAIR(6, 1)
    WIDE(PAIR(7, 1), PAIR(8, 1), PAIR(9, 1), PAIR(10, 1), PAIR(11, 1), PAIR(12, 1))};
static Tile *const TWO_UNITS[MAX_PAIRS / 2][2] = {
    PAIR(1, 2), PAIR(2, 2), PAIR(3, 2)
    WIDE(PAIR(4, 2), PAIR(5, 2), PAIR(6, 2))};
static Tile *const FOUR_UNITS[MAX_PAIRS / 4][2] = {
    PAIR(1, 4)
    WIDE(PAIR(2, 4), PAIR(3, 4))};

/* Writes one row's unit, its sums being `low` and `high`. */
INLINE void finish(const Matrix *matrix, int unit, Vector low, Vector high, Epilogue epilogue, float *out) {
    if (epilogue == GATE) {
        const Vector gated = low / (every(1.0f) + exponential(-low));
        store(out + unit / UNITS * LANES + unit % UNITS * WIDTH, gated * high);
        return;
    }
    const int first = column(unit), second = first + LANES;
    if (matrix->bias) {
        low += load(matrix->bias + first);
        high += load(matrix->bias + second);
    }
    if (second + WIDTH <= matrix->num_outputs) {
        store(out + first, epilogue == ADD ? load(out + first) + low : low);
        store(out + second, epilogue == ADD ? load(out + second) + high : high);
        return;
    }
    for (int lane = 0; lane < WIDTH; lane++) { /* the last panel is not full */
        if (first + lane < matrix->num_outputs)
            out[first + lane] = low[lane] + (epilogue == ADD ? out[first + lane] : 0);
        if (second + lane < matrix->num_outputs)
            out[second + lane] = high[lane] + (epilogue == ADD ? out[second + lane] : 0);
    }
}

/* Rows are cut in blocks of almost equal size, so that none is left with few rows. */
static void multiply(const Matrix *matrix, const float *rows, int64_t row_stride, int32_t num_rows, int32_t first_panel,
                     int32_t end_panel, Epilogue epilogue, float *out, int64_t out_stride) {
    const int num_inputs = matrix->num_inputs, is_bf16 = matrix->is_bf16;
    const int64_t panel_bytes = (int64_t)num_inputs * PANEL * (is_bf16 ? 2 : 4);
    const int num_blocks = (num_rows + MAX_PAIRS - 1) / MAX_PAIRS;
    const int fit = (int)(ROW_BYTES / ((int64_t)num_inputs * 4 * MAX_PAIRS));
    const int most = fit > 2 ? fit : 2; /* blocks per pass over the weights */
    float tile[MAX_PAIRS * 4 * PANEL];
    for (int start = 0; start < num_blocks; start += most) {
        const int stop = start + most < num_blocks ? start + most : num_blocks;
        const int largest = (num_rows + num_blocks - 1) / num_blocks, end_unit = end_panel * UNITS;
        int num_units;
        for (int unit = first_panel * UNITS; unit < end_unit; unit += num_units) {
            const int left = end_unit - unit;
            num_units = largest <= MAX_PAIRS / 4 && left >= 4 ? 4 : largest <= MAX_PAIRS / 2 && left >= 2 ? 2 : 1;
            Tile *const(*tiles)[2] = num_units == 4 ? FOUR_UNITS : num_units == 2 ? TWO_UNITS : ONE_UNIT;
            const int is_plain = epilogue == STORE && !matrix->bias &&
                                 column(unit + num_units - 1) + LANES + WIDTH <= matrix->num_outputs;
            for (int block = start; block < stop; block++) {
                const int first = (int)((int64_t)num_rows * block / num_blocks);
                const int end = (int)((int64_t)num_rows * (block + 1) / num_blocks);
                tiles[end - first - 1][is_bf16](
                    rows + first * row_stride, row_stride, matrix->panels, panel_bytes, unit, num_inputs,
                    is_plain ? out + first * out_stride + column(unit) : tile, is_plain ? out_stride : 4 * PANEL);
                for (int row = first; row < end && !is_plain; row++)
                    for (int i = unit; i < unit + num_units; i++) {
                        const float *pair = tile + (row - first) * 4 * PANEL + column(i) - column(unit);
                        finish(matrix, i, load(pair), load(pair + LANES), epilogue, out + row * out_stride);
                    }
            }
        }
    }
}

#endif
