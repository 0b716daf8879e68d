// x W^T + bias on a weight packed for streaming, by the product kernel of attention.
//
//   W [outputs][in]  ->  panels of 64 outputs, each a transposed tile [in][64], read front to back
//
// Every output is one sum over `in`, front to back, whatever the number of rows: the result of a
// row does not depend, in any bit, on the rows computed beside it.
#include "tile.h"

namespace {

constexpr int BLOCK_UNITS = 512;    // of a panel at a time: 128 KiB, which stay in cache for all rows
constexpr int BLOCK_ROWS = 192;     // of one task
constexpr int64_t SMALL = 1 << 18;  // multiplications below which a second thread does not pay
constexpr float KEEP[MAX_ROWS] = {1, 1, 1, 1, 1, 1};

template <class T>
struct Linear {
    using Unit = typename Format<T>::Unit;
    const T* x;
    const Unit* panels;
    const T* bias;
    T* out;
    int64_t rows;
    int in, outputs;

    // Rows [begin, begin + count) of one panel, into sums [count][TILE].
    void multiply(int64_t panel, int64_t begin, int count, float* sums) const {
        int units = in / Format<T>::PER_UNIT;
        for (int unit = 0; unit < units; unit += BLOCK_UNITS) {
            int n = std::min(BLOCK_UNITS, units - unit);
            TileRows<Unit> weights{panels + (panel * units + unit) * TILE, TILE};
            for_each_strip(count, [&](int row, auto height) {
                const Unit* left = reinterpret_cast<const Unit*>(x + (begin + row) * in) + unit;
                multiply_add<Format<T>, decltype(height)::value>(
                    left, units, weights, n, TILE, sums + row * TILE, TILE, unit ? KEEP : nullptr);
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
            multiply(panel, begin, count, sums);
            store_sums(panel, begin, count, sums);
        });
    }
};

// The last panel repeats the last output until it is full.
template <class T>
void pack(const T* weight, typename Format<T>::Unit* panels, int in, int outputs) {
    for (int first = 0; first < outputs; first += TILE) {
        int64_t offsets[TILE];
        for (int i = 0; i < TILE; i++)
            offsets[i] = (int64_t)std::min(first + i, outputs - 1) * in;
        int64_t at = (int64_t)first * (in / Format<T>::PER_UNIT);
        transpose_keys(weight, offsets, TILE, in, panels + at);
    }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Whether panels are as small as the weight itself: not where bf16 is widened to be multiplied.
EXPORT int packs_bf16() { return std::is_same_v<Format<bf16>, Wide> ? 0 : 1; }

#define EXPORT_FOR(T, NAME)                                                                     \
    EXPORT void pack_linear_##NAME(const T* weight, void* panels, int in, int outputs) {        \
        pack(weight, static_cast<Format<T>::Unit*>(panels), in, outputs);                       \
    }                                                                                           \
    EXPORT void linear_##NAME(const T* x, const void* panels, const T* bias, T* out,            \
                              int64_t rows, int in, int outputs, int threads) {                 \
        Linear<T>{x, static_cast<const Format<T>::Unit*>(panels), bias, out, rows, in, outputs} \
            .run(threads);                                                                      \
    }

EXPORT_FOR(bf16, bf16)
EXPORT_FOR(float, fp32)
