"""What the host side of every Triton kernel shares."""

import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError  # a kernel that this GPU cannot run, or cannot compile

from ramify.kernels.triton.sizes import cdiv, next_power_of_2

__all__ = [
    "LOG2E",
    "LOG2_E",
    "TritonError",
    "cdiv",
    "compute_capability",
    "next_power_of_2",
    "precision",
]

LOG2_E = 1.4426950408889634
INTERPRETED = 90
LOG2E = tl.constexpr(LOG2_E)


def precision(x: Tensor) -> str:
    """How `tl.dot` multiplies: fp32 exactly instead of as TF32; it does not matter to the rest."""
    return "ieee" if x.dtype.itemsize == 4 else "tf32"


def compute_capability() -> int:
    """90 for 9.0: of the GPU that is launched on, or of what the interpreter can do."""
    if triton.knobs.runtime.interpret:
        return INTERPRETED
    return int(triton.runtime.driver.active.get_current_target().arch)
