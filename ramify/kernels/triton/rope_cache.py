"""Head norms, rotary embedding and the write into the paged pools, in one launch.

    q, k of each head:  x = round(x / sqrt(mean(x^2) + eps)) * weight         if there are norms
                        (low, high) = (low cos - high sin, high cos + low sin)
    v, and k after it:  round(x / scale) where the pool is fp8, else as it is

Grid: (T, blocks of heads); a block is of queries, of keys or of values, never of two kinds.
Bytes: qkv once, q out once, the pools' slots once. Numerics: fp32, rounded where the reference
rounds: after the division by the root, after the weight, after the rotation.
"""

import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.shapes import FP8, check_pools, check_rope
from ramify.kernels.triton.launch import cdiv, next_power_of_2

HEADS = 8  # of a program


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
    _, kv_heads, page_size, head_dim = k_pool.shape
    check_pools(k_pool, v_pool, qkv.dtype, head_dim, fp8=True)
    q = qkv.new_empty((len(qkv), heads, head_dim))
    if not len(qkv):
        return q
    block = min(HEADS, next_power_of_2(kv_heads))
    rope_write_kv_kernel[(len(qkv), cdiv(heads, block) + 2 * cdiv(kv_heads, block))](
        qkv,
        positions,
        slots,
        cos_sin,
        k_pool,
        v_pool,
        q,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        eps,
        1 / k_scale,
        1 / v_scale,
        HQ=heads,
        HK=kv_heads,
        D=head_dim,
        P=page_size,
        Q_NORM=q_norm is not None,
        K_NORM=k_norm is not None,
        FP8=k_pool.dtype is FP8,
        HEADS=block,
        BLOCK=next_power_of_2(head_dim // 2),
        num_warps=4 if block * head_dim >= 512 else 1,
    )
    return q


@triton.jit
def rope_write_kv_kernel(
    QKV, Positions, Slots, CosSin, KPool, VPool, Q, QNorm, KNorm,
    eps, k_inverse, v_inverse,
    HQ: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, FP8: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    Q_BLOCKS: tl.constexpr = (HQ + HEADS - 1) // HEADS
    K_BLOCKS: tl.constexpr = (HK + HEADS - 1) // HEADS
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, HEADS)
    d = tl.arange(0, BLOCK)
    in_half = d < D // 2
    Token = QKV + token * ((HQ + 2 * HK) * D)
    Angle = CosSin + tl.load(Positions + token).to(tl.int64) * D + d
    cos = tl.load(Angle, mask=in_half, other=0.0)[None, :]
    sin = tl.load(Angle + D // 2, mask=in_half, other=0.0)[None, :]
    slot = tl.load(Slots + token).to(tl.int64)
    if block < Q_BLOCKS:
        head = block * HEADS + i
        at = head[:, None] * D + d[None, :]
        mask = (head < HQ)[:, None] & in_half[None, :]
        low, high = load_halves(Token, at, mask, QNorm, d, eps, D, Q_NORM)
        Row = Q + token * (HQ * D)
        tl.store(Row + at, (low * cos - high * sin).to(Q.dtype.element_ty), mask=mask)
        tl.store(Row + at + D // 2, (high * cos + low * sin).to(Q.dtype.element_ty), mask=mask)
    elif block < Q_BLOCKS + K_BLOCKS:
        head = (block - Q_BLOCKS) * HEADS + i
        mask = (head < HK)[:, None] & in_half[None, :]
        at = head[:, None] * D + d[None, :]
        low, high = load_halves(Token + HQ * D, at, mask, KNorm, d, eps, D, K_NORM)
        turned = (low * cos - high * sin).to(QKV.dtype.element_ty)
        store_half(KPool, slot, head, d, turned, mask, k_inverse, HK, D, P, FP8)
        turned = (high * cos + low * sin).to(QKV.dtype.element_ty)
        store_half(KPool, slot, head, d + D // 2, turned, mask, k_inverse, HK, D, P, FP8)
    else:
        head = (block - Q_BLOCKS - K_BLOCKS) * HEADS + i
        mask = (head < HK)[:, None] & in_half[None, :]
        Value = Token + (HQ + HK) * D + head[:, None] * D + d[None, :]
        v_low = tl.load(Value, mask=mask, other=0.0)
        v_high = tl.load(Value + D // 2, mask=mask, other=0.0)
        store_half(VPool, slot, head, d, v_low, mask, v_inverse, HK, D, P, FP8)
        store_half(VPool, slot, head, d + D // 2, v_high, mask, v_inverse, HK, D, P, FP8)


@triton.jit
def load_halves(Row, at, mask, Norm, d, eps, D: tl.constexpr, NORMED: tl.constexpr):
    """The two halves of some heads in fp32, through the norm if there is one."""
    low = tl.load(Row + at, mask=mask, other=0.0)
    high = tl.load(Row + at + D // 2, mask=mask, other=0.0)
    kind = low.dtype
    low, high = low.to(tl.float32), high.to(tl.float32)
    if NORMED:
        mean = tl.sum(low * low + high * high, 1) / D
        root = (1 / tl.sqrt(mean + eps))[:, None]
        weight = tl.load(Norm + d, mask=d < D // 2, other=0.0).to(tl.float32)
        low = ((low * root).to(kind).to(tl.float32) * weight[None, :]).to(kind).to(tl.float32)
        weight = tl.load(Norm + d + D // 2, mask=d < D // 2, other=0.0).to(tl.float32)
        high = ((high * root).to(kind).to(tl.float32) * weight[None, :]).to(kind).to(tl.float32)
    return low, high


@triton.jit
def store_half(
    Pool, slot, head, d, x, mask, inverse,
    HK: tl.constexpr, D: tl.constexpr, P: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Write half of some heads into one slot of a pool."""
    Page = Pool + (slot // P * HK * P + slot % P) * D
    if FP8:
        x = tl.minimum(tl.maximum(x.to(tl.float32) * inverse, -448.0), 448.0)
    tl.store(Page + head[:, None] * (P * D) + d[None, :], x.to(Pool.dtype.element_ty), mask=mask)
