"""fp8 (e4m3) linear layers, and their activations as fp8. For compute capability 8.9 and above.

    rows    y[t, n] = scale[t] * weight scale[n] * sum_k value[t, k] * weight[n, k]
    blocks  y[t, n] = sum over 128-blocks b of k:
                scale[t, b] * weight scale[n // 128, b] * sum_k in b value[t, k] * weight[n, k]

Grid    quantise_rows: T programs, two passes. quantise_groups: T x K/1024 programs.
        product: T/BM x N/BN programs, over all of K in steps of 128.
Moves   product: (T K N/BN + N K T/BM) bytes and 2 T N bytes; weights once if T fits one tile.
Numbers the sums of 128 products are added up in fp32 outside the tensor core, whose own sum has
        fewer bits for fp8. Rounded once. A scale is max / 448; a row of zeros has scale 1.

Where it takes the sizes, rows are the vendor's product, through torch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.quantised_linear import BLOCK as GROUP
from ramify.kernels.quantised_linear import FP8, Fp8Blocks, Fp8Rows
from ramify.kernels.reference.quantised import check_fp8_blocks, check_fp8_rows
from ramify.kernels.shapes import check_float
from ramify.kernels.triton.launch import cdiv, next_power_of_2

ROW_BLOCK = 1024
GROUPS = 8  # of a program of quantise_groups
BK = tl.constexpr(128)
TOP = tl.constexpr(448.0)
VENDOR_MULTIPLE = 16  # of both sides of the weight


@triton.jit
def scale_of(largest):
    return tl.where(largest > 0.0, tl.div_rn(largest, TOP), 1.0)


@triton.jit
def to_fp8(x, scale, kind: tl.constexpr):
    return tl.minimum(tl.maximum(tl.div_rn(x, scale), -TOP), TOP).to(kind)


@triton.jit
def quantise_rows_kernel(X, Value, Scale, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(X + row * width + at, mask=at < width, other=0.0).to(tl.float32)
        top = tl.maximum(top, tl.abs(x))
    scale = scale_of(tl.max(top, 0))
    tl.store(Scale + row, scale)
    for start in tl.range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(X + row * width + at, mask=at < width, other=0.0).to(tl.float32)
        value = to_fp8(x, scale, Value.dtype.element_ty)
        tl.store(Value + row * width + at, value, mask=at < width)


@triton.jit
def quantise_groups_kernel(X, Value, Scale, width, n_groups, GROUPS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    at = group[:, None] * BK + tl.arange(0, BK)[None, :]
    x = tl.load(X + row * width + at, mask=at < width, other=0.0).to(tl.float32)
    scale = scale_of(tl.max(tl.abs(x), 1))
    value = to_fp8(x, scale[:, None], Value.dtype.element_ty)
    tl.store(Value + row * width + at, value, mask=at < width)
    tl.store(Scale + row * n_groups + group, scale, mask=group < n_groups)


@triton.jit
def product_kernel(
    X, XScale, W, WScale, Bias, Y, rows, out, width, n_groups,
    IN_BLOCKS: tl.constexpr, HAS_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    x_at = m.to(tl.int64)[:, None] * width + k[None, :]
    w_at = n.to(tl.int64)[None, :] * width + k[:, None]
    acc = tl.zeros([BM, BN], tl.float32)
    for group in tl.range(0, n_groups):
        inside = group * BK + k < width
        x = tl.load(X + x_at + group * BK, mask=(m < rows)[:, None] & inside[None, :], other=0.0)
        w = tl.load(W + w_at + group * BK, mask=(n < out)[None, :] & inside[:, None], other=0.0)
        part = tl.dot(x, w)
        if IN_BLOCKS:
            x_scale = tl.load(XScale + m.to(tl.int64) * n_groups + group, mask=m < rows, other=0.0)
            w_scale = tl.load(WScale + (tl.program_id(1) * BN // BK) * n_groups + group)
            part *= x_scale[:, None] * w_scale
        acc += part
    if not IN_BLOCKS:
        acc *= tl.load(XScale + m, mask=m < rows, other=0.0)[:, None]
        acc *= tl.load(WScale + n, mask=n < out, other=0.0)[None, :]
    if HAS_BIAS:
        acc += tl.load(Bias + n, mask=n < out, other=0.0).to(tl.float32)[None, :]
    y_at = m.to(tl.int64)[:, None] * out + n[None, :]
    inside = (m < rows)[:, None] & (n < out)[None, :]
    tl.store(Y + y_at, acc.to(Y.dtype.element_ty), mask=inside)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as fp8 with one scale per row: x ~ value * scale.   [T, K] -> [T, K] e4m3, [T] fp32"""
    check_float("x", x, 2)
    value, scale = torch.empty_like(x, dtype=FP8), x.new_empty(len(x), dtype=torch.float32)
    if len(x):
        quantise_rows_kernel[(len(x),)](x, value, scale, x.shape[1], BLOCK=ROW_BLOCK)
    return value, scale


def quantise_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as fp8 with one scale per 128 columns.   [T, K] -> [T, K] e4m3, [T, ceil(K / 128)] fp32"""
    check_float("x", x, 2)
    rows, width = x.shape
    n_groups = cdiv(width, GROUP)
    value, scale = torch.empty_like(x, dtype=FP8), x.new_empty(rows, n_groups, dtype=torch.float32)
    if scale.numel():
        quantise_groups_kernel[(rows, cdiv(n_groups, GROUPS))](
            x, value, scale, width, n_groups, GROUPS=GROUPS
        )
    return value, scale


def linear_fp8_rows(value: Tensor, scale: Tensor, packed: Fp8Rows, dtype: torch.dtype) -> Tensor:
    """(value * scale) @ (weight * weight scale)^T + bias.   [T, in] e4m3, [T] fp32 -> [T, out]"""
    check_fp8_rows(value, scale, packed)
    out, width = packed.weight.shape
    multiples = out % VENDOR_MULTIPLE == 0 and width % VENDOR_MULTIPLE == 0
    if multiples and dtype is torch.bfloat16 and len(value):
        weight, bias = packed.weight.t(), packed.bias
        return torch._scaled_mm(
            value, weight, scale[:, None], packed.scale[None, :], bias, out_dtype=dtype
        )
    return _product(value, scale, packed, dtype, in_blocks=False)


def linear_fp8_blocks(x: Tensor, packed: Fp8Blocks) -> Tensor:
    """x @ weight^T + bias, with x as fp8 by `quantise_groups`.   [T, in] -> [T, out]"""
    check_fp8_blocks(x, packed)
    value, scale = quantise_groups(x)
    return _product(value, scale, packed, x.dtype, in_blocks=True)


def _product(
    value: Tensor,
    scale: Tensor,
    packed: Fp8Rows | Fp8Blocks,
    dtype: torch.dtype,
    *,
    in_blocks: bool,
) -> Tensor:
    (rows, width), out = value.shape, packed.weight.shape[0]
    y = value.new_empty(rows, out, dtype=dtype)
    if y.numel() == 0:
        return y
    bm = min(max(next_power_of_2(rows), 16), 128)
    bn = 128 if bm >= 64 else 32
    product_kernel[(cdiv(rows, bm), cdiv(out, bn))](
        value, scale, packed.weight, packed.scale, y if packed.bias is None else packed.bias, y,
        rows, out, width, cdiv(width, GROUP), IN_BLOCKS=in_blocks,
        HAS_BIAS=packed.bias is not None, BM=bm, BN=bn, num_warps=8 if bm == 128 else 4,
        num_stages=3,
    )  # fmt: skip
    return y
