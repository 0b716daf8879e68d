"""What the host side of every Triton kernel shares."""

import triton.language as tl
from torch import Tensor
from triton.errors import TritonError  # a kernel that this GPU cannot run, or cannot compile

from ramify.kernels.triton.sizes import cdiv, next_power_of_2

__all__ = ["LOG2E", "LOG2_E", "TritonError", "cdiv", "next_power_of_2", "precision"]

LOG2_E = 1.4426950408889634
LOG2E = tl.constexpr(LOG2_E)


def precision(x: Tensor) -> str:
    """How `tl.dot` multiplies: fp32 exactly instead of as TF32; it does not matter to the rest."""
    return "ieee" if x.dtype.itemsize == 4 else "tf32"
