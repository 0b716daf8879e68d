"""Writing safetensors files without torch, one tensor in memory at a time.

file = length of the header (8 bytes, little-endian) | header: JSON, padded to 8 | the data
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
SHARD_BYTES = 10**9


@dataclass(frozen=True)
class BFloat16Tensor:
    """A tensor to write. `read` gives its float32 values, of `shape`, when their turn comes."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Array]

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return 2 * prod(self.shape)


def write_sharded(
    tensors: Sequence[BFloat16Tensor], folder: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write model.safetensors, or numbered shards of at most `shard_bytes` and their index.

    A single tensor larger than that gets a shard of its own.
    """
    shards = _split(tensors, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0])
        return
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard)
    index = {
        "metadata": {"total_size": sum(tensor.n_bytes for tensor in tensors)},
        "weight_map": {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        },
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")


def to_bfloat16(values: Array) -> Array:
    """The bits of float32 `values` as bfloat16, in uint16: to nearest, ties to even.

    A value past the largest bfloat16 becomes infinite; a NaN stays one.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _split(tensors: Sequence[BFloat16Tensor], shard_bytes: int) -> list[list[BFloat16Tensor]]:
    shards: list[list[BFloat16Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.n_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.n_bytes
    return shards


def _write_file(path: Path, tensors: Sequence[BFloat16Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        ends = [offset, offset + tensor.n_bytes]
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": ends}
        offset = ends[1]
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    with path.open("wb") as file:
        file.write(len(packed).to_bytes(8, "little") + packed)
        for tensor in tensors:
            file.write(to_bfloat16(tensor.read()).astype("<u2", copy=False).tobytes())
