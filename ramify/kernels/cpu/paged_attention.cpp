// Attention over a work list (see work_list.py): flash attention on paged keys, any rows per item.
//
// A task is (item, K/V head, block of rows); a row is a (query token, head of the group) pair.
//
//   for each tile of 64 keys:             K^T tile [D][64], in cache, shared by all rows of the task
//     for each strip of up to 6 rows:     S[6][64]  = q K^T       multiply_add
//                                         online softmax, masked at each row's own position
//                                         O[6][D]   = O * decay + P V     multiply_add again
//
// Nothing is read beyond the keys of the item: unused slots of a page may hold anything, NaN too.
// The two products run on fp32, or on pairs of bf16 where the CPU multiplies those (`Pairs`).
#include <vector>

#include "tile.h"

namespace {

constexpr int BLOCK_ROWS = 192;    // rows that share one conversion of a tile
constexpr int DIRECT_STRIPS = 2;   // up to here V is read from its pages, not from a copied tile
constexpr float NEVER = -1e30f;    // a score that no key has; finite, so differences are not NaN

template <class T>
struct Problem {
    const T *q, *k_pool, *v_pool;
    T* out;
    const int32_t *items, *rows, *positions, *pages, *merge_indptr, *merge_index;
    float *partial, *lse;  // [n_partials, HQ, D], [n_partials, HQ]
    int64_t tokens, n_items, n_rows, n_page_entries, n_partials, pool_pages;
    int heads, kv_heads, head_dim, page_size;
    float scale;

    int group() const { return heads / kv_heads; }
    int tokens_per_block() const { return std::max(1, BLOCK_ROWS / group()); }
};

struct Item {
    int32_t row_begin, row_count, page_begin, key_begin, key_count, partial_begin;
};

struct Task {
    int32_t item, kv_head, row, row_count;
};

// What one task works in; kept by the thread from call to call.
template <class T>
struct Scratch {
    using Unit = typename Format<T>::Unit;
    std::vector<Unit> q, k_tile, v_tile;
    std::vector<float> out, peak, sum;
    std::vector<int> limit;

    void resize(int rows, int head_dim, int padded) {
        q.resize((size_t)rows * head_dim);
        out.assign((size_t)rows * padded, 0.0f);
        peak.assign(rows, NEVER);
        sum.assign(rows, 0.0f);
        limit.resize(rows);
        k_tile.resize((size_t)padded * TILE);
        v_tile.resize((size_t)padded * TILE);
    }
};

// S -> P in place, for MR rows; decay is what earlier results are multiplied by.
// seen[r] keys of the tile are visible to row r. The sums are of P before any rounding.
template <int MR>
INLINE void softmax(float (*s)[TILE], const int* seen, float scale, float* peak, float* sum,
                    float* decay) {
    for (int r = 0; r < MR; r++) {
        Floats top = splat(NEVER);
        for (int c = 0; c < TILE; c += LANES) {
            Floats v = load(s[r] + c) * scale;
            v = lane_numbers() + c < seen[r] ? v : splat(NEVER);
            store(s[r] + c, v);
            top = larger(top, v);
        }
        float before = peak[r];
        peak[r] = std::max(before, max_lanes(top));
        decay[r] = before - peak[r];
    }
    for (int r = 0; r < MR; r += LANES) store(decay + r, exp2(load(decay + r)));
    for (int r = 0; r < MR; r++) {
        Floats total{};
        for (int c = 0; c < TILE; c += 4 * LANES) {
            Floats power[4];
            for (int j = 0; j < 4; j++) power[j] = load(s[r] + c + j * LANES) - peak[r];
            exp2(power);
            for (int j = 0; j < 4; j++) {
                // A row that has seen nothing yet has peak NEVER: its P is 0, not 2^0.
                Floats p = peak[r] > NEVER ? power[j] : Floats{};
                store(s[r] + c + j * LANES, p);
                total += p;
            }
        }
        sum[r] = sum[r] * decay[r] + sum_lanes(total);
    }
}

template <class T>
struct Runner {
    using Fmt = Format<T>;
    using Unit = typename Fmt::Unit;
    const Problem<T>& p;
    Scratch<T>& scratch;
    int head_dim, padded, q_units;

    Runner(const Problem<T>& problem, Scratch<T>& scratch)
        : p(problem), scratch(scratch), head_dim(problem.head_dim),
          padded((head_dim + LANES - 1) / LANES * LANES), q_units(head_dim / Fmt::PER_UNIT) {}

    // Where key i of the tile begins in a pool; entries after the last key repeat it.
    void find_keys(const Item& item, int kv_head, int first, int n, int64_t* offsets) const {
        int position = item.key_begin + first, slot = position % p.page_size;
        const int32_t* page = p.pages + item.page_begin + position / p.page_size -
                              item.key_begin / p.page_size;
        for (int i = 0; i < n; page++, slot = 0) {
            int64_t run = ((int64_t)*page * p.kv_heads + kv_head) * p.page_size;
            for (; slot < p.page_size && i < n; slot++) offsets[i++] = (run + slot) * head_dim;
        }
        std::fill(offsets + n, offsets + TILE, offsets[n - 1]);
    }

