"""The table of rotary angles that the rope op reads."""

import torch
from torch import Tensor


def cos_sin_table(frequencies: list[float], scale: float, length: int) -> Tensor:
    """[length, 2 * len(frequencies)] fp32: cosines then sines of position * frequency, times scale.

    The product is taken in fp32, as the reference implementations of the models do.
    """
    angles = torch.outer(
        torch.arange(length, dtype=torch.float32), torch.tensor(frequencies, dtype=torch.float32)
    )
    return torch.cat((angles.cos() * scale, angles.sin() * scale), dim=-1)
