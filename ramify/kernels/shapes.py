"""The axis legend of all kernels, and the argument checks that every implementation shares.

T   query tokens of the step (prefill chunks, decode rows, drafts: all alike)
C   channels (hidden size)              I   channels inside the MLP
HQ  query heads     HK  key/value heads     G = HQ / HK  query heads that share one K/V head
D   head dim, a multiple of 8
N   pages in a pool     P  tokens in a page
R   row entries of a work list (a query token may be a row of several items)

A pool is [N, HK, P, D]: the P keys of one page and head are one contiguous run of memory.
The checks are cheap: they read sizes and types, never values (`work_list.check` reads values).
"""

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP8 = torch.float8_e4m3fn
MAX_HEAD_DIM = 512


def check_dense(name: str, x: Tensor, dtype: torch.dtype, *sizes: int) -> None:
    """Raise ValueError unless `x` is a contiguous CPU or device tensor of this type and size."""
    if x.shape != sizes or x.dtype is not dtype or not x.is_contiguous():
        raise ValueError(
            f"{name} must be a contiguous {dtype} tensor of shape {list(sizes)}, "
            f"got {x.dtype} {list(x.shape)}{'' if x.is_contiguous() else ', not contiguous'}"
        )


def check_float(name: str, x: Tensor, dims: int) -> None:
    """Raise ValueError unless `x` is a contiguous bf16, fp16 or fp32 tensor of `dims` axes."""
    if x.dim() != dims or x.dtype not in DTYPES or not x.is_contiguous():
        raise ValueError(
            f"{name} must be a contiguous bfloat16, float16 or float32 tensor with {dims} axes, "
            f"got {x.dtype} {list(x.shape)}{'' if x.is_contiguous() else ', not contiguous'}"
        )


def check_pools(
    k_pool: Tensor, v_pool: Tensor, dtype: torch.dtype, head_dim: int, *, fp8: bool = False
) -> None:
    """Raise ValueError unless both pools are [N, HK, P, D] with the type and D of the queries.

    With `fp8` both may store float8_e4m3fn instead.
    """
    shape = k_pool.shape
    if len(shape) != 4 or shape[3] != head_dim:
        raise ValueError(f"k_pool must be [pages, kv heads, page size, {head_dim}], got {shape}")
    stored = FP8 if fp8 and k_pool.dtype is FP8 else dtype
    check_dense("k_pool", k_pool, stored, *shape)
    check_dense("v_pool", v_pool, stored, *shape)


def check_heads(heads: int, kv_heads: int, head_dim: int) -> None:
    """Raise ValueError unless query heads group evenly over K/V heads and D is 8, 16, .. 512."""
    if heads <= 0 or heads % kv_heads:
        raise ValueError(f"query heads ({heads}) must be a multiple of K/V heads ({kv_heads})")
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"the head dim must be a multiple of 8 up to 512, got {head_dim}")


def check_linear(x: Tensor, weight: Tensor, in_features: int) -> None:
    """Raise ValueError unless x is [T, in] and of the type of the packed weight."""
    check_float("x", x, 2)
    if x.shape[1] != in_features or x.dtype is not weight.dtype:
        raise ValueError(
            f"x must be {in_features} wide and {weight.dtype}, got {x.shape[1]}, {x.dtype}"
        )


def check_norm(x: Tensor, weight: Tensor) -> None:
    """Raise ValueError unless x is [T, C] and weight [C], of one type."""
    check_float("x", x, 2)
    check_dense("weight", weight, x.dtype, x.shape[1])


def check_rope(
    qkv: Tensor, positions: Tensor, slots: Tensor, cos_sin: Tensor, k_pool: Tensor, heads: int
) -> None:
    """Raise ValueError unless the arguments of `rope_write_kv` have the sizes of its table."""
    check_float("qkv", qkv, 2)
    tokens, width = qkv.shape
    _, kv_heads, _, head_dim = k_pool.shape
    check_heads(heads, kv_heads, head_dim)
    if width != (heads + 2 * kv_heads) * head_dim:
        raise ValueError(f"qkv must be {(heads + 2 * kv_heads) * head_dim} wide, got {width}")
    check_dense("positions", positions, torch.int32, tokens)
    check_dense("slots", slots, torch.int32 if slots.dtype is torch.int32 else torch.int64, tokens)
    check_dense("cos_sin", cos_sin, torch.float32, cos_sin.shape[0], head_dim)


def check_silu_mul(gate_up: Tensor) -> None:
    """Raise ValueError unless gate_up is [T, 2I]."""
    check_float("gate_up", gate_up, 2)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be an even number of columns, got {gate_up.shape[1]}")


def check_attention(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, positions: Tensor, *, fp8: bool = False
) -> None:
    """Raise ValueError unless q [T, HQ, D], the pools [N, HK, P, D] and positions [T] fit."""
    check_float("q", q, 3)
    tokens, heads, head_dim = q.shape
    check_pools(k_pool, v_pool, q.dtype, head_dim, fp8=fp8)
    check_heads(heads, k_pool.shape[1], head_dim)
    if positions.shape[0] != tokens:
        raise ValueError(f"the work list is for {positions.shape[0]} tokens, q has {tokens}")


def check_mask_logits(logits: Tensor, rows: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless there is one mask of 32-bit words for each of the rows."""
    check_float("logits", logits, 2)
    if mask.dim() != 2:
        raise ValueError(f"mask must have 2 axes, got {mask.dim()}")
    check_dense("mask", mask, torch.int32, *mask.shape)
    check_dense("rows", rows, torch.int64, len(mask))


def check_copies(keys: Tensor, values: Tensor, copies: Tensor) -> None:
    """Raise ValueError unless both pools are [layers, N, HK, P, D] and copies [n, 3]."""
    if keys.dim() != 5:
        raise ValueError(f"keys must be [layers, pages, kv heads, P, D], got {list(keys.shape)}")
    check_dense("keys", keys, keys.dtype, *keys.shape)
    check_dense("values", values, keys.dtype, *keys.shape)
    check_dense("copies", copies, torch.int64, len(copies), 3)


def check_pages(keys: Tensor, values: Tensor, pages: Tensor, slots: Tensor, where: Tensor) -> None:
    """Raise ValueError unless slots are [S, 2, layers, HK, P, D]; pages and where [n]."""
    check_copies(keys, values, pages.new_empty((0, 3)))
    layers, _, *page = keys.shape
    check_dense("slots", slots, keys.dtype, len(slots), 2, layers, *page)
    check_dense("pages", pages, torch.int64, len(pages))
    check_dense("where", where, torch.int64, len(pages))
