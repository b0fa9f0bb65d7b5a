/* Vectors of the instruction set this file is compiled for. Fused multiply-add wherever the processor has it, so that
 * AVX2, AVX-512 and NEON give the same bits. */
#ifndef SPECEDGE_SIMD_H
#define SPECEDGE_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define WIDTH 16
#define NUM_REGISTERS 32
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define WIDTH 8
#define NUM_REGISTERS 16
#elif defined(__aarch64__)
#include <arm_neon.h>
#define WIDTH 4
#define NUM_REGISTERS 32
#else
#define WIDTH 4
#define NUM_REGISTERS 16
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Words __attribute__((vector_size(4 * WIDTH)));
typedef Vector AnyVector __attribute__((aligned(4), may_alias));
typedef Words AnyWords __attribute__((aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));

INLINE Vector load(const float *from) { return *(const AnyVector *)from; }
INLINE void store(float *to, Vector value) { *(AnyVector *)to = value; }
INLINE Words load_words(const void *from) { return *(const AnyWords *)from; }

#if WIDTH == 16
INLINE Vector every(float value) { return (Vector)_mm512_set1_ps(value); }
INLINE Vector fused(Vector a, Vector b, Vector c) { return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif WIDTH == 8
INLINE Vector every(float value) { return (Vector)_mm256_set1_ps(value); }
INLINE Vector fused(Vector a, Vector b, Vector c) { return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#elif defined(__aarch64__)
INLINE Vector every(float value) { return (Vector)vdupq_n_f32(value); }
INLINE Vector fused(Vector a, Vector b, Vector c) {
    return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
INLINE Vector every(float value) { return (Vector){value, value, value, value}; }
INLINE Vector fused(Vector a, Vector b, Vector c) { return a * b + c; }
#endif

#if WIDTH > 4 || defined(__aarch64__)
INLINE float fused_one(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
INLINE float fused_one(float a, float b, float c) { return a * b + c; }
#endif

INLINE Vector choose(Words condition, Vector yes, Vector no) {
    return (Vector)(((Words)yes & condition) | ((Words)no & ~condition));
}
#if WIDTH == 16
INLINE Vector larger(Vector a, Vector b) { return (Vector)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE Vector smaller(Vector a, Vector b) { return (Vector)_mm512_min_ps((__m512)a, (__m512)b); }
#elif WIDTH == 8
INLINE Vector larger(Vector a, Vector b) { return (Vector)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE Vector smaller(Vector a, Vector b) { return (Vector)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE Vector larger(Vector a, Vector b) { return choose(a > b, a, b); }
INLINE Vector smaller(Vector a, Vector b) { return choose(a < b, a, b); }
#endif

/* The bfloat16 halves of words, as floats. */
INLINE Vector low_halves(Words words) { return (Vector)(words << 16); }
INLINE Vector high_halves(Words words) { return (Vector)(words & (int32_t)0xffff0000); }

/* Numbers `at` on of an array of floats or bfloat16. */
INLINE Vector load_either(const void *numbers, int64_t at, const int is_bf16) {
    if (!is_bf16) return load((const float *)numbers + at);
    return (Vector)(__builtin_convertvector(*(const Halves *)((const uint16_t *)numbers + at), Words) << 16);
}

/* exp by range reduction and a polynomial (Cephes' coefficients): exactly 1 at 0, exactly 0 below -87.33. */
INLINE Vector exponential(Vector x) {
    const Vector lowest = every(-87.33f), magic = every(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    const Words is_zero = x < lowest;
    x = smaller(larger(x, lowest), every(88.37f));
    const Vector shifted = fused(x, every(1.44269504088896341f), magic);
    const Vector n = shifted - magic;
    Vector r = fused(n, every(-0.693359375f), x);
    r = fused(n, every(2.12194440e-4f), r);
    Vector p = every(1.9875691500e-4f);
    p = fused(p, r, every(1.3981999507e-3f));
    p = fused(p, r, every(8.3334519073e-3f));
    p = fused(p, r, every(4.1665795894e-2f));
    p = fused(p, r, every(1.6666665459e-1f));
    p = fused(p, r, every(5.0000001201e-1f));
    p = fused(p, r * r, r) + every(1.0f);
    const Vector power = (Vector)(((Words)shifted + 127) << 23);
    return (Vector)((Words)(p * power) & ~is_zero);
}

/* The sum of 16 lanes, halves onto halves. */
INLINE float sum_lanes(float *lanes) {
    for (int half = 8; half; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

#endif
