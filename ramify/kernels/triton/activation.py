"""SwiGLU's middle: silu(gate) * up, in the type of its input or as fp8 with a scale per row.

    silu_mul      y = round(silu(gate) * up)
    silu_mul_fp8  scale = max |y| / 448,  value = fp8(y / scale)      y rounded as in silu_mul

Grid    silu_mul: T x I/1024 programs. silu_mul_fp8: T programs, two passes over the row, of which
        the second finds it in cache.
Moves   3 I numbers a row; as fp8 2 I numbers and I bytes.
Numbers fp32 inside. fp8 is e4m3 and saturates; a row of zeros has scale 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.quantised_linear import FP8
from ramify.kernels.shapes import check_silu_mul
from ramify.kernels.triton.launch import cdiv

BLOCK = 1024
FP8_TOP = tl.constexpr(448.0)


@triton.jit
def silu_mul_tile(GateUp, row, at, width):
    """silu(gate) * up of some columns of a row, rounded once, in fp32; zeros beyond the row."""
    inside = at < width
    gate = tl.load(GateUp + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(GateUp + (row * 2 + 1) * width + at, mask=inside, other=0.0).to(tl.float32)
    return (gate * tl.sigmoid(gate) * up).to(GateUp.dtype.element_ty).to(tl.float32)


@triton.jit
def silu_mul_kernel(GateUp, Y, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = silu_mul_tile(GateUp, row, at, width)
    tl.store(Y + row * width + at, y.to(Y.dtype.element_ty), mask=at < width)


@triton.jit
def silu_mul_fp8_kernel(GateUp, Value, Scale, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, width, BLOCK):
        y = silu_mul_tile(GateUp, row, start + tl.arange(0, BLOCK), width)
        top = tl.maximum(top, tl.abs(y))
    largest = tl.max(top, 0)
    scale = tl.where(largest > 0.0, tl.div_rn(largest, FP8_TOP), 1.0)
    tl.store(Scale + row, scale)
    for start in tl.range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        y = tl.div_rn(silu_mul_tile(GateUp, row, at, width), scale)
        y = tl.minimum(tl.maximum(y, -FP8_TOP), FP8_TOP)
        tl.store(Value + row * width + at, y.to(Value.dtype.element_ty), mask=at < width)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up.   gate_up [T, 2 I] -> [T, I]"""
    check_silu_mul(gate_up)
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, width)
    if out.numel():
        grid = (tokens, cdiv(width, BLOCK))
        silu_mul_kernel[grid](gate_up, out, width, BLOCK=BLOCK, num_warps=4)
    return out


def silu_mul_fp8(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """quantise_rows(silu_mul(gate_up)) in one kernel.   [T, 2 I] -> [T, I] e4m3, [T] fp32"""
    check_silu_mul(gate_up)
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    value = gate_up.new_empty(tokens, width, dtype=FP8)
    scale = gate_up.new_empty(tokens, dtype=torch.float32)
    if tokens:
        silu_mul_fp8_kernel[(tokens,)](gate_up, value, scale, width, BLOCK=BLOCK, num_warps=4)
    return value, scale
