// Vectors of one register in the compiler's own notation, so that one source serves every CPU:
// 16 floats with AVX-512, 8 with AVX, 4 elsewhere (NEON, SSE).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "pool.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_BODY __attribute__((always_inline))  // for a lambda

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

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

// Lane i of the result is lane FROM[i] of a, or of b from LANES on.
template <int... FROM, class Vector>
INLINE Vector pick(Vector a, Vector b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, FROM...);
#else
    return __builtin_shuffle(a, b, Ints{FROM...});
#endif
}

template <int DISTANCE, class Vector, int... I>
INLINE Vector swap(Vector v, std::integer_sequence<int, I...>) {
    return pick<(I ^ DISTANCE)...>(v, v);
}
// Of two rows, the blocks of SIZE lanes that belong to the first, or second, after an exchange:
//   a: A0 A1   b: B0 B1   ->   first: A0 B0   second: A1 B1
template <int SIZE, class Vector, int... I>
INLINE Vector first_blocks(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return pick<(I & SIZE ? I - SIZE + LANES : I)...>(a, b);
}
template <int SIZE, class Vector, int... I>
INLINE Vector second_blocks(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return pick<(I & SIZE ? I + LANES : I + SIZE)...>(a, b);
}
constexpr auto ALL_LANES = std::make_integer_sequence<int, LANES>{};

#ifdef __AVX512F__  // one instruction, which the compiler does not find by itself
INLINE Floats larger(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE Floats smaller(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
#endif

// One number from all lanes, by halving.
template <int DISTANCE = LANES / 2, class Combine>
INLINE float reduce(Floats v, const Combine& combine) {
    v = combine(v, swap<DISTANCE>(v, ALL_LANES));
    if constexpr (DISTANCE > 1) return reduce<DISTANCE / 2>(v, combine);
    return v[0];
}
INLINE float sum_lanes(Floats v) {
    return reduce(v, [](Floats a, Floats b) INLINE_BODY { return a + b; });
}
INLINE float max_lanes(Floats v) {
    return reduce(v, [](Floats a, Floats b) INLINE_BODY { return larger(a, b); });
}

template <int... I>
INLINE Ints lane_numbers(std::integer_sequence<int, I...>) {
    return Ints{I...};
}
INLINE Ints lane_numbers() { return lane_numbers(ALL_LANES); }

// rows[i][j] <-> rows[j][i]: each round exchanges off-diagonal blocks of half the size.
template <int SIZE = LANES / 2>
INLINE void transpose(Words* rows) {
    for (int i = 0; i < LANES; i++)
        if (!(i & SIZE)) {
            Words a = rows[i], b = rows[i + SIZE];
            rows[i] = first_blocks<SIZE>(a, b, ALL_LANES);
            rows[i + SIZE] = second_blocks<SIZE>(a, b, ALL_LANES);
        }
    if constexpr (SIZE > 1) transpose<SIZE / 2>(rows);
}

// --- exponential ---------------------------------------------------------------------------------

// x becomes 2^x to about 1e-7; below -126 it is exactly 0, above 127 it stays at 2^127.
// x = n + f with n whole: adding 1.5 * 2^23 leaves n in the low bits, the shift makes it the exponent.
// Several vectors go step by step together: one alone would wait for itself at every step.
constexpr int TOGETHER = LANES == 16 ? 8 : 4;
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
    pool().run(n, threads, body);
}
