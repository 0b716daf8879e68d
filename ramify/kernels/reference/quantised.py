"""fp8 and 4-bit linear layers in plain torch, and the two 4-bit checkpoint layouts taken apart."""

import torch
from torch import Tensor

from ramify.kernels.quantised_linear import (
    BLOCK,
    FP8,
    FP8_TOP,
    PER_WORD,
    Fp8Blocks,
    Fp8Rows,
    Int4Linear,
)
from ramify.kernels.reference.elementwise import silu_mul
from ramify.kernels.shapes import check_dense, check_float

# Where an AWQ word holds its 8 columns: column i in nibble AWQ_NIBBLE[i].
AWQ_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as fp8 with one scale per row: x ~ value * scale.   [T, K] -> [T, K] e4m3, [T] fp32"""
    check_float("x", x, 2)
    value, scale = _quantise(x.float())
    return value, scale.squeeze(-1)


def quantise_groups(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as fp8 with one scale per 128 columns.   [T, K] -> [T, K] e4m3, [T, ceil(K / 128)] fp32"""
    check_float("x", x, 2)
    tokens, width = x.shape
    groups = torch.nn.functional.pad(x.float(), (0, -width % BLOCK)).view(tokens, -1, BLOCK)
    value, scale = _quantise(groups)
    return value.flatten(1)[:, :width].contiguous(), scale.squeeze(-1)


def silu_mul_fp8(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """quantise_rows(silu_mul(gate_up)).   [T, 2 I] -> [T, I] e4m3, [T] fp32"""
    return quantise_rows(silu_mul(gate_up))


def linear_fp8_rows(value: Tensor, scale: Tensor, packed: Fp8Rows, dtype: torch.dtype) -> Tensor:
    """(value * scale) @ (weight * weight scale)^T + bias.   [T, in] e4m3, [T] fp32 -> [T, out]"""
    check_fp8_rows(value, scale, packed)
    product = value.float() @ packed.weight.float().T
    return _with_bias(product * scale[:, None] * packed.scale, packed.bias).to(dtype)


def linear_fp8_blocks(x: Tensor, packed: Fp8Blocks) -> Tensor:
    """x @ weight^T + bias, with x as fp8 by `quantise_groups`.   [T, in] -> [T, out]"""
    check_fp8_blocks(x, packed)
    value, scale = quantise_groups(x)
    out_features, in_features = packed.weight.shape
    wide = packed.scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    weight = packed.weight.float() * wide[:out_features, :in_features]
    activation = value.float() * scale.repeat_interleave(BLOCK, 1)[:, :in_features]
    return _with_bias(activation @ weight.T, packed.bias).to(x.dtype)


def linear_int4(x: Tensor, packed: Int4Linear) -> Tensor:
    """x @ weight^T + bias, with the weight rounded to the type of x.   [T, in] -> [T, out]"""
    check_int4(x, packed)
    if packed.order is not None:
        x = x[:, packed.order]
    product = x.float() @ dequantise_int4(packed, x.dtype).float()
    return _with_bias(product, packed.bias).to(x.dtype)


def dequantise_int4(packed: Int4Linear, dtype: torch.dtype) -> Tensor:
    """The weight as [in, out] numbers, its rows in the order of the nibbles."""
    group = packed.group_size
    nibbles = _nibbles(packed.nibbles, 0).float()
    zero = packed.zero.repeat_interleave(group, 0).float()
    return ((nibbles - zero) * packed.scale.repeat_interleave(group, 0).float()).to(dtype)


def unpack_awq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, bias: Tensor | None = None
) -> Int4Linear:
    """An AWQ layer ("gemm" version) as the record that `linear_int4` takes.

    qweight [in, out / 8] int32, qzeros [groups, out / 8] int32: 8 columns in a word, interleaved
    scales [groups, out]
    """
    nibbles = _pack(_awq_columns(qweight))
    zero = _awq_columns(qzeros).to(torch.uint8)
    return Int4Linear(nibbles, scales.contiguous(), zero.contiguous(), bias)


