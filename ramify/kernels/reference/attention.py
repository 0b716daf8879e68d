"""What attention over a work list means: the executable specification."""

import torch
from torch import Tensor

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.shapes import check_attention
from ramify.kernels.work_list import DIRECT, Item, WorkList


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
    """
    check_attention(q, k_pool, v_pool, work.positions, fp8=True)
    out = torch.zeros_like(q)
    partial = q.new_zeros((work.n_partials, *q.shape[1:]), dtype=torch.float32)
    lse = q.new_zeros((work.n_partials, q.shape[1]), dtype=torch.float32)
    for raw in work.items.tolist():
        item = Item(*raw)
        tokens = work.rows[item.row_begin : item.row_begin + item.row_count].long()
        keys = gather(k_pool, work.pages, item) * options.k_scale
        values = gather(v_pool, work.pages, item) * options.v_scale
        seen = sees(work.positions[tokens], item, options.window)
        result, weight = attend(q[tokens], keys, values, seen, scale, options.soft_cap)
        if item.partial_begin == DIRECT:
            out[tokens] = result.to(q.dtype)
        else:
            mine = slice(item.partial_begin, item.partial_begin + item.row_count)
            partial[mine], lse[mine] = result, weight
    for token in range(len(q)):
        begin, end = work.merge_indptr[token : token + 2].tolist()
        if begin < end:
            parts = work.merge_index[begin:end].long()
            out[token] = merge(partial[parts], lse[parts]).to(q.dtype)
    return out


def gather(pool: Tensor, pages: Tensor, item: Item) -> Tensor:
    """The keys or values of one item, in order.   pool [N, HK, P, D] -> [HK, keys, D] fp32"""
    page_size = pool.shape[2]
    position = _positions(item, pool.device)
    page = pages[item.page_begin + position // page_size - item.key_begin // page_size]
    return pool[page.long(), :, position % page_size].transpose(0, 1).float()


def sees(positions: Tensor, item: Item, window: int) -> Tensor:
    """Which keys of an item each row sees.   positions [rows] -> [rows, keys] bool"""
    distance = positions[:, None] - _positions(item, positions.device)[None, :]
    return (distance >= 0) & (distance < window) if window else distance >= 0


def _positions(item: Item, device: torch.device) -> Tensor:
    return torch.arange(item.key_begin, item.key_begin + item.key_count, device=device)


def attend(
    q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float, soft_cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Attention of one item, and the log of its softmax sums.

    q [rows, HQ, D]   keys, values [HK, keys, D]   seen [rows, keys] bool
    -> [rows, HQ, D] fp32, [rows, HQ] fp32; a row that sees nothing gives 0 and -inf
    """
    rows, heads, head_dim = q.shape
    grouped = q.float().view(rows, len(keys), heads // len(keys), head_dim)
    scores = torch.einsum("tkgd,knd->tkgn", grouped, keys) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = scores.masked_fill(~seen[:, None, None, :], -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - _finite(lse).unsqueeze(-1))
    result = torch.einsum("tkgn,knd->tkgd", weights, values)
    return result.reshape(rows, heads, head_dim), lse.reshape(rows, heads)


def merge(partial: Tensor, lse: Tensor) -> Tensor:
    """Partials joined, each weighted by its share of the softmax sum.

    partial [n, HQ, D]   lse [n, HQ] -> [HQ, D]
    """
    weights = torch.exp(lse - _finite(lse.logsumexp(0)))
    return (partial * weights.unsqueeze(-1)).sum(0)


def _finite(lse: Tensor) -> Tensor:
    # -inf (nothing seen) would turn exp(-inf - lse) into NaN where 0 is meant.
    return lse.masked_fill(lse == -torch.inf, 0.0)
