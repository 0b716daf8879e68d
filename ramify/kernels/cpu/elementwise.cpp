// Norms, rotary embedding with the write into the paged pools, and the gated activation.
// One task is a block of tokens; everything is fp32 inside and rounds where the reference does.
#include "vec.h"

namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t ELEMENTS_PER_TASK = 32768;
constexpr int MAX_HEAD_DIM = 512;

// body(token) for every token, in blocks large enough to be worth a thread.
template <class Body>
void for_each_token(int64_t tokens, int64_t width, int threads, const Body& body) {
    int64_t block = std::max<int64_t>(1, ELEMENTS_PER_TASK / std::max<int64_t>(width, 1));
    for_each_task((tokens + block - 1) / block, threads, [&](int64_t task) {
        int64_t end = std::min(tokens, (task + 1) * block);
        for (int64_t token = task * block; token < end; token++) body(token);
    });
}

// 1 / sqrt(mean(x^2) + eps)
template <class T>
INLINE float inverse_rms(const T* x, int width, float eps) {
    Floats sums[4] = {};
    int c = 0;
    for (; c + 4 * LANES <= width; c += 4 * LANES)
        for (int j = 0; j < 4; j++) {
            Floats v = load(x + c + j * LANES);
            sums[j] += v * v;
        }
    for (; c < width; c += LANES) {
        Floats v = load(x + c, width - c);
        sums[0] += v * v;
    }
    float sum = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
    return 1.0f / std::sqrt(sum / width + eps);
}

template <class T>
INLINE void normalise(const T* x, const T* weight, T* out, int width, float eps) {
    Floats scale = splat(inverse_rms(x, width, eps));
    for_each_vector(width, [&](int c, int n) INLINE_BODY {
        store(out + c, round_as(load(x + c, n) * scale, out) * load(weight + c, n), n);
    });
}

template <class T>
void rms_norm(const T* x, T* residual, const T* weight, T* out, int64_t tokens, int width,
              float eps, int threads) {
    for_each_token(tokens, width, threads, [&](int64_t token) {
        const T* row = x + token * width;
        if (residual) {
            T* sum = residual + token * width;
            for_each_vector(width, [&](int c, int n) INLINE_BODY {
                store(sum + c, load(sum + c, n) + load(row + c, n), n);
            });
            row = sum;
        }
        normalise(row, weight, out + token * width, width, eps);
    });
}

// N vectors of silu(gate) * up; n lanes of each.
template <int N, class T>
INLINE void gated(const T* gate, const T* up, T* out, int n) {
    Floats g[N], e[N];
    for (int j = 0; j < N; j++) g[j] = load(gate + j * LANES, n);
    for (int j = 0; j < N; j++) e[j] = g[j] * -LOG2_E;
    exp2(e);
    for (int j = 0; j < N; j++) {
        Floats silu = g[j] * reciprocal(1.0f + e[j]);
        store(out + j * LANES, silu * load(up + j * LANES, n), n);
    }
}

template <class T>
void silu_mul(const T* gate_up, T* out, int64_t tokens, int width, int threads) {
    for_each_token(tokens, 2 * width, threads, [&](int64_t token) {
        const T *gate = gate_up + token * 2 * width, *up = gate + width;
        T* to = out + token * width;
        int c = 0;
        for (; c + TOGETHER * LANES <= width; c += TOGETHER * LANES)
            gated<TOGETHER>(gate + c, up + c, to + c, LANES);
        for (; c < width; c += LANES) gated<1>(gate + c, up + c, to + c, width - c);
    });
}

template <class T>
struct Rope {
    const T* qkv;
    const int32_t* positions;
    const int64_t* slots;
    const float* cos_sin;
    const T *q_norm, *k_norm;
    T *q, *k_pool, *v_pool;
    int64_t tokens, max_position, pool_slots;
    int heads, kv_heads, head_dim, page_size;
    float eps;

    bool in_range() const {
        for (int64_t t = 0; t < tokens; t++)
            if (positions[t] < 0 || positions[t] >= max_position || slots[t] < 0 ||
                slots[t] >= pool_slots)
                return false;
        return true;
    }

    // Pairs (x[i], x[i + D/2]) turned by the angle of this position.
    INLINE void rotate(const T* x, const T* norm, const float* angles, T* out) const {
        T normed[MAX_HEAD_DIM];
        if (norm) {
            normalise(x, norm, normed, head_dim, eps);
            x = normed;
        }
        int half = head_dim / 2;
        for_each_vector(half, [&](int c, int n) INLINE_BODY {
            Floats cos = load(angles + c, n), sin = load(angles + half + c, n);
            Floats low = load(x + c, n), high = load(x + half + c, n);
            store(out + c, low * cos - high * sin, n);
            store(out + half + c, high * cos + low * sin, n);
        });
    }

    void token(int64_t t) const {
        const T* row = qkv + t * (heads + 2 * kv_heads) * head_dim;
        const float* angles = cos_sin + (int64_t)positions[t] * head_dim;
        for (int h = 0; h < heads; h++)
            rotate(row + h * head_dim, q_norm, angles, q + (t * heads + h) * head_dim);
        const T* keys = row + heads * head_dim;
        const T* values = keys + kv_heads * head_dim;
        int64_t page = slots[t] / page_size, slot = slots[t] % page_size;
        for (int h = 0; h < kv_heads; h++) {
            int64_t at = ((page * kv_heads + h) * page_size + slot) * head_dim;
            rotate(keys + h * head_dim, k_norm, angles, k_pool + at);
            std::memcpy(v_pool + at, values + h * head_dim, head_dim * sizeof(T));
        }
    }

    int run(int threads) const {
        if (!in_range()) return 1;
        int64_t width = (heads + 2 * kv_heads) * head_dim;
        for_each_token(tokens, width, threads, [&](int64_t t) { token(t); });
        return 0;
    }
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

#define EXPORT_FOR(T, NAME)                                                                       \
    EXPORT void rms_norm_##NAME(const T* x, T* residual, const T* weight, T* out, int64_t tokens, \
                                int width, float eps, int threads) {                              \
        rms_norm(x, residual, weight, out, tokens, width, eps, threads);                          \
    }                                                                                             \
    EXPORT void silu_mul_##NAME(const T* gate_up, T* out, int64_t tokens, int width,              \
                                int threads) {                                                    \
        silu_mul(gate_up, out, tokens, width, threads);                                           \
    }                                                                                             \
    EXPORT int rope_write_kv_##NAME(                                                              \
        const T* qkv, const int32_t* positions, const int64_t* slots, const float* cos_sin,       \
        const T* q_norm, const T* k_norm, T* q, T* k_pool, T* v_pool, int64_t tokens,             \
        int64_t max_position, int64_t pool_slots, int heads, int kv_heads, int head_dim,          \
        int page_size, float eps, int threads) {                                                  \
        return Rope<T>{qkv,    positions, slots,        cos_sin,    q_norm, k_norm,   q,          \
                       k_pool, v_pool,    tokens,       max_position, pool_slots, heads,          \
                       kv_heads, head_dim, page_size,   eps}                                      \
            .run(threads);                                                                        \
    }

EXPORT_FOR(bf16, bf16)
EXPORT_FOR(float, fp32)
