"""Calls of `elementwise.cpp`: norms and activation."""

import torch
from torch import Tensor

from ramify.kernels.cpu.library import library, pointer
from ramify.kernels.cpu.threads import threads
from ramify.kernels.shapes import check_dense, check_norm, check_silu_mul


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
    library()["rms_norm", x.dtype](
        x.data_ptr(),
        pointer(residual),
        weight.data_ptr(),
        out.data_ptr(),
        tokens,
        width,
        eps,
        threads(),
    )
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up.   gate_up [T, 2 I] -> [T, I]"""
    check_silu_mul(gate_up)
    tokens, width = gate_up.shape
    out = gate_up.new_empty(tokens, width // 2)
    library()["silu_mul", gate_up.dtype](
        gate_up.data_ptr(), out.data_ptr(), tokens, width // 2, threads()
    )
    return out
