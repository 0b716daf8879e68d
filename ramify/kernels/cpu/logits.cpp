// What is done to logits before a token is drawn.
#include "vec.h"

namespace {

constexpr int WORD = 32;

template <class T>
INLINE T never();
template <>
INLINE float never<float>() {
    return -INFINITY;
}
template <>
INLINE bf16 never<bf16>() {
    return {0xff80};
}

// n <= 32 logits against one word of the mask. Every logit is stored, so that this is one blend.
template <class T>
INLINE void mask_word(T* logits, uint32_t word, int n) {
    for (int bit = 0; bit < n; bit++) logits[bit] = word >> bit & 1 ? logits[bit] : never<T>();
}

template <class T>
void mask_row(T* logits, const uint32_t* mask, int width, int words) {
    int masked = std::min(width, words * WORD), at = 0;
    for (; at + WORD <= masked; at += WORD)
        if (mask[at / WORD] != ~0u) mask_word(logits + at, mask[at / WORD], WORD);
    if (at < masked) mask_word(logits + at, mask[at / WORD], masked - at);
    std::fill(logits + masked, logits + width, never<T>());
}

template <class T>
int mask_logits(T* logits, const int64_t* rows, const uint32_t* mask, int64_t n_rows,
                int64_t n_logits, int width, int words, int threads) {
    for (int64_t i = 0; i < n_rows; i++)
        if (rows[i] < 0 || rows[i] >= n_logits) return 1;
    for_each_task(n_rows, threads, [&](int64_t i) {
        mask_row(logits + rows[i] * width, mask + i * words, width, words);
    });
    return 0;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

#define EXPORT_FOR(T, NAME)                                                                      \
    EXPORT int mask_logits_##NAME(T* logits, const int64_t* rows, const uint32_t* mask,          \
                                  int64_t n_rows, int64_t n_logits, int width, int words,        \
                                  int threads) {                                                 \
        return mask_logits(logits, rows, mask, n_rows, n_logits, width, words, threads);         \
    }

EXPORT_FOR(bf16, bf16)
EXPORT_FOR(float, fp32)
