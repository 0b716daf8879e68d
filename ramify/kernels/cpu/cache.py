"""The call of `elementwise.cpp` that rotates and writes into the paged pools."""

import torch
from torch import Tensor

from ramify.kernels.cpu.library import library, pointer
from ramify.kernels.cpu.threads import threads
from ramify.kernels.shapes import check_dense, check_pools, check_rope


def rope_write_kv(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos_sin: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """The rotated queries [T, HQ, D]; writes rotated keys and values into their pool slots.

    Raises ValueError for a position or a slot outside its table; then nothing is written. Scales
    are for fp8 pools, which the C++ kernels do not have.
    """
    if (k_scale, v_scale) != (1.0, 1.0):
        raise ValueError("the C++ kernels write no scaled pools: k_scale and v_scale must be 1")
    check_rope(qkv, positions, slots, cos_sin, k_pool, heads)
    pages, kv_heads, page_size, head_dim = k_pool.shape
    check_pools(k_pool, v_pool, qkv.dtype, head_dim)
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None:
            check_dense(name, weight, qkv.dtype, head_dim)
    tokens, max_position = qkv.shape[0], cos_sin.shape[0]
    slots = slots if slots.dtype is torch.int64 else slots.long()
    q = qkv.new_empty(tokens, heads, head_dim)
    failed = library()["rope_write_kv", qkv.dtype](
        qkv.data_ptr(),
        positions.data_ptr(),
        slots.data_ptr(),
        cos_sin.data_ptr(),
        pointer(q_norm),
        pointer(k_norm),
        q.data_ptr(),
        k_pool.data_ptr(),
        v_pool.data_ptr(),
        tokens,
        max_position,
        pages * page_size,
        heads,
        kv_heads,
        head_dim,
        page_size,
        eps,
        threads(),
    )
    if failed:
        raise ValueError(
            f"positions must be in [0, {max_position}) and slots in [0, {pages * page_size})"
        )
    return q
