// Vectors of 16 floats in the compiler's own notation, so that one source serves every CPU: the
// compiler splits them into what the machine has (one AVX-512, two AVX2, four NEON registers).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_BODY __attribute__((always_inline))  // for a lambda

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

// The upper half of a float: 8 bits of exponent, 7 of fraction.
struct bf16 {
    uint16_t bits;
};

template <class Vector, class Element>
INLINE Vector read(const Element* from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

INLINE Floats splat(float x) { return Floats{} + x; }

// --- load and store, with conversion -------------------------------------------------------------

INLINE Floats load(const float* from) { return read<Floats>(from); }
INLINE Floats load(const bf16* from) {
    return (Floats)(__builtin_convertvector(read<Halves>(from), Words) << 16);
}

INLINE void store(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }

INLINE Halves to_halves(Floats v) {  // nearest, ties to even; NaN stays NaN
#ifdef __AVX512BF16__
    return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
    Words bits = (Words)v;
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = v == v ? rounded : Words{} + 0x7fc0;
    return __builtin_convertvector(rounded, Halves);
#endif
}
INLINE void store(bf16* to, Floats v) {
    Halves halves = to_halves(v);
    std::memcpy(to, &halves, sizeof halves);
}

// The first n lanes; the others are zero, or are not stored.
template <class T>
INLINE Floats load(const T* from, int n) {
    if (n >= LANES) return load(from);
    T whole[LANES] = {};
    std::memcpy(whole, from, n * sizeof(T));
    return load(whole);
}
template <class T>
INLINE void store(T* to, Floats v, int n) {
    if (n >= LANES) return store(to, v);
    T whole[LANES];
    store(whole, v);
    std::memcpy(to, whole, n * sizeof(T));
}

// body(first, n) for every vector of a row; n is LANES, known to the compiler, in all but the last.
template <class Body>
INLINE void for_each_vector(int width, const Body& body) {
    int c = 0;
    for (; c + LANES <= width; c += LANES) body(c, LANES);
    if (c < width) body(c, width - c);
}

// What v becomes when it is stored as T and read back.
INLINE Floats round_as(Floats v, const float*) { return v; }
INLINE Floats round_as(Floats v, const bf16*) {
    return (Floats)(__builtin_convertvector(to_halves(v), Words) << 16);
}

// --- over the lanes ------------------------------------------------------------------------------

template <class Vector>
INLINE Vector swap8(Vector v) {
    return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}
template <class Vector>
INLINE Vector swap4(Vector v) {
    return __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
}
template <class Vector>
INLINE Vector swap2(Vector v) {
    return __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
}
template <class Vector>
INLINE Vector swap1(Vector v) {
    return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

#ifdef __AVX512F__  // one instruction, which the compiler does not find by itself
INLINE Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE Floats smaller(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
#endif

INLINE float sum_lanes(Floats v) {
    v += swap8(v);
    v += swap4(v);
    v += swap2(v);
    return (v + swap1(v))[0];
}
INLINE float max_lanes(Floats v) {
    v = larger(v, swap8(v));
    v = larger(v, swap4(v));
    v = larger(v, swap2(v));
    return larger(v, swap1(v))[0];
}

INLINE Ints lane_numbers() {
    return Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}

// --- exponential ---------------------------------------------------------------------------------

// x becomes 2^x to about 1e-7; below -126 it is exactly 0, above 127 it stays at 2^127.
// x = n + f with n whole: adding 1.5 * 2^23 leaves n in the low bits, the shift makes it the exponent.
// Several vectors go step by step together: one alone would wait for itself at every step.
template <int N>
INLINE void exp2(Floats (&x)[N]) {
    const float magic = 12582912.0f;
    const float series[] = {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                            2.4022651e-1f, 6.9314718e-1f, 1.0f};  // ln(2)^k / k!
    Floats shifted[N], f[N], p[N];
    for (int j = 0; j < N; j++) shifted[j] = smaller(larger(x[j], splat(-126.0f)), splat(127.0f));
    for (int j = 0; j < N; j++) f[j] = shifted[j];
    for (int j = 0; j < N; j++) shifted[j] += magic;
    for (int j = 0; j < N; j++) f[j] -= shifted[j] - magic;
    for (int j = 0; j < N; j++) p[j] = splat(1.5403530e-4f);
    for (float term : series)
        for (int j = 0; j < N; j++) p[j] = p[j] * f[j] + term;
    for (int j = 0; j < N; j++) {
        Floats result = (Floats)((Ints)p[j] + ((Ints)shifted[j] << 23));
        x[j] = x[j] < -126.0f ? Floats{} : result;
    }
}
INLINE Floats exp2(Floats x) {
    Floats one[1] = {x};
    exp2(one);
    return one[0];
}

// 1 / x to about 1e-7 for normal numbers: division is the slowest thing a vector unit does.
INLINE Floats reciprocal(Floats x) {
#ifdef __AVX512F__
    Floats guess = (Floats)_mm512_rcp14_ps((__m512)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// --- threads -------------------------------------------------------------------------------------

// body(i) for i in [0, n), in order when one thread does it; tasks go to whoever is free.
template <class Body>
inline void for_each_task(int64_t n, int threads, const Body& body) {
    if (threads <= 1 || n <= 1) {
        for (int64_t i = 0; i < n; i++) body(i);
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < n; i++) body(i);
}
