"""Tensors of a folder of safetensors files, memory-mapped."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ramify.srt.errors import ModelLoadError

INDEX = "model.safetensors.index.json"


class SafetensorsSource:
    """A `WeightSource` over one file, or over the shards that an index lists.

    Pickled checkpoints (.bin, .pt) are refused: loading one runs whatever code it holds.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the files. Raises ModelLoadError when one is missing or broken."""
        self._folder = folder
        names = _shard_names(folder)
        self._files = {name: _open(folder / name) for name in names}
        self._place = {
            tensor: name
            for name, file in self._files.items()
            for tensor in file.keys()  # noqa: SIM118
        }
        self._total_bytes = sum((folder / name).stat().st_size for name in names)

    @property
    def total_bytes(self) -> int:
        """Bytes of the files."""
        return self._total_bytes

    def has(self, name: str) -> bool:
        """True when a file holds the tensor."""
        return name in self._place

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor, backed by the mapped file. Raises ModelLoadError naming both shapes."""
        if name not in self._place:
            raise ModelLoadError(f"{self._folder} has no tensor {name} (shape {list(shape)})")
        tensor: torch.Tensor = self._files[self._place[name]].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"tensor {name} of {self._folder} has shape {list(tensor.shape)}, "
                f"the config asks for {list(shape)}"
            )
        return tensor


def _shard_names(folder: Path) -> list[str]:
    """Names of the files to open, in a fixed order."""
    if (folder / INDEX).is_file():
        return _indexed(folder / INDEX)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if "model.safetensors" in names:
        return ["model.safetensors"]
    if len(names) == 1:
        return names
    if names:
        raise ModelLoadError(f"{folder} has {len(names)} safetensors files and no {INDEX}")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise ModelLoadError(
            f"{folder} has only pickled weights, which could run any code; convert them to "
            f"safetensors"
        )
    raise ModelLoadError(f"{folder} has no safetensors files")


def _indexed(index: Path) -> list[str]:
    try:
        places = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted({str(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{index} is not an index of safetensors files") from error
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise ModelLoadError(f"{index} names {name!r}, which is not a file of its own folder")
    return names


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
