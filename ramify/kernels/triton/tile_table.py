"""Which tiles attention works in: the defaults, what may take their place, what was measured.

    default_tiles(shape)   good for every card, by the shape alone
    candidates(shape)      a short list, the default first; every one is compiled by the tests, and
                           those that spilled registers, or asked for too much memory, are not in it
    TileTable              the choice of a card for the shapes that were measured on it

Attention alone has a choice that matters. Norms, activations, rope, merging and sampling stream
rows whose width fixes their blocks, and are bound by memory however they are launched. Dense
linears are the vendor's. The quantised linears and the mixture of experts wait for models.

Pure: integers and tuples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ramify.kernels.triton.sizes import next_power_of_2
from ramify.kernels.triton.tiles import MIN_ROWS, WIDE, Tile, large_tile, small_tile


class AttentionShape(NamedTuple):
    """What a choice of tiles is made for."""

    heads: int
    kv_heads: int
    head_dim: int
    query_bytes: int  # of a number
    pool_bytes: int
    page_size: int


class Tiles(NamedTuple):
    """The tiles of both launches: see `tiles`."""

    small: Tile
    large: Tile


class Candidates(NamedTuple):
    """What each launch may use, its default first."""

    small: tuple[Tile, ...]
    large: tuple[Tile, ...]


TilesOf = Callable[[AttentionShape], Tiles]

# (keys, warps, stages), by whether heads are wide and the bytes of a number in the pool
SMALL = {
    (False, 2): ((64, 4, 3), (64, 4, 7), (64, 8, 5), (32, 4, 5), (32, 4, 7), (32, 2, 5)),
    (False, 1): ((64, 4, 3), (64, 8, 3), (64, 8, 5), (32, 4, 5), (32, 2, 3)),
    (True, 2): ((32, 4, 3), (32, 4, 7), (32, 8, 5), (64, 4, 3), (64, 8, 5)),
}
# (rows, keys, warps, stages, through descriptors), by whether heads are wide
LARGE = {
    False: (
        (128, 64, 8, 3, False),
        (128, 32, 8, 3, False),
        (64, 64, 8, 2, False),
        (64, 64, 4, 3, False),
        (128, 64, 8, 2, True),
        (128, 64, 8, 3, True),
    ),
    True: (
        (64, 32, 8, 3, False),
        (64, 32, 8, 1, False),
        (32, 64, 8, 2, False),
        (32, 32, 4, 3, False),
        (64, 32, 8, 2, True),
        (64, 32, 8, 3, True),
    ),
}


def default_tiles(shape: AttentionShape) -> Tiles:
    """The tiles of a shape that was not measured."""
    group = shape.heads // shape.kv_heads
    return Tiles(
        small_tile(group, shape.head_dim, shape.pool_bytes),
        large_tile(shape.head_dim, shape.query_bytes),
    )


def candidates(shape: AttentionShape) -> Candidates:
    """What may be measured and used for a shape.

    Only the default for fp32, which is for tests, and for wide heads in fp8 pools; only the default
    small tile for more than 16 query heads to a K/V head. A tile of keys that is not the default
    lies in one page.
    """
    default = default_tiles(shape)
    wide = next_power_of_2(shape.head_dim) > WIDE
    if shape.query_bytes == 4 or (wide, shape.pool_bytes) not in SMALL:
        return Candidates((default.small,), (default.large,))
    small = [Tile(MIN_ROWS, *rest) for rest in SMALL[wide, shape.pool_bytes]]
    if default.small.rows != MIN_ROWS:
        small = []
    large = [Tile(*sides) for sides in LARGE[wide]]
    return Candidates(
        _with_default(default.small, small, shape.page_size),
        _with_default(default.large, large, shape.page_size),
    )


def _with_default(default: Tile, others: list[Tile], page_size: int) -> tuple[Tile, ...]:
    return default, *(x for x in others if x != default and page_size % x.keys == 0)


@dataclass(frozen=True)
class TileTable:
    """The tiles that were measured to be best on a card. Raises ValueError for other tiles.

    Only candidates reach a kernel, whatever a table was read from.
    """

    measured: Mapping[AttentionShape, Tiles] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for shape, tiles in self.measured.items():
            _check_shape(shape)
            for name, tile, allowed in zip(Tiles._fields, tiles, candidates(shape), strict=True):
                if tile not in allowed:
                    listed = ", ".join(str(list(other)) for other in allowed)
                    raise ValueError(
                        f"the {name} tile {list(tile)} is none of those for {shape}: {listed}"
                    )

    def tiles_of(self, shape: AttentionShape) -> Tiles:
        """The tiles for a shape: the measured ones, else the default."""
        return self.measured.get(shape) or default_tiles(shape)


def _check_shape(shape: AttentionShape) -> None:
    if min(shape) < 1 or shape.heads % shape.kv_heads:
        raise ValueError(f"{shape} is not a shape of attention")
    if shape.query_bytes not in (2, 4) or shape.pool_bytes not in (1, 2, 4):
        raise ValueError(f"{shape}: numbers have 2 or 4 bytes, in pools 1, 2 or 4")
