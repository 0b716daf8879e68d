"""The value that `pack_linear` returns and `linear` takes."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class PackedLinear:
    """A weight in the layout of the implementation that packed it, and its bias.

    plain: [out, in]; onednn: opaque; panels: see `cpu/linear.cpp`.
    """

    weight: Tensor
    bias: Tensor | None
    in_features: int
    out_features: int
    layout: Literal["plain", "onednn", "panels"] = "plain"
