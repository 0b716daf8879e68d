"""Random weights of the right shapes, for measuring speed without a checkpoint."""

from zlib import crc32

import torch

SPREAD = 0.02  # standard deviation, as models are commonly initialised


class DummySource:
    """A `WeightSource` that invents every tensor asked for.

    A tensor depends on `seed` and its own name only, not on what was read before it.
    """

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> None:
        self._seed = seed
        self._dtype = dtype
        self._total_bytes = 0

    @property
    def total_bytes(self) -> int:
        """Bytes given out so far."""
        return self._total_bytes

    def has(self, name: str) -> bool:
        """True: every tensor can be invented."""
        return True

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Ones for a norm, zeros for a bias, small normal values for the rest."""
        tensor = self._values(name, shape).to(self._dtype)
        self._total_bytes += tensor.nbytes
        return tensor

    def _values(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith(".bias"):
            return torch.zeros(shape)
        if len(shape) == 1 and "norm" in name:
            return torch.ones(shape)
        # One number of 32 bits, since torch's generator on the CPU ignores what is above.
        generator = torch.Generator().manual_seed(crc32(f"{self._seed} {name}".encode()))
        return torch.randn(shape, generator=generator) * SPREAD
