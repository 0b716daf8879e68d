// x W^T + bias on a weight packed for streaming, by the product kernel of attention.
//
//   W [outputs][in]  ->  panels of 64 outputs, each a transposed tile [in][64], read front to back
//
// Every output is one sum over `in`, front to back, whatever the number of rows: the result of a
// row does not depend, in any bit, on the rows computed beside it.
#include <vector>

#include "tile.h"

namespace {

// A panel holds units, but bf16 stays bf16 where the unit would be twice its size.
template <class T>
constexpr bool WIDENS = sizeof(typename Format<T>::Unit) > sizeof(T) * Format<T>::PER_UNIT;
template <class T>
using Stored = std::conditional_t<WIDENS<T>, T, typename Format<T>::Unit>;

constexpr int BLOCK_UNITS = 512;    // of a panel at a time: 128 KiB, which stay in cache for all rows
constexpr int BLOCK_ROWS = 192;     // of one task
constexpr int64_t SMALL = 1 << 18;  // multiplications below which a second thread does not pay
constexpr float KEEP[MAX_ROWS] = {1, 1, 1, 1, 1, 1};

template <class T>
struct Linear {
    using Unit = typename Format<T>::Unit;
    const T* x;
    const Stored<T>* panels;
    const T* bias;
    T* out;
    int64_t rows;
    int in, outputs;

    int units() const { return in / Format<T>::PER_UNIT; }

    // Rows of x as units; `widened` keeps those that are not units already.
    const Unit* left(int64_t begin, int count, std::vector<Unit>& widened) const {
        const T* from = x + begin * in;
        if constexpr (!WIDENS<T>) return reinterpret_cast<const Unit*>(from);
        widened.resize((size_t)count * in);
        Format<T>::copy(from, widened.data(), count * in);
        return widened.data();
    }

    // Some rows times one panel, into sums [count][TILE].
    void multiply(int64_t panel, const Unit* rows, int count, float* sums) const {
        for (int unit = 0; unit < units(); unit += BLOCK_UNITS) {
            int n = std::min(BLOCK_UNITS, units() - unit);
            TileRows<Stored<T>> weights{panels + (panel * units() + unit) * TILE, TILE};
            for_each_strip(count, [&](int row, auto height) {
                multiply_add<Format<T>, decltype(height)::value>(
                    rows + (int64_t)row * units() + unit, units(), weights, n, TILE,
                    sums + row * TILE, TILE, unit ? KEEP : nullptr);
            });
        }
    }

    void store_sums(int64_t panel, int64_t begin, int count, const float* sums) const {
        int64_t first = panel * TILE;
        int width = (int)std::min<int64_t>(TILE, outputs - first);
        for (int row = 0; row < count; row++)
            for (int c = 0; c < width; c += LANES) {
                Floats v = load(sums + row * TILE + c);
                if (bias) v += load(bias + first + c, width - c);
                store(out + (begin + row) * outputs + first + c, v, width - c);
            }
    }

    void run(int threads) const {
        int64_t n_panels = (outputs + TILE - 1) / TILE;
        int64_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
        if (rows * in * outputs < SMALL) threads = 1;
        for_each_task(n_panels * blocks, threads, [&](int64_t task) {
            alignas(64) static thread_local float sums[BLOCK_ROWS * TILE];
            int64_t panel = task % n_panels, begin = task / n_panels * BLOCK_ROWS;
            int count = (int)std::min<int64_t>(BLOCK_ROWS, rows - begin);
            static thread_local std::vector<Unit> widened;
            multiply(panel, left(begin, count, widened), count, sums);
            store_sums(panel, begin, count, sums);
        });
    }
};

// The last panel repeats the last output until it is full.
template <class T>
void pack(const T* weight, Stored<T>* panels, int in, int outputs) {
    std::vector<typename Format<T>::Unit> tile((size_t)in * TILE / Format<T>::PER_UNIT);
    for (int first = 0; first < outputs; first += TILE) {
        int64_t offsets[TILE];
        for (int i = 0; i < TILE; i++)
            offsets[i] = (int64_t)std::min(first + i, outputs - 1) * in;
        transpose_keys(weight, offsets, TILE, in, tile.data());
        Stored<T>* to = panels + (int64_t)(first / TILE) * tile.size();
        if constexpr (WIDENS<T>)
            for (size_t i = 0; i < tile.size(); i += LANES) store(to + i, load(&tile[i]));
        else
            std::copy(tile.begin(), tile.end(), to);
    }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

#define EXPORT_FOR(T, NAME)                                                                     \
    EXPORT void pack_linear_##NAME(const T* weight, void* panels, int in, int outputs) {        \
        pack(weight, static_cast<Stored<T>*>(panels), in, outputs);                             \
    }                                                                                           \
    EXPORT void linear_##NAME(const T* x, const void* panels, const T* bias, T* out,            \
                              int64_t rows, int in, int outputs, int threads) {                 \
        Linear<T>{x, static_cast<const Stored<T>*>(panels), bias, out, rows, in, outputs}.run(  \
            threads);                                                                           \
    }

EXPORT_FOR(bf16, bf16)
EXPORT_FOR(float, fp32)
