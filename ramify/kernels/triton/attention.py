"""Attention over a work list: stage 1, and the launch of both stages.

For an item's rows (token t, query head h of K/V head k) and its keys j, in fp32:

    s[r, j] = scale * k_scale * q[t, h] . K[j]        then  cap * tanh(s / cap)  if there is a cap
    seen    = j <= position[t]                        and  j > position[t] - window  if there is one
    m = max s    l = sum exp(s - m)    out = sum exp(s - m) V[j] * v_scale / l

Grid: (items, HK) for small tiles, (tiles, HK) for large ones: see `tiles`. Programs beyond the list
return before they load anything else, so that a launch of fixed size can be recorded and replayed.

Bytes: each program reads 2 D of each key that one of its rows sees, and q and out once. Keys that
no row of a tile sees, beyond the diagonal or before the window, are not read.

Numerics: products of q and K as they are stored, sums in fp32. Scores are scaled in fp32, not q in
bf16. exp(x) is exp2(x log2 e). The weights are rounded to the type of q before the second product.
A row that has seen nothing has m = -inf: it gives 0 and a log-sum of -inf, never NaN.

Tiles of keys begin at multiples of their size, so that a tile lies in one page if pages are not
smaller. Those that every row sees whole are done first and without masks; the order is free.

Such a tile is D x BLOCK_N numbers on end, so it can also come through a tensor descriptor, as one
copy that the hardware makes: `Tile.descriptors`. A descriptor knows no mask: it brings what unused
slots hold, too. Keys of those give scores that are replaced, and values are replaced themselves.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.shapes import check_attention
from ramify.kernels.triton.launch import (
    LOG2E,
    cdiv,
    compute_capability,
    next_power_of_2,
    precision,
)
from ramify.kernels.triton.merge import merge_partials
from ramify.kernels.triton.tile_table import AttentionShape, TilesOf, default_tiles
from ramify.kernels.triton.tiles import Tile, can_describe
from ramify.kernels.work_list import WorkList


def paged_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    work: WorkList,
    scale: float,
    options: AttentionOptions = PLAIN,
) -> Tensor:
    """softmax(scale * q k^T) v over the keys that the work list gives each token.

    q [T, HQ, D]   k_pool, v_pool [N, HK, P, D] -> [T, HQ, D]

    The pools may be fp8. Indices of the work list are trusted: a GPU cannot report them in time.
    """
    return attention_in_tiles(default_tiles, q, k_pool, v_pool, work, scale, options)


def attention_in_tiles(
    tiles_of: TilesOf,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    work: WorkList,
    scale: float,
    options: AttentionOptions = PLAIN,
) -> Tensor:
    """`paged_attention` in the tiles that `tiles_of` gives for its shape."""
    check_attention(q, k_pool, v_pool, work.positions, fp8=True)
    heads, head_dim = q.shape[1:]
    out = torch.empty_like(q)
    partial = q.new_empty((work.n_partials, heads, head_dim), dtype=torch.float32)
    lse = q.new_empty((work.n_partials, heads), dtype=torch.float32)
    attend_items(q, k_pool, v_pool, work, scale, options, out, partial, lse, tiles_of)
    merge_partials(partial, lse, work, out)
    return out


def attend_items(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    work: WorkList,
    scale: float,
    options: AttentionOptions,
    out: Tensor,
    partial: Tensor,
    lse: Tensor,
    tiles_of: TilesOf = default_tiles,
) -> None:
    """Stage 1: changes the rows of `out` that an item alone gives, and every partial.

    out [T, HQ, D]   partial [n_partials, HQ, D] fp32   lse [n_partials, HQ] fp32, in base 2
    """
    heads, head_dim = q.shape[1:]
    _, kv_heads, page_size, _ = k_pool.shape
    group, n_items = heads // kv_heads, work.items.shape[0]
    small, large = tiles_of(
        AttentionShape(
            heads, kv_heads, head_dim, q.dtype.itemsize, k_pool.dtype.itemsize, page_size
        )
    )
    launches: list[tuple[int, Tile]] = []
    some_large = work.max_rows * group > small.rows
    if n_items > 1 or not some_large:
        launches.append((n_items, small))
    if some_large:
        launches.append((n_items + cdiv(work.total_rows * group, large.rows), large))
    for programs, tile in launches:
        through = tile.descriptors and can_describe(tile, compute_capability(), page_size, head_dim)
        keys, values = (described(pool, tile) if through else pool for pool in (k_pool, v_pool))
        attention_kernel[(programs, kv_heads)](
            q,
            keys,
            values,
            work.items,
            work.rows,
            work.positions,
            work.pages,
            out,
            partial,
            lse,
            n_items,
            scale * options.k_scale,
            options.v_scale,
            options.soft_cap,
            HQ=heads,
            HK=kv_heads,
            D=head_dim,
            P=page_size,
            WINDOW=options.window,
            CAPPED=options.soft_cap > 0,
            LARGE=tile is large,
            SMALL_ROWS=small.rows,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.keys,
            BLOCK_D=max(next_power_of_2(head_dim), 16),
            PRECISION=precision(q),
            DESCRIBED=through,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )


def described(pool: Tensor, tile: Tile) -> TensorDescriptor:
    """A pool as rows [N * HK * P, D], of which a tile's keys are loaded at once.

    It is made for each launch, which copies it: a recorded launch keeps its own.
    """
    head_dim = pool.shape[-1]
    return TensorDescriptor.from_tensor(pool.view(-1, head_dim), [tile.keys, head_dim])


@triton.jit(do_not_specialize=["n_items"])  # one binary, whatever is in the step
def attention_kernel(
    Q, K, V, Items, Rows, Positions, Pages, Out, Partial, Lse,
    n_items, scale, v_scale, soft_cap,
    HQ: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, LARGE: tl.constexpr, SMALL_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    G: tl.constexpr = HQ // HK
    kv_head = tl.program_id(1)
    if LARGE:
        item, tile = find_tile(Items, n_items, tl.program_id(0), G, SMALL_ROWS, BLOCK_M)
        if item < 0:
            return
    else:
        item, tile = tl.program_id(0), 0
    Item = Items + item * 6
    row_begin, row_count = tl.load(Item), tl.load(Item + 1)
    if not LARGE and (row_count == 0) | (row_count * G > SMALL_ROWS):
        return
    page_begin, key_begin, key_count = tl.load(Item + 2), tl.load(Item + 3), tl.load(Item + 4)
    partial_begin = tl.load(Item + 5)

    pair = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row = pair // G
    inside = row < row_count
    token = tl.load(Rows + row_begin + row, mask=inside, other=0).to(tl.int64)
    position = tl.load(Positions + token, mask=inside, other=-1)
    head = kv_head * G + pair % G
    d = tl.arange(0, BLOCK_D)
    at = (token * HQ + head)[:, None] * D + d[None, :]
    q = tl.load(Q + at, mask=inside[:, None] & (d < D)[None, :], other=0.0)

    earliest = tl.min(tl.where(inside, position, 2147483647), 0)
    begin, end, start, full, full_end = key_bounds(
        key_begin, key_count, earliest, tl.max(position, 0), WINDOW, LARGE, BLOCK_N
    )
    Table = Pages + page_begin - key_begin // P
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if LARGE:
        for key in tl.range(full, full_end, BLOCK_N):
            top, total, acc = attend_tile(
                q, top, total, acc, K, V, Table, kv_head, key, begin, end, position, scale,
                soft_cap, HK, D, P, WINDOW, CAPPED, False, BLOCK_N, BLOCK_D, PRECISION, DESCRIBED,
            )  # fmt: skip
    n_before = (full - start) // BLOCK_N
    n_after = (end - full_end + BLOCK_N - 1) // BLOCK_N
    for i in tl.range(0, n_before + n_after):
        key = tl.where(i < n_before, start + i * BLOCK_N, full_end + (i - n_before) * BLOCK_N)
        top, total, acc = attend_tile(
            q, top, total, acc, K, V, Table, kv_head, key, begin, end, position, scale,
            soft_cap, HK, D, P, WINDOW, CAPPED, True, BLOCK_N, BLOCK_D, PRECISION, DESCRIBED,
        )  # fmt: skip

    some = tl.where(total > 0, total, 1.0)
    result = acc * (v_scale / some)[:, None]
    stored = inside[:, None] & (d < D)[None, :]
    if partial_begin < 0:
        # loaded again: kept, the places in q would fill the registers that the loops need
        token = tl.load(Rows + row_begin + row, mask=inside, other=0).to(tl.int64)
        at = (token * HQ + head)[:, None] * D + d[None, :]
        tl.store(Out + at, result.to(Out.dtype.element_ty), mask=stored)
    else:
        place = (partial_begin + row).to(tl.int64) * HQ + head
        tl.store(Partial + place[:, None] * D + d[None, :], result, mask=stored)
        tl.store(Lse + place, top + tl.log2(some), mask=inside)


@triton.jit
def find_tile(Items, n_items, number, G, SMALL_ROWS: tl.constexpr, BLOCK_M: tl.constexpr):
    """(item, tile in it) of a large tile by its number, or (-1, 0) beyond the last.

    The last tile of an item comes first: under a causal limit it has the most keys to read.
    """
    item, tile, before = -1, 0, 0
    for begin in tl.range(0, n_items, 128):
        i = begin + tl.arange(0, 128)
        pairs = tl.load(Items + i * 6 + 1, mask=i < n_items, other=0) * G
        count = tl.where(pairs > SMALL_ROWS, (pairs + BLOCK_M - 1) // BLOCK_M, 0)
        end = before + tl.cumsum(count, 0)
        mine = (number < end) & (number >= end - count)
        item = tl.maximum(item, tl.max(tl.where(mine, i, -1), 0))
        tile = tl.maximum(tile, tl.max(tl.where(mine, end - 1 - number, 0), 0))
        before += tl.sum(count, 0)
    return item, tile


@triton.jit
def key_bounds(
    key_begin, key_count, earliest, latest,
    WINDOW: tl.constexpr, LARGE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Keys that some row sees, begin .. end; the first tile's key; tiles that all rows see whole.

    start <= begin <= full <= full_end <= end: masks are needed before `full` and from `full_end`.
    """
    begin, end = key_begin, tl.minimum(key_begin + key_count, latest + 1)
    if WINDOW > 0:
        begin = tl.maximum(begin, earliest - WINDOW + 1)
    start = begin // BLOCK_N * BLOCK_N
    full, full_end = start, start
    if LARGE:
        full = (begin + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        if WINDOW > 0:
            full = tl.maximum(full, (latest - WINDOW + BLOCK_N) // BLOCK_N * BLOCK_N)
        full_end = tl.minimum(end, earliest + 1) // BLOCK_N * BLOCK_N
        none = full_end <= full
        full = tl.where(none, start, full)
        full_end = tl.where(none, start, full_end)
    return begin, end, start, full, full_end


@triton.jit
def attend_tile(
    q, top, total, acc, K, V, Table, kv_head, first, begin, end, position, scale, soft_cap,
    HK: tl.constexpr, D: tl.constexpr, P: tl.constexpr, WINDOW: tl.constexpr,
    CAPPED: tl.constexpr, MASKED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """The running maximum, sum and result after the keys first .. first + BLOCK_N - 1."""
    n = tl.arange(0, BLOCK_N)
    key = first + n
    listed = (key >= begin) & (key < end)
    if P % BLOCK_N == 0:  # one page: only a scalar needs 64 bits
        page = tl.load(Table + first // P).to(tl.int64)
        base, slot = (page * HK + kv_head) * P + first % P, n
    else:
        page = tl.load(Table + key // P, mask=listed, other=0).to(tl.int64)
        base, slot = 0, (page * HK + kv_head) * P + key % P
    k = load_rows(K, base, slot, listed, D, BLOCK_D, MASKED, DESCRIBED).to(q.dtype)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if CAPPED:
        s = soft_cap * (2 * tl.sigmoid(s * (2 * scale / soft_cap)) - 1) * LOG2E
    else:
        s = s * (scale * LOG2E)
    if MASKED:
        seen = listed[None, :] & (key[None, :] <= position[:, None])
        if WINDOW > 0:
            seen = seen & (key[None, :] > position[:, None] - WINDOW)
        s = tl.where(seen, s, float("-inf"))
    new_top = tl.maximum(top, tl.max(s, 1))
    shift = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top
    p = tl.exp2(s - shift[:, None])
    shrink = tl.exp2(top - shift)
    v = load_rows(V, base, slot, listed, D, BLOCK_D, MASKED, DESCRIBED).to(q.dtype)
    if DESCRIBED and MASKED:  # a weight of zero does not hide a NaN
        v = tl.where(listed[:, None], v, 0.0)
    acc = tl.dot(p.to(q.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return new_top, total * shrink + tl.sum(p, 1), acc


@triton.jit
def load_rows(
    Pool, base, slot, listed, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
    DESCRIBED: tl.constexpr,
):  # fmt: skip
    """Rows base + slot of a pool: zero where not listed, as what is there may be anything.

    Through a descriptor the rows from `base` on come as they are, listed or not.
    """
    if DESCRIBED:
        x = Pool.load([base.to(tl.int32), 0])  # 2**31 rows of 64 numbers would be 256 GiB
    else:
        d = tl.arange(0, BLOCK_D)
        at = Pool + base * D + (slot[:, None] * D + d[None, :])
        if MASKED:
            x = tl.load(at, mask=listed[:, None] & (d < D)[None, :], other=0.0)
        elif D < BLOCK_D:
            x = tl.load(at, mask=(d < D)[None, :], other=0.0)
        else:
            x = tl.load(at)
    return x
