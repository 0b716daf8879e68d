"""Where measured tiles are kept: a file for each card in the cache folder.

    tuning/NVIDIA_H200.json    {"version", "card", "kernels": stamp, "attention": [a shape's tiles]}

A file that is broken, of another version or card, or measured with other kernels is not used, and
one line of the log says so: the defaults serve instead. An engine reads it before anything is
recorded; it is replaced by one rename, so a reader sees the old file or the new one.
"""

import logging
import re
import tempfile
from pathlib import Path

import msgspec

from ramify.kernels.triton.stamp import kernel_stamp
from ramify.kernels.triton.tile_table import (
    AttentionShape,
    Tiles,
    TilesOf,
    TileTable,
    default_tiles,
)
from ramify.kernels.triton.tiles import Tile
from ramify.srt.errors import ConfigError
from ramify.srt.weights.cache_folder import cache_folder

VERSION = 1
logger = logging.getLogger(__name__)


class _Tile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows: int
    keys: int
    warps: int
    stages: int
    descriptors: bool


class _Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    heads: int
    kv_heads: int
    head_dim: int
    query_bytes: int
    pool_bytes: int
    page_size: int


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shape: _Shape
    small: _Tile
    large: _Tile


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    card: str
    kernels: str
    attention: list[_Entry]


class Unusable(Exception):
    """Why a file is not used."""


def tuning_file(card: str) -> Path:
    """The file of a card. Raises ConfigError when the cache folder cannot be used."""
    name = re.sub(r"[^A-Za-z0-9-]+", "_", card).strip("_") or "card"
    return cache_folder() / "tuning" / f"{name}.json"


def measured_tiles(card: str) -> TilesOf:
    """The tiles for each shape: those kept for a card where there are any, else the defaults.

    Raises ModuleNotFoundError where triton is not installed.
    """
    try:
        return read(tuning_file(card), card, kernel_stamp()).tiles_of
    except (ConfigError, Unusable) as error:
        logger.warning("attention runs in its default tiles: %s", error)
        return default_tiles


def read(path: Path, card: str, kernels: str) -> TileTable:
    """The table in a file, empty without one. Raises Unusable."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return TileTable()
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise Unusable(f"{path} is not what `ramify tune` writes: {error}") from error
    if (file.version, file.card, file.kernels) != (VERSION, card, kernels):
        raise Unusable(f"{path} was measured with other kernels or on another card: tune again")
    try:
        return TileTable({AttentionShape(*_values(e.shape)): _tiles(e) for e in file.attention})
    except ValueError as error:
        raise Unusable(f"{path} has what cannot be used: {error}") from error


def keep(path: Path, card: str, kernels: str, shape: AttentionShape, tiles: Tiles) -> None:
    """Add the tiles of a shape to a file, or replace them; entries that cannot be used are lost.

    Raises OSError.
    """
    try:
        measured = {**read(path, card, kernels).measured}
    except Unusable:
        measured = {}
    entries = [
        _Entry(_Shape(*at), *(_Tile(*tile) for tile in found))
        for at, found in sorted((measured | {shape: tiles}).items())
    ]
    data = msgspec.json.encode(_File(VERSION, card, kernels, entries))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / path.name
        whole.write_bytes(msgspec.json.format(data, indent=1))
        whole.replace(path)


def _tiles(entry: _Entry) -> Tiles:
    small, large = (Tile(**msgspec.structs.asdict(tile)) for tile in (entry.small, entry.large))
    return Tiles(small, large)


def _values(struct: msgspec.Struct) -> tuple[int, ...]:
    return msgspec.structs.astuple(struct)
