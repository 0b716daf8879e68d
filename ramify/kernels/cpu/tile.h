// What attention and linear layers are made of: the two formats of a tile, how keys, values and
// weights get into one, and the product kernel.
//
//   Wide    a unit is one float: fp32 pools, and bf16 pools on CPUs without bf16 products
//   Pairs   a unit is two neighbouring bf16 numbers in 32 bits: one instruction multiplies both
//           and adds them to an fp32 sum. Neighbours are channels in q K^T and keys in P V.
#pragma once
#include <type_traits>

#include "vec.h"

constexpr int TILE = 64;     // keys, or outputs of a linear layer
constexpr int MAX_ROWS = 6;  // of one strip
// Vectors of one strip. 6 x 4 sums, 4 operands and a factor fit 32 registers, 6 x 2 fit 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int COLUMNS = 4;
#else
constexpr int COLUMNS = 2;
#endif

struct Wide {
    using Unit = float;
    static constexpr int PER_UNIT = 1;
    static INLINE Floats multiply_add(Floats sum, Unit factor, Floats v) { return sum + factor * v; }
    static INLINE void store_units(Unit* to, Floats v) { store(to, v); }
    static INLINE void narrow(const float* from, Unit* to, int n) {
        std::memcpy(to, from, n * sizeof(float));
    }
    template <class T>
    static INLINE void copy(const T* from, Unit* to, int n) {
        for (int c = 0; c < n; c += LANES) store(to + c, load(from + c, n - c), n - c);
    }
};

#ifdef __AVX512BF16__
struct Pairs {
    using Unit = uint32_t;
    static constexpr int PER_UNIT = 2;
    static INLINE Floats multiply_add(Floats sum, Unit factor, Words v) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)factor),
                                        (__m512bh)v);
    }
    static INLINE void store_units(Unit* to, Words v) { std::memcpy(to, &v, sizeof v); }
    static INLINE void narrow(const float* from, Unit* to, int n) {
        for (int c = 0; c < n; c += LANES) store(reinterpret_cast<bf16*>(to) + c, load(from + c));
    }
    static INLINE void copy(const bf16* from, Unit* to, int n) {
        std::memcpy(to, from, n * sizeof(bf16));
    }
};
#endif

template <class T>
struct FormatOf {
    using type = Wide;
};
#ifdef __AVX512BF16__
template <>
struct FormatOf<bf16> {
    using type = Pairs;
};
#endif
template <class T>
using Format = typename FormatOf<T>::type;

// --- values: row k of the right operand of P V -----------------------------------------------------

// A tile in memory: rows of units one after the other, or of bf16 that are widened when read.
template <class Stored>
struct TileRows {
    const Stored* base;
    int64_t stride;
    INLINE auto operator()(int k, int column) const {
        const Stored* from = base + k * stride + column;
        if constexpr (std::is_same_v<Stored, uint32_t>)
            return read<Words>(from);
        else
            return load(from);
    }
};

// The same rows straight from the pages. `n` lanes of the last vector may be all that exists.
template <class T>
struct KeyRows {
    const T* pool;
    const int64_t* offsets;

    INLINE auto operator()(int k, int column, int n = LANES) const {
#ifdef __AVX512BF16__
        if constexpr (std::is_same_v<T, bf16>) {
            Words even = (Words)load(pool + offsets[2 * k] + column, n);
            Words odd = (Words)load(pool + offsets[2 * k + 1] + column, n);
            return (even >> 16) | odd;
        } else
#endif
            return load(pool + offsets[k] + column, n);
    }

    template <class Unit>
    void copy(int n, int head_dim, int padded, Unit* to) const {
        int units = (n + Format<T>::PER_UNIT - 1) / Format<T>::PER_UNIT;
        for (int k = 0; k < units; k++)
            for (int c = 0; c < head_dim; c += LANES)
                Format<T>::store_units(to + (size_t)k * padded + c, (*this)(k, c, head_dim - c));
    }
};

// --- keys: the transposed tile -------------------------------------------------------------------

// to[unit][key] from LANES keys at a time. A 32-bit word of a key is one fp32 channel or two bf16
// channels; two bf16 channels stay together in `Pairs` and become two rows in `Wide`.
template <class T>
INLINE void transpose_keys(const T* pool, const int64_t* offsets, int n, int head_dim,
                           typename Format<T>::Unit* to) {
    int words = head_dim * (int)sizeof(T) / (int)sizeof(float);
    for (int key = 0; key < n; key += LANES)
        for (int word = 0; word < words; word += LANES) {
            Words rows[LANES];
            for (int i = 0; i < LANES; i++) {
                const float* from = reinterpret_cast<const float*>(pool + offsets[key + i]);
                rows[i] = (Words)load(from + word, words - word);
            }
            transpose(rows);
            int count = std::min(LANES, words - word);
            for (int i = 0; i < count; i++) {
                if constexpr (sizeof(T) == 2 && Format<T>::PER_UNIT == 1) {
                    store(to + (size_t)(2 * (word + i)) * TILE + key, (Floats)(rows[i] << 16));
                    store(to + (size_t)(2 * (word + i) + 1) * TILE + key,
                          (Floats)(rows[i] & 0xffff0000));
                } else {
                    std::memcpy(to + (size_t)(word + i) * TILE + key, &rows[i], sizeof rows[i]);
                }
            }
        }
}

// --- the product ---------------------------------------------------------------------------------

// c[ROWS][VECTORS * 16] = c * decay + a[ROWS][units] b[units][...]; without decay c starts at 0.
template <class Fmt, int ROWS, int VECTORS, class Rows>
INLINE void product(const typename Fmt::Unit* a, int a_stride, const Rows& b, int units, int column,
                    float* c, int c_stride, const float* decay) {
    Floats sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++)
            sums[r][j] = decay ? load(c + r * c_stride + column + j * LANES) * decay[r] : Floats{};
    for (int k = 0; k < units; k++) {
        decltype(b(0, 0)) right[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) right[j] = b(k, column + j * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++)
                sums[r][j] = Fmt::multiply_add(sums[r][j], a[r * a_stride + k], right[j]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++)
            store(c + r * c_stride + column + j * LANES, sums[r][j]);
}

template <class Fmt, int ROWS, class Rows>
inline void multiply_add(const typename Fmt::Unit* a, int a_stride, const Rows& b, int units,
                         int columns, float* c, int c_stride, const float* decay) {
    int column = 0;
    for (; column + COLUMNS * LANES <= columns; column += COLUMNS * LANES)
        product<Fmt, ROWS, COLUMNS>(a, a_stride, b, units, column, c, c_stride, decay);
    for (; column < columns; column += LANES)
        product<Fmt, ROWS, 1>(a, a_stride, b, units, column, c, c_stride, decay);
}

// body(first row, height) in strips of nearly equal height; the height is known to the compiler.
template <class Body>
INLINE void for_each_strip(int rows, const Body& body) {
    int strips = (rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int left = strips, row = 0; left > 0; left--) {
        int height = (rows - row + left - 1) / left;
        switch (height) {
            case 1: body(row, std::integral_constant<int, 1>{}); break;
            case 2: body(row, std::integral_constant<int, 2>{}); break;
            case 3: body(row, std::integral_constant<int, 3>{}); break;
            case 4: body(row, std::integral_constant<int, 4>{}); break;
            case 5: body(row, std::integral_constant<int, 5>{}); break;
            default: body(row, std::integral_constant<int, MAX_ROWS>{}); break;
        }
        row += height;
    }
}
