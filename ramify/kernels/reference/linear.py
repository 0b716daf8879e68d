"""The linear layer in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ramify.kernels.packed_linear import PackedLinear
from ramify.kernels.shapes import check_linear


def pack_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    """The weight as it is."""
    out_features, in_features = weight.shape
    return PackedLinear(weight, bias, in_features, out_features)


def linear(x: Tensor, packed: PackedLinear) -> Tensor:
    """x @ weight^T + bias."""
    check_linear(x, packed.weight, packed.in_features)
    return F.linear(x, packed.weight, packed.bias)


def linear_by_row(x: Tensor, packed: PackedLinear) -> Tensor:
    """The same, each row by itself, so that no bit of it depends on the others."""
    check_linear(x, packed.weight, packed.in_features)
    rows = [F.linear(row, packed.weight, packed.bias) for row in torch.split(x, 1)]
    return torch.cat(rows) if len(x) else x.new_empty(0, packed.out_features)
