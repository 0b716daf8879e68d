"""Quantised weights as records: what the loaders make and the quantised linear ops take.

    rows    weight[n, k] ~ value[n, k] * scale[n]                              fp8 e4m3
    blocks  weight[n, k] ~ value[n, k] * scale[n // 128, k // 128]             fp8 e4m3
    int4    weight[n, k] ~ (nibble[k, n] - zero[k // g, n]) * scale[k // g, n]

A nibble is 4 bits, 0 to 15. A word of `nibbles` holds 8 of them along k, the lowest bits first, so
one load of a word serves 8 steps of the sum over k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_TOP = 448.0  # the largest finite number
BLOCK = 128  # both sides of a block of the `blocks` form
PER_WORD = 8  # nibbles in an int32


@dataclass(frozen=True)
class Fp8Rows:
    """An fp8 weight [out, in] with a scale for each output."""

    weight: Tensor  # [out, in] e4m3
    scale: Tensor  # [out] fp32
    bias: Tensor | None  # [out]


@dataclass(frozen=True)
class Fp8Blocks:
    """An fp8 weight [out, in] with a scale for each 128 x 128 block; edges may be ragged."""

    weight: Tensor  # [out, in] e4m3
    scale: Tensor  # [ceil(out / 128), ceil(in / 128)] fp32
    bias: Tensor | None  # [out]


@dataclass(frozen=True)
class Int4Linear:
    """A 4-bit weight in groups along the inputs, as AWQ and GPTQ checkpoints become at load."""

    nibbles: Tensor  # [in / 8, out] int32
    scale: Tensor  # [groups, out], bf16, fp16 or fp32
    zero: Tensor  # [groups, out] uint8
    bias: Tensor | None  # [out]
    order: Tensor | None = None  # [in] int64: the input that each k multiplies, if not its own

    @property
    def in_features(self) -> int:
        return self.nibbles.shape[0] * PER_WORD

    @property
    def out_features(self) -> int:
        return self.nibbles.shape[1]

    @property
    def group_size(self) -> int:
        return self.in_features // self.scale.shape[0]