def unpack_gptq(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
) -> Int4Linear:
    """A GPTQ layer (checkpoint format 1) as the record that `linear_int4` takes.

    qweight [in / 8, out] int32: 8 rows in a word      scales [groups, out]
    qzeros [groups, out / 8] int32: zero - 1, 8 columns in a word
    g_idx [in]: the group of each input; in another order than groups of neighbours, rows are moved
    """
    zero = ((_nibbles(qzeros, 1) + 1) & 0xF).to(torch.uint8)
    nibbles, order = qweight, None
    if g_idx is not None:
        moved = torch.argsort(g_idx.long(), stable=True)
        if not torch.equal(moved, torch.arange(len(moved), device=moved.device)):
            nibbles, order = _pack(_nibbles(qweight, 0)[moved]), moved
    return Int4Linear(nibbles.contiguous(), scales.contiguous(), zero.contiguous(), bias, order)


def check_fp8_rows(value: Tensor, scale: Tensor, packed: Fp8Rows) -> None:
    """Raise ValueError unless the sizes and types are those of the record."""
    out_features, in_features = packed.weight.shape
    check_dense("weight", packed.weight, FP8, out_features, in_features)
    check_dense("weight scale", packed.scale, torch.float32, out_features)
    check_dense("value", value, FP8, len(value), in_features)
    check_dense("scale", scale, torch.float32, len(value))


def check_fp8_blocks(x: Tensor, packed: Fp8Blocks) -> None:
    """Raise ValueError unless the sizes and types are those of the record."""
    check_float("x", x, 2)
    out_features, in_features = packed.weight.shape
    check_dense("x", x, x.dtype, len(x), in_features)
    check_dense("weight", packed.weight, FP8, out_features, in_features)
    blocks = -(-out_features // BLOCK), -(-in_features // BLOCK)
    check_dense("weight scale", packed.scale, torch.float32, *blocks)


def check_int4(x: Tensor, packed: Int4Linear) -> None:
    """Raise ValueError unless the sizes and types are those of the record."""
    check_float("x", x, 2)
    check_dense("x", x, x.dtype, len(x), packed.in_features)
    groups = packed.scale.shape[0]
    if groups == 0 or packed.in_features % groups or packed.group_size % PER_WORD:
        raise ValueError(
            f"{packed.in_features} inputs do not make {groups} groups of a multiple of {PER_WORD}"
        )
    check_dense("nibbles", packed.nibbles, torch.int32, *packed.nibbles.shape)
    check_dense("scale", packed.scale, packed.scale.dtype, groups, packed.out_features)
    check_dense("zero", packed.zero, torch.uint8, groups, packed.out_features)


def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    top = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    scale = torch.where(top > 0, top / FP8_TOP, torch.ones_like(top))
    return (x / scale).clamp(-FP8_TOP, FP8_TOP).to(FP8), scale


def _with_bias(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias.float()


def _nibbles(words: Tensor, axis: int) -> Tensor:
    """The nibbles of int32 words, lowest first, laid out along an axis that grows eightfold."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    parts = (words.unsqueeze(axis + 1) >> shifts.view(-1, *[1] * (words.dim() - axis - 1))) & 0xF
    return parts.flatten(axis, axis + 1)


def _pack(nibbles: Tensor) -> Tensor:
    """[in, out] nibbles as words [in / 8, out]: the inverse of `_nibbles` along axis 0."""
    parts = nibbles.long().view(-1, PER_WORD, nibbles.shape[1])
    shifts = torch.arange(0, 32, 4, device=nibbles.device)
    words = (parts << shifts[:, None]).sum(1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).contiguous()


def _awq_columns(words: Tensor) -> Tensor:
    """The columns of AWQ words in their own order.   [rows, n / 8] int32 -> [rows, n]"""
    parts = _nibbles(words, 1).view(len(words), -1, PER_WORD)
    return parts[..., AWQ_NIBBLE].flatten(1)
