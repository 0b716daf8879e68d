"""Decode steps of a few fixed sizes: which sizes there are, and a step's rows and work list in one.

A recorded step reads its batch from one block of int32 words, so that a new batch is one copy:

    rows [B] | items [I, 6] | item rows [E] | merge indptr [B + 1] | merge index [E]

`rows` are places in the tables of DeviceState; what is free is filled with the spare row. The items
read their pages from the page tables there, row after row, not from a list of the step's own. And
the last item of a row reaches to the end of the row's table: no query sees keys past its position.
So while the batch stays the same, the block does too, though every step adds a key to each row.

Pure: integers, tuples and one array.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt

from ramify.srt.attention.work_list import (
    Piece,
    QueryRun,
    plan_pieces,
    room_for_parts,
    times_used,
)

DIRECT = -1
ITEM_WORDS = 6
ALIGNED = 4  # words: kernels read 16 bytes at a time where they may

Words = npt.NDArray[np.int32]


def bucket_sizes(most: int) -> tuple[int, ...]:
    """Batch sizes that are recorded: 1, 2, 4, 8, then steps of 8, and `most` itself."""
    sizes = {1, 2, 4, *range(8, most, 8), most}
    return tuple(sorted(size for size in sizes if 1 <= size <= most))


def bucket_of(n: int, sizes: Sequence[int]) -> int | None:
    """The smallest size that holds n rows; None if all are too small."""
    at = bisect_left(sizes, n)
    return sizes[at] if at < len(sizes) else None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in the block of a bucket. `entries` bounds item rows and partials alike."""

    bucket: int
    items: int
    entries: int

    @property
    def partials(self) -> int:
        """With an item for each row and no more, no row can be in two."""
        return self.entries if self.items > self.bucket else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Words of rows, items, item rows, indptr and index."""
        return self.bucket, self.items * ITEM_WORDS, self.entries, self.bucket + 1, self.partials

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where they begin, and the end of it all: whole `ALIGNED` runs, as kernels like it."""
        ends = accumulate((-(-size // ALIGNED) * ALIGNED for size in self.sizes), initial=0)
        return tuple(ends)


def layout(bucket: int, n_pieces: int, *, shared: bool) -> Layout:
    """Room for a bucket whose key runs are cut for `n_pieces` programs at once.

    A tree over B rows has at most 2B - 1 nodes. Without sharing an item has one row.
    """
    more_items, more_rows = room_for_parts(n_pieces)
    if not shared:
        return Layout(bucket, bucket + n_pieces, bucket + n_pieces)
    return Layout(bucket, 2 * bucket + more_items, 4 * bucket + more_rows)


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One query: its place in the device's tables, its position, and its page table."""

    row: int
    position: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tables:
    """What the device's page tables look like: `width` pages a row, the spare row last."""

    page_size: int
    width: int
    spare: int


def spare_block(room: Layout, tables: Tables) -> Words:
    """The block of a step without rows, for a recording to be made with."""
    spares = [DecodeRow(tables.spare, 0, ())] * room.bucket
    pieces = [Piece((i,), 0, 1) for i in range(room.bucket)]
    return _lay_out(spares, pieces, room, tables)


def decode_block(
    rows: Sequence[DecodeRow], bucket: int, tables: Tables, n_pieces: int, *, share: bool = True
) -> tuple[bool, Words]:
    """(whether an item has several rows, the block of the step).

    Sharing and cutting are given up, cutting first, where they do not fit the bucket's room.
    Without sharing and `n_pieces` every row is one item.
    """
    spares = [DecodeRow(tables.spare, 0, ())] * (bucket - len(rows))
    runs = [QueryRun(i, 1, row.position, row.pages) for i, row in enumerate(rows)]
    for may_share, programs in ((share, n_pieces), (share, 0), (False, n_pieces)):
        pieces = plan_pieces(runs, tables.page_size, share=may_share, programs=programs)
        shared = any(len(piece.members) > 1 for piece in pieces)
        room = layout(bucket, n_pieces, shared=shared)
        entries = sum(len(piece.members) for piece in pieces) + len(spares)
        if len(pieces) + len(spares) <= room.items and entries <= room.entries:
            break
    pieces += [Piece((len(rows) + i,), 0, 1) for i in range(len(spares))]
    return shared, _lay_out([*rows, *spares], pieces, room, tables)


def _lay_out(
    rows: Sequence[DecodeRow], pieces: Sequence[Piece], room: Layout, tables: Tables
) -> Words:
    uses = times_used(pieces, len(rows))
    items: list[int] = []
    entries: list[int] = []
    partials: list[list[int]] = [[] for _ in rows]
    n_partials = 0
    for piece in pieces:
        first = rows[piece.members[0]]
        page_begin = first.row * tables.width + piece.key_begin // tables.page_size
        keys = piece.n_keys
        if piece.key_end == first.position + 1:  # its last one, as no trunk ends there
            keys = tables.width * tables.page_size - piece.key_begin
        direct = uses[piece.members[0]] == 1
        items += (len(entries), len(piece.members), page_begin, piece.key_begin, keys,
                  DIRECT if direct else n_partials)  # fmt: skip
        entries += piece.members
        for i in () if direct else piece.members:
            partials[i].append(n_partials)
            n_partials += 1
    block = np.zeros(room.offsets[-1], np.int32)
    indptr = np.cumsum([0, *map(len, partials)]).tolist()
    parts: list[Sequence[int]] = [[row.row for row in rows], items, entries]
    parts += [indptr, [*chain.from_iterable(partials)]]
    for at, part in zip(room.offsets, parts, strict=False):
        block[at : at + len(part)] = part
    return block
