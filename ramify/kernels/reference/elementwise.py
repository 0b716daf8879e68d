"""Norms and activation in plain torch: fp32 inside, the rounding order of Hugging Face models."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ramify.kernels.shapes import check_dense, check_norm, check_silu_mul


def normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis: rounded to the type of x, then multiplied by the weight."""
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """round(x / sqrt(mean(x^2) + eps)) * weight.   x [T, C] -> [T, C]"""
    check_norm(x, weight)
    return normalise(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rms_norm(residual + x); changes residual into residual + x.   [T, C] -> [T, C]"""
    check_norm(x, weight)
    check_dense("residual", residual, x.dtype, *x.shape)
    residual.add_(x)
    return normalise(residual, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up.   gate_up [T, 2 I] -> [T, I]"""
    check_silu_mul(gate_up)
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)