    // Pages lie anywhere in memory, so the CPU cannot guess which rows come next.
    void prefetch(const T* pool, const int64_t* offsets, int n) const {
        for (int i = 0; i < std::min(n, TILE); i++)
            for (int c = 0; c < head_dim; c += 64 / (int)sizeof(T))
                __builtin_prefetch(pool + offsets[i] + c);
    }

    template <int MR, class Values>
    void strip(int row, int first, int n, const Values& values) {
        alignas(64) float s[MR][TILE];
        float decay[16] = {};  // whole vectors of them
        int seen[MR], most = 0;
        for (int r = 0; r < MR; r++) {
            seen[r] = std::min(n, scratch.limit[row + r] + 1 - first);
            most = std::max(most, seen[r]);
        }
        if (most <= 0) return;
        TileRows<Unit> keys{scratch.k_tile.data(), TILE};
        const Unit* q = &scratch.q[(size_t)row * q_units];
        multiply_add<Fmt, MR>(q, q_units, keys, q_units, TILE, s[0], TILE, nullptr);
        softmax<MR>(s, seen, p.scale * LOG2_E, &scratch.peak[row], &scratch.sum[row], decay);
        alignas(64) Unit weights[MR][TILE / Fmt::PER_UNIT];
        for (int r = 0; r < MR; r++) Fmt::narrow(s[r], weights[r], TILE);
        int units = (most + Fmt::PER_UNIT - 1) / Fmt::PER_UNIT;
        multiply_add<Fmt, MR>(weights[0], TILE / Fmt::PER_UNIT, values, units, padded,
                              &scratch.out[(size_t)row * padded], padded, decay);
    }

    // All rows of the block against one tile.
    template <class Values>
    void tile(int rows, int first, int n, const Values& values) {
        for_each_strip(rows, [&](int row, auto height) {
            strip<decltype(height)::value>(row, first, n, values);
        });
    }

    // Queries and limits of the block; returns how many keys of the item any row sees.
    int load_rows(const Item& item, const Task& task) {
        int group = p.group(), last = -1;
        for (int i = 0; i < task.row_count; i++) {
            int token = p.rows[item.row_begin + task.row + i];
            int limit = p.positions[token] - item.key_begin;
            const T* q = p.q + ((int64_t)token * p.heads + task.kv_head * group) * head_dim;
            Fmt::copy(q, &scratch.q[(size_t)i * group * q_units], group * head_dim);
            std::fill_n(&scratch.limit[i * group], group, limit);
            last = std::max(last, limit);
        }
        return std::min(item.key_count, last + 1);
    }

    void store_rows(const Item& item, const Task& task) const {
        int group = p.group();
        for (int r = 0; r < task.row_count * group; r++) {
            int entry = task.row + r / group, head = task.kv_head * group + r % group;
            float sum = scratch.sum[r];
            Floats inverse = splat(sum > 0 ? 1.0f / sum : 0.0f);
            const float* from = &scratch.out[(size_t)r * padded];
            if (item.partial_begin < 0) {
                int64_t token = p.rows[item.row_begin + entry];
                T* to = p.out + (token * p.heads + head) * head_dim;
                for (int c = 0; c < head_dim; c += LANES)
                    store(to + c, load(from + c) * inverse, head_dim - c);
                continue;
            }
            int64_t at = (int64_t)(item.partial_begin + entry) * p.heads + head;
            for (int c = 0; c < head_dim; c += LANES)
                store(p.partial + at * head_dim + c, load(from + c) * inverse, head_dim - c);
            p.lse[at] = sum > 0 ? scratch.peak[r] * LN_2 + std::log(sum) : -INFINITY;
        }
    }

