"""What one step's attention has to do: a list of items, each some query rows against one key run.

    request A  trunk trunk trunk  a a a          items            rows read      keys read
    request B  trunk trunk trunk  b b            0  trunk         A B C D        0 .. 47
    request C  trunk trunk trunk  c              1  A's own       A              48 .. 50
    request D  trunk trunk trunk  d d d d        2  B's own       B              48 .. 49
    (prefill)                                    3  C's own ...

Requests that share a trunk share one item for it, so its keys are read once in the step. A token
that is a row of several items has one partial result in each; a ragged merge by log-sum-exp joins
them. Prefill is an item with many rows and a causal limit; a decode step without sharing is one
item with one row per request. Kernels know only items.

    items[i] = row_begin row_count | page_begin | key_begin key_count | partial_begin
                    |        |          |            |         |            |
    rows  .. [======rows=====] ..       |            |         |            partial of its first
    pages .............. [ page page page ..]        |         |            row, or -1: write the
                           ^ holds key_begin --------+         |            output directly
    keys                      [key_begin ....... key_begin + key_count)

1. The key at position p is in slot p % P of page `pages[page_begin + p // P - key_begin // P]`.
2. Token t sees the key at position p iff p <= positions[t].
3. partial_begin is -1 iff this item is the only one of every row in it.
4. merge_index[merge_indptr[t] : merge_indptr[t + 1]] are the partials of token t: none if direct.
5. Every token is a row of at least one item, and sees at least one key.
6. An item without rows does nothing: such items fill a list up to a fixed length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ramify.kernels.shapes import check_dense

DIRECT = -1


class Item(NamedTuple):
    """One line of `WorkList.items`; the fields are its columns, in order."""

    row_begin: int
    row_count: int
    page_begin: int
    key_begin: int
    key_count: int
    partial_begin: int


@dataclass(frozen=True)
class WorkList:
    """The items of one step, as tensors that every layer reuses. Rules in the module docstring."""

    items: Tensor  # [n, 6] int32, columns as in Item
    rows: Tensor  # [R] int32: query token of each row entry
    positions: Tensor  # [T] int32: position of each query token
    pages: Tensor  # [*] int32: page ids, in runs that items point into
    merge_indptr: Tensor  # [T + 1] int32
    merge_index: Tensor  # [n_partials] int32
    n_partials: int  # one partial row is [HQ, D] fp32 and its log-sum-exp [HQ] fp32
    max_rows: int  # no item has more rows, and all together have at most total_rows: what a
    total_rows: int  # launch must provide for, known without reading the items
    on_host: "WorkList | None" = None  # the same list in host memory, for who plans there

    def __post_init__(self) -> None:
        """Raise ValueError for a wrong type or size: once per step, not in each layer."""
        int32, tokens = torch.int32, len(self.positions)
        check_dense("items", self.items, int32, len(self.items), len(Item._fields))
        check_dense("rows", self.rows, int32, len(self.rows))
        check_dense("positions", self.positions, int32, tokens)
        check_dense("pages", self.pages, int32, len(self.pages))
        check_dense("merge_indptr", self.merge_indptr, int32, tokens + 1)
        check_dense("merge_index", self.merge_index, int32, self.n_partials)


def make_work_list(
    items: Sequence[Item | tuple[int, int, int, int, int, int]],
    rows: Sequence[int],
    positions: Sequence[int],
    pages: Sequence[int],
) -> WorkList:
    """The tensors of a work list; the merge lists follow from the items' partial_begin.

    Partials must be numbered from 0 without gaps. Raises ValueError if they are not.
    """
    partials: list[list[int]] = [[] for _ in positions]
    n_partials = 0
    for row_begin, row_count, _, _, _, partial_begin in items:
        if partial_begin == DIRECT:
            continue
        if partial_begin != n_partials:
            raise ValueError(f"partial_begin must be {n_partials} here, got {partial_begin}")
        for token in rows[row_begin : row_begin + row_count]:
            partials[token].append(n_partials)
            n_partials += 1
    indptr = [0]
    for mine in partials:
        indptr.append(indptr[-1] + len(mine))
    flat = [partial for mine in partials for partial in mine]
    return WorkList(
        items=torch.tensor(items, dtype=torch.int32).reshape(-1, 6),
        rows=torch.tensor(rows, dtype=torch.int32),
        positions=torch.tensor(positions, dtype=torch.int32),
        pages=torch.tensor(pages, dtype=torch.int32),
        merge_indptr=torch.tensor(indptr, dtype=torch.int32),
        merge_index=torch.tensor(flat, dtype=torch.int32),
        n_partials=n_partials,
        max_rows=max((item[1] for item in items), default=0),
        total_rows=sum(item[1] for item in items),
    )


def check(work: WorkList, n_pages: int, page_size: int) -> None:
    """Raise ValueError unless every index of `work` stays inside its array and the rules hold.

    Reads values, so it is meant for tests and for debugging, not for every step.
    """
    tokens = work.positions.shape[0]
    rows = work.rows.tolist()
    _check_range("rows", work.rows, tokens)
    _check_range("pages", work.pages, n_pages)
    _check_range("merge_index", work.merge_index, work.n_partials)
    seen = [0] * tokens
    partials = [0] * tokens
    for number, raw in enumerate(work.items.tolist()):
        item = Item(*raw)
        if item.row_count == 0:
            continue
        offset = item.key_begin % page_size
        last_page = item.page_begin + (offset + item.key_count - 1) // page_size
        if item.row_begin < 0 or item.row_begin + item.row_count > len(rows):
            raise ValueError(f"item {number} reads rows beyond the {len(rows)} listed: {item}")
        if item.row_count > work.max_rows:
            raise ValueError(f"item {number} has more rows than max_rows, {work.max_rows}: {item}")
        if item.key_count < 1 or item.key_begin < 0 or item.page_begin < 0:
            raise ValueError(f"item {number} needs a key run inside its pages: {item}")
        if last_page >= work.pages.shape[0]:
            raise ValueError(f"item {number} reads pages beyond those listed: {item}")
        if item.partial_begin + item.row_count > work.n_partials and item.partial_begin != DIRECT:
            raise ValueError(f"item {number} writes partials beyond {work.n_partials}: {item}")
        for token in rows[item.row_begin : item.row_begin + item.row_count]:
            seen[token] += 1
            partials[token] += item.partial_begin != DIRECT
    if int(work.items[:, 1].sum()) > work.total_rows:
        raise ValueError(f"the items have more rows than total_rows, {work.total_rows}")
    for token, (count, partial) in enumerate(zip(seen, partials, strict=True)):
        begin, end = work.merge_indptr[token : token + 2].tolist()
        if count == 0 or partial != end - begin or (count > 1 and partial != count):
            raise ValueError(f"token {token} is in {count} items, with {partial} partials, and "
                             f"merges {end - begin}")  # fmt: skip


def _check_range(name: str, index: Tensor, end: int) -> None:
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < end):
        raise ValueError(f"{name} must be in [0, {end})")
