"""Rotary embedding and the write into the paged pools, in plain torch."""

import torch
from torch import Tensor

from ramify.kernels.reference.elementwise import normalise
from ramify.kernels.shapes import FP8, check_pools, check_rope


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

    An fp8 pool gets round(x / scale), and its largest number where that is too large.
    """
    check_rope(qkv, positions, slots, cos_sin, k_pool, heads)
    kv_heads, head_dim = k_pool.shape[1], k_pool.shape[3]
    check_pools(k_pool, v_pool, qkv.dtype, head_dim, fp8=True)
    per_head = qkv.view(len(qkv), -1, head_dim)
    q, k, v = torch.split(per_head, [heads, kv_heads, kv_heads], dim=1)
    q = q if q_norm is None else normalise(q, q_norm, eps)
    k = k if k_norm is None else normalise(k, k_norm, eps)
    angles = cos_sin[positions.long()]
    write(k_pool, slots, stored(rotate(k, angles), k_pool.dtype, k_scale))
    write(v_pool, slots, stored(v, v_pool.dtype, v_scale))
    return rotate(q, angles)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair (x[i], x[i + D/2]) turned by its angle.   x [T, H, D], angles [T, D]: cos, sin."""
    cos, sin = angles[:, None].chunk(2, dim=-1)
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def stored(x: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """What a pool of this type stores for x: x itself, or x / scale in fp8."""
    if dtype is not FP8:
        return x
    top = torch.finfo(FP8).max
    return (x.float() / scale).clamp(-top, top).to(FP8)


def write(pool: Tensor, slots: Tensor, x: Tensor) -> None:
    """Change pool [N, HK, P, D] at slots [T] (page * P + slot in page) into x [T, HK, D]."""
    page_size = pool.shape[2]
    where = slots.long()
    pool[where // page_size, :, where % page_size] = x
