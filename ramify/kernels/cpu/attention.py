"""The call of `paged_attention.cpp`."""

import torch
from torch import Tensor

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.cpu.library import library
from ramify.kernels.cpu.threads import threads
from ramify.kernels.shapes import check_attention
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

    Raises ValueError if an index of the work list is outside its array; then nothing is written.
    There are no options here yet: others than PLAIN are a ValueError too.
    """
    if options != PLAIN:
        raise ValueError(f"the C++ kernels have no attention options, got {options}")
    check_attention(q, k_pool, v_pool, work.positions)
    tokens, heads, head_dim = q.shape
    pool_pages, kv_heads, page_size, _ = k_pool.shape
    out = torch.empty_like(q)
    # All partial results, and after them the log-sum-exp of each.
    partial = torch.empty(work.n_partials * heads * (head_dim + 1)) if work.n_partials else None
    partial_address = partial.data_ptr() if partial is not None else 0
    failed = library()["paged_attention", q.dtype](
        q.data_ptr(),
        k_pool.data_ptr(),
        v_pool.data_ptr(),
        out.data_ptr(),
        work.items.data_ptr(),
        work.rows.data_ptr(),
        work.positions.data_ptr(),
        work.pages.data_ptr(),
        work.merge_indptr.data_ptr(),
        work.merge_index.data_ptr(),
        partial_address,
        partial_address + work.n_partials * heads * head_dim * 4,
        tokens,
        work.items.shape[0],
        work.rows.shape[0],
        work.pages.shape[0],
        work.n_partials,
        pool_pages,
        heads,
        kv_heads,
        head_dim,
        page_size,
        scale,
        threads(),
    )
    if failed:
        raise ValueError("the work list points outside its own arrays, the queries or the pool")
    return out