    void run(const Task& task) {
        const Item& item = reinterpret_cast<const Item*>(p.items)[task.item];
        int rows = task.row_count * p.group();
        scratch.resize(rows, head_dim, padded);
        int keys = load_rows(item, task);
        bool direct = head_dim % LANES == 0 && rows <= DIRECT_STRIPS * MAX_ROWS;
        int64_t offsets[2][TILE];  // of this tile and of the next
        find_keys(item, task.kv_head, 0, std::min(TILE, keys), offsets[0]);
        prefetch(p.v_pool, offsets[0], keys);
        for (int first = 0, now = 0; first < keys; first += TILE, now ^= 1) {
            int n = std::min(TILE, keys - first), next = std::min(TILE, keys - first - n);
            if (next > 0) find_keys(item, task.kv_head, first + TILE, next, offsets[now ^ 1]);
            transpose_keys(p.k_pool, offsets[now], n, head_dim, scratch.k_tile.data());
            prefetch(p.k_pool, offsets[now ^ 1], next);
            KeyRows<T> values{p.v_pool, offsets[now]};
            if (direct) {
                tile(rows, first, n, values);
            } else {
                values.copy(n, head_dim, padded, scratch.v_tile.data());
                tile(rows, first, n, TileRows<Unit>{scratch.v_tile.data(), padded});
            }
            prefetch(p.v_pool, offsets[now ^ 1], next);
        }
        store_rows(item, task);
    }
};

// The partials of one token and head, each weighted by its share of the softmax sum.
template <class T>
void merge(const Problem<T>& p, int64_t token, int head) {
    const int32_t* first = p.merge_index + p.merge_indptr[token];
    const int32_t* last = p.merge_index + p.merge_indptr[token + 1];
    if (first == last) return;
    float peak = NEVER, sum = 0;
    for (const int32_t* i = first; i < last; i++)
        peak = std::max(peak, p.lse[(int64_t)*i * p.heads + head]);
    for (const int32_t* i = first; i < last; i++)
        sum += std::exp(p.lse[(int64_t)*i * p.heads + head] - peak);
    T* out = p.out + (token * p.heads + head) * p.head_dim;
    for (int c = 0; c < p.head_dim; c += LANES) {
        int n = p.head_dim - c;
        Floats total{};
        for (const int32_t* i = first; i < last; i++) {
            int64_t at = (int64_t)*i * p.heads + head;
            float weight = std::exp(p.lse[at] - peak) / std::max(sum, 1e-30f);
            total += load(p.partial + at * p.head_dim + c, n) * weight;
        }
        store(out + c, total, n);
    }
}

// Every index inside its array? A wrong list must be an error, never a stray read or write.
template <class T>
bool in_range(const Problem<T>& p) {
    auto inside = [](const int32_t* values, int64_t n, int64_t end) {
        for (int64_t i = 0; i < n; i++)
            if (values[i] < 0 || values[i] >= end) return false;
        return true;
    };
    const Item* items = reinterpret_cast<const Item*>(p.items);
    for (int64_t i = 0; i < p.n_items; i++) {
        const Item& item = items[i];
        if (item.row_count == 0) continue;  // fills the list
        if (item.row_begin < 0 || item.row_count < 0 || item.page_begin < 0 ||
            item.key_begin < 0 || item.key_count < 1 || item.partial_begin < -1)
            return false;
        int64_t last = (item.key_begin % p.page_size + (int64_t)item.key_count - 1) / p.page_size;
        if ((int64_t)item.row_begin + item.row_count > p.n_rows ||
            item.page_begin + last >= p.n_page_entries ||
            (item.partial_begin >= 0 && (int64_t)item.partial_begin + item.row_count > p.n_partials))
            return false;
    }
    if (p.merge_indptr[0] != 0) return false;
    for (int64_t t = 0; t < p.tokens; t++)
        if (p.merge_indptr[t + 1] < p.merge_indptr[t]) return false;
    return p.merge_indptr[p.tokens] == p.n_partials && inside(p.rows, p.n_rows, p.tokens) &&
           inside(p.pages, p.n_page_entries, p.pool_pages) &&
           inside(p.merge_index, p.n_partials, p.n_partials);
}

// Last blocks first: under a causal limit they see the most keys.
template <class T>
std::vector<Task> make_tasks(const Problem<T>& p) {
    std::vector<Task> tasks;
    int block = p.tokens_per_block();
    const Item* items = reinterpret_cast<const Item*>(p.items);
    for (int32_t i = 0; i < p.n_items; i++)
        for (int32_t row = 0; row < items[i].row_count; row += block)
            for (int32_t head = 0; head < p.kv_heads; head++)
                tasks.push_back({i, head, row, std::min(block, items[i].row_count - row)});
    std::reverse(tasks.begin(), tasks.end());
    return tasks;
}

template <class T>
int paged_attention(const Problem<T>& p, int threads) {
    if (!in_range(p)) return 1;
    std::vector<Task> tasks = make_tasks(p);
    for_each_task(tasks.size(), threads, [&](int64_t i) {
        thread_local Scratch<T> scratch;
        Runner<T>(p, scratch).run(tasks[i]);
    });
    if (p.n_partials)
        for (int64_t token = 0; token < p.tokens; token++)
            for (int head = 0; head < p.heads; head++) merge(p, token, head);
    return 0;
}

}  // namespace

#define EXPORT_FOR(T, NAME)                                                                      \
    extern "C" __attribute__((visibility("default"))) int paged_attention_##NAME(                \
        const T* q, const T* k_pool, const T* v_pool, T* out, const int32_t* items,              \
        const int32_t* rows, const int32_t* positions, const int32_t* pages,                     \
        const int32_t* merge_indptr, const int32_t* merge_index, float* partial, float* lse,     \
        int64_t tokens, int64_t n_items, int64_t n_rows, int64_t n_page_entries,                 \
        int64_t n_partials, int64_t pool_pages, int heads, int kv_heads, int head_dim,           \
        int page_size, float scale, int threads) {                                               \
        Problem<T> problem{q,          k_pool,    v_pool,       out,         items,              \
                           rows,       positions, pages,        merge_indptr, merge_index,       \
                           partial,    lse,       tokens,       n_items,     n_rows,             \
                           n_page_entries, n_partials, pool_pages, heads,    kv_heads,           \
                           head_dim,   page_size, scale};                                        \
        return paged_attention(problem, threads);                                                \
    }

EXPORT_FOR(bf16, bf16)
EXPORT_FOR(float, fp32)
