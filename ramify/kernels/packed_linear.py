"""The value that `pack_linear` returns and `linear` takes."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PackedLinear:
    """A weight in the layout of the implementation that packed it, and its bias."""

    weight: Tensor
    bias: Tensor | None
    in_features: int
    out_features: int
    prepacked: bool  # False: `weight` is the plain [out, in] matrix
