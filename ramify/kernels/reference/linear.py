"""The linear layer in plain torch."""

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
