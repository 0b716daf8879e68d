"""Which tile of queries and keys a program of the attention kernel works on.

An item's tile rows are its (row, query head of one K/V head) pairs: an item of one row is a tile of
G rows, which share every key that is read. There are two launches, as a tile of many rows wastes
registers on few, and a tile of few rows reads the keys of many too often:

    small   items whose pairs fit one tile of 16 (or G) rows; program = item: decode
    large   the others, in tiles of 64 or 128 rows: prefill, and trunks that many requests share

Keys and values come to a tile by a pointer for each of its rows, or, if the tile says so, through
tensor descriptors: one copy of the hardware (TMA) for a tile that lies in one page. Which is faster
is not known, as neither has run on a GPU: so it is a field of the tile, to be chosen by measuring.
"""

from typing import NamedTuple

from ramify.kernels.triton.sizes import next_power_of_2

MIN_ROWS = 16  # what a matrix product needs of each side
WIDE = 128  # above this many elements of a head, tiles are halved to fit registers

DESCRIPTORS_FROM = 90  # compute capability


class Tile(NamedTuple):
    """Sides of a tile, and what a program that works on it is given."""

    rows: int
    keys: int
    warps: int
    stages: int  # depth of the pipeline that brings keys and values
    descriptors: bool = False  # these come through tensor descriptors, where they can


STAGES = {1: 2, 2: 5, 4: 2}  # by bytes of a number in the pool; fp8 needs its registers to widen


def small_tile(group: int, head_dim: int, pool_bytes: int) -> Tile:
    """The tile of decode: bound by memory, so further tiles of keys are always under way.

    It takes five stages for two of them: the page number, which must come first, takes up the rest.
    """
    rows = min(max(MIN_ROWS, next_power_of_2(group)), 64)
    wide = next_power_of_2(head_dim) > WIDE or pool_bytes == 4
    return Tile(rows, 32 if wide else 64, 4, STAGES[pool_bytes])


def large_tile(head_dim: int, query_bytes: int) -> Tile:
    """The tile of prefill: bound by products, so it has as many rows as registers allow."""
    if query_bytes == 4:
        return Tile(32, 32, 8, 1)  # fp32 is for tests: its products do not use tensor cores
    if next_power_of_2(head_dim) > WIDE:
        return Tile(64, 32, 8, 2)
    return Tile(128, 64, 8, 2)


def with_descriptors(tile: Tile) -> Tile:
    """The tile with descriptors, and a stage more, which the page number of a copy takes up."""
    return tile._replace(descriptors=True, stages=tile.stages + 1)


def can_describe(tile: Tile, capability: int, page_size: int, head_dim: int) -> bool:
    """Whether descriptors can bring a tile's keys. `capability` is the GPU's: 90 for 9.0.

    A tile must lie in one page, and its sides be powers of two that a matrix product takes as they
    are. Others come by pointers, which take any page and head.
    """
    return (
        capability >= DESCRIPTORS_FROM
        and page_size % tile.keys == 0
        and head_dim == next_power_of_2(head_dim)
        and head_dim >= MIN_ROWS
    )
