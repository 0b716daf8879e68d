"""A linear layer with 4-bit weights and 16-bit activations: AWQ and GPTQ checkpoints.

    w[k, n] = round((nibble[k, n] - zero[k // g, n]) * scale[k // g, n])      y = x w + bias

Grid    product: T/BM x N/BN x S programs, each over 1/S of K. With few rows the weight is all the
        traffic, and only enough programs read it at full speed: S splits K until there are so many.
        add_splits: T N / 1024 programs sum the S parts in order, so equal inputs give equal bits.
        dequantise: K/64 x N/128 programs, for so many rows that the vendor's product on the widened
        weight is faster than widening it again for each tile of rows.
Moves   product: K N / 2 bytes of weight per tile of rows; 4 S T N bytes of parts if S > 1.
Numbers nibbles widened in fp32 and rounded to the type of x, as in the twin; sums in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ramify.kernels.quantised_linear import Int4Linear
from ramify.kernels.reference.quantised import check_int4
from ramify.kernels.triton.launch import cdiv, next_power_of_2, precision

BK = 64
ADD_BLOCK = 1024
ENOUGH_PROGRAMS = 264  # two for each multiprocessor of an H200
MAX_SPLITS = 8
DEQUANTISE_FROM = 256  # rows


@triton.jit
def weight_tile(
    Nibbles, Scale, Zero, k, n, width, out, group, kind: tl.constexpr,
    BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Rows k to k + BK of the weight at columns n, as [BK, BN]; zeros beyond either side."""
    word = k // 8 + tl.arange(0, BK // 8)
    inside = (word * 8 < width)[:, None] & (n < out)[None, :]
    words = tl.load(Nibbles + word.to(tl.int64)[:, None] * out + n[None, :], mask=inside, other=0)
    at = (word * 8 // group).to(tl.int64)[:, None] * out + n[None, :]
    scale = tl.load(Scale + at, mask=inside, other=0.0).to(tl.float32)
    zero = tl.load(Zero + at, mask=inside, other=0).to(tl.int32)
    shifts = tl.arange(0, 8)[None, :, None] * 4
    nibbles = ((words[:, None, :] >> shifts) & 0xF) - zero[:, None, :]
    weight = nibbles.to(tl.float32) * scale[:, None, :]
    return tl.reshape(weight, [BK, BN]).to(kind)


@triton.jit
def product_kernel(
    X, Nibbles, Scale, Zero, Bias, Y, rows, out, width, group, steps,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2)
    acc = tl.zeros([BM, BN], tl.float32)
    first = split * steps * BK
    for k in tl.range(first, tl.minimum(first + steps * BK, width), BK):
        at = k + tl.arange(0, BK)
        inside = (m < rows)[:, None] & (at < width)[None, :]
        x = tl.load(X + m.to(tl.int64)[:, None] * width + at[None, :], mask=inside, other=0.0)
        w = weight_tile(
            Nibbles, Scale, Zero, k, n, width, out, group, X.dtype.element_ty, BK, BN
        )  # fmt: skip
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(Bias + n, mask=n < out, other=0.0).to(tl.float32)[None, :]
    at = (split.to(tl.int64) * rows + m)[:, None] * out + n[None, :]
    tl.store(Y + at, acc.to(Y.dtype.element_ty), mask=(m < rows)[:, None] & (n < out)[None, :])


@triton.jit
def add_splits_kernel(
    Parts, Bias, Y, size, out, splits, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.zeros([BLOCK], tl.float32)
    part = Parts + at
    for _ in tl.range(0, splits):
        y += tl.load(part, mask=at < size, other=0.0)
        part += size
    if HAS_BIAS:
        y += tl.load(Bias + at % out, mask=at < size, other=0.0).to(tl.float32)
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=at < size)


@triton.jit
def dequantise_kernel(
    Nibbles, Scale, Zero, W, width, out, group, BN: tl.constexpr, BK: tl.constexpr
):
    k = tl.program_id(0) * BK
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    w = weight_tile(Nibbles, Scale, Zero, k, n, width, out, group, W.dtype.element_ty, BK, BN)
    at = k + tl.arange(0, BK)
    inside = (at < width)[:, None] & (n < out)[None, :]
    tl.store(W + at.to(tl.int64)[:, None] * out + n[None, :], w, mask=inside)


def linear_int4(x: Tensor, packed: Int4Linear) -> Tensor:
    """x @ weight^T + bias, with the weight rounded to the type of x.   [T, in] -> [T, out]"""
    check_int4(x, packed)
    if packed.order is not None:
        x = x[:, packed.order]
    rows, out = len(x), packed.out_features
    if rows == 0 or out == 0:
        return x.new_empty(rows, out)
    if rows >= DEQUANTISE_FROM:
        weight = dequantise_int4(packed, x.dtype)
        return x @ weight if packed.bias is None else torch.addmm(packed.bias, x, weight)
    return _product(x, packed)


def dequantise_int4(packed: Int4Linear, dtype: torch.dtype) -> Tensor:
    """The weight as [in, out] numbers, its rows in the order of the nibbles."""
    width, out = packed.in_features, packed.out_features
    weight = packed.scale.new_empty(width, out, dtype=dtype)
    dequantise_kernel[(cdiv(width, BK), cdiv(out, 128))](
        packed.nibbles, packed.scale, packed.zero, weight, width, out, packed.group_size,
        BN=128, BK=BK,
    )  # fmt: skip
    return weight


def _product(x: Tensor, packed: Int4Linear) -> Tensor:
    (rows, width), out = x.shape, packed.out_features
    bm = min(max(next_power_of_2(rows), 16), 64)
    bn = 64 if bm == 16 else 128
    tiles = cdiv(rows, bm) * cdiv(out, bn)
    splits = min(max(ENOUGH_PROGRAMS // tiles, 1), MAX_SPLITS, cdiv(width, BK))
    steps = cdiv(cdiv(width, BK), splits)
    y = x.new_empty(rows, out)
    parts = y if splits == 1 else x.new_empty(splits, rows, out, dtype=torch.float32)
    bias = y if packed.bias is None else packed.bias
    product_kernel[(cdiv(rows, bm), cdiv(out, bn), splits)](
        x, packed.nibbles, packed.scale, packed.zero, bias, parts, rows, out, width,
        packed.group_size, steps, HAS_BIAS=packed.bias is not None and splits == 1,
        PRECISION=precision(x), BM=bm, BN=bn, BK=BK, num_warps=4, num_stages=4,
    )  # fmt: skip
    if splits > 1:
        add_splits_kernel[(cdiv(rows * out, ADD_BLOCK),)](
            parts, bias, y, rows * out, out, splits, HAS_BIAS=packed.bias is not None,
            BLOCK=ADD_BLOCK,
        )  # fmt: skip
    return y
