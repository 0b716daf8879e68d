"""RMSNorm, alone or fused with the residual sum that comes before it.

    residual = round(residual + x)
    y        = round(round(residual / sqrt(mean(residual^2) + eps)) * weight)

Grid    T programs, one row each: the whole row is in registers.
Moves   2 C numbers a row, or 4 C with the residual, and the weight from cache.
Numbers fp32 inside; rounded where the twin in `reference/elementwise.py` rounds, and in its order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.shapes import check_dense, check_norm
from ramify.kernels.triton.launch import next_power_of_2


@triton.jit
def rms_norm_kernel(X, R, W, Y, width, eps, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(X + row + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(R + row + at, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(R.dtype.element_ty)
        tl.store(R + row + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    w = tl.load(W + at, mask=inside, other=0.0).to(tl.float32)
    y = (x * scale).to(Y.dtype.element_ty).to(tl.float32) * w
    tl.store(Y + row + at, y.to(Y.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """round(x / sqrt(mean(x^2) + eps)) * weight.   x [T, C] -> [T, C]"""
    return _rms_norm(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rms_norm(residual + x); changes residual into residual + x.   [T, C] -> [T, C]"""
    check_dense("residual", residual, x.dtype, *x.shape)
    return _rms_norm(x, residual, weight, eps)


def _rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    check_norm(x, weight)
    out = torch.empty_like(x)
    tokens, width = x.shape
    if tokens == 0:
        return out
    block = next_power_of_2(width)
    rms_norm_kernel[(tokens,)](
        x,
        x if residual is None else residual,
        weight,
        out,
        width,
        eps,
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )
    return out
