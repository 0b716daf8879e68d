"""Reading a model's tensors by name, from files or from a seed."""

from typing import Protocol

import torch

from ramify.srt.weights.dummy import DummySource
from ramify.srt.weights.safetensors import SafetensorsSource
from ramify.srt.weights.source import ModelFolder


class WeightSource(Protocol):
    """Where tensors come from."""

    @property
    def total_bytes(self) -> int:
        """Bytes of the tensors: of the files, or of what a dummy has given out so far."""

    def has(self, name: str) -> bool:
        """True when `read` would find the tensor."""

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor on the CPU, in the checkpoint's number type. It must not be written to.

        Raises ModelLoadError when it is missing or has another shape.
        """


def open_source(folder: ModelFolder, seed: int = 0) -> WeightSource:
    """The tensors of a prepared model. `seed` matters to dummy models only."""
    if not folder.dummy:
        return SafetensorsSource(folder.path)
    config = folder.config()
    name = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return DummySource(seed, getattr(torch, name, torch.bfloat16))
