"""The attention of steps as an engine makes them: what candidates are measured and checked on.

    decode    a recorded step (`graph_buckets`), every row with a context of its own
    trunk     the same, but the rows share a trunk: both launches
    prefill   the last chunk of a prompt
    ragged    a bit of everything, in pools that hold NaN where nobody may read: for checking

Contexts may be longer in all than the pools: page numbers are then used again, in pools that are
still larger than any card's cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ramify.kernels.triton.tile_table import AttentionShape
from ramify.kernels.work_list import WorkList, make_work_list
from ramify.srt.attention.work_list import QueryRun, plan_items
from ramify.srt.execution.device import Device
from ramify.srt.execution.graph_buckets import DecodeRow, Tables, decode_block, layout

POOL_BYTES = 2**31  # of keys, and as many of values
POOL_SHARE = 8  # at most this part of the memory that is free
ITEM_WORDS = 6

Attention = Callable[[Tensor, Tensor, Tensor, WorkList, float], Tensor]


@dataclass(frozen=True)
class Decode:
    """`batch` rows, each with `context` keys, of which all share the first `trunk`."""

    batch: int
    context: int
    trunk: int = 0

    def __str__(self) -> str:
        shared = f", {self.trunk} shared" if self.trunk else ""
        return f"decode {self.batch} x {self.context}{shared}"


@dataclass(frozen=True)
class Prefill:
    """The last `new` tokens of a prompt of `length`."""

    new: int
    length: int

    def __str__(self) -> str:
        return f"prefill {self.new} of {self.length}"


Load = Decode | Prefill


@dataclass(frozen=True)
class Step:
    """One call of attention."""

    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    work: WorkList

    def run(self, attention: Attention) -> Tensor:
        """What an implementation makes of it."""
        return attention(self.q, self.k_pool, self.v_pool, self.work, self.q.shape[2] ** -0.5)


@dataclass(frozen=True)
class Steps:
    """Makes the steps of one shape. `dtype` is that of queries, `stored` that of the pools."""

    shape: AttentionShape
    device: Device
    dtype: torch.dtype
    stored: torch.dtype

    def of(self, loads: Sequence[Load]) -> list[Step]:
        """Steps over the same pools, which hold what the largest needs, or POOL_BYTES."""
        most = max(_tokens(load) for load in loads) // self.shape.page_size + 1
        page = self.shape.kv_heads * self.shape.page_size * self.shape.head_dim
        room = POOL_BYTES
        if self.device.is_cuda:
            room = min(room, self.device.free_and_total[0] // POOL_SHARE)
        n_pages = max(min(most, room // (page * self.shape.pool_bytes)), 1)
        pools = [self._numbers(n_pages, *self._page).to(self.stored) for _ in "kv"]
        return [self._step(load, n_pages, pools) for load in loads]

    def ragged(self) -> Step:
        """Rows with a single key, at the edges of pages, a trunk, a prompt, pieces to merge."""
        page = self.shape.page_size
        lengths = [(1, 1), (page, 1), (page + 1, 1), (3 * page - 1, 5), (5 * page, 2 * page + 7)]
        sharing = [(3 * page + 9 * i, 1) for i in range(20)]
        runs, first, used = [], 0, 2
        for i, (length, new) in enumerate(lengths + sharing):
            trunk = (0, 1) if i >= len(lengths) else ()
            own = -(-length // page) - len(trunk)
            runs.append(QueryRun(first, new, length - new, (*trunk, *range(used, used + own))))
            first, used = first + new, used + own
        pools = []
        for _ in "kv":
            pool = torch.full((used, *self._page), torch.nan, device=self.device.torch_device)
            for run in runs:
                for i, number in enumerate(run.pages):
                    n = min(run.start + run.n_rows - i * page, page)
                    pool[number, :, :n] = self._numbers(self.shape.kv_heads, n, self.shape.head_dim)
            pools.append(pool.to(self.stored))
        return Step(self._queries(first), pools[0], pools[1], self._planned(runs, min_items=60))

    @property
    def _page(self) -> tuple[int, int, int]:
        return self.shape.kv_heads, self.shape.page_size, self.shape.head_dim

    def _step(self, load: Load, n_pages: int, pools: list[Tensor]) -> Step:
        if isinstance(load, Prefill):
            pages = tuple(range(-(-load.length // self.shape.page_size)))
            run = QueryRun(0, load.new, load.length - load.new, pages)
            pieces = self.device.attention_pieces(self.shape.kv_heads)
            work = self._planned([run], programs=pieces)
            return Step(self._queries(load.new), pools[0], pools[1], _wrapped(work, n_pages))
        return Step(
            self._queries(load.batch), pools[0], pools[1], _wrapped(self._recorded(load), n_pages)
        )

    def _planned(self, runs: Sequence[QueryRun], min_items: int = 1, programs: int = 0) -> WorkList:
        """As a step that is not recorded plans it."""
        items = plan_items(runs, self.shape.page_size, min_items=min_items, programs=programs)
        positions = [run.start + i for run in runs for i in range(run.n_rows)]
        return self._moved(make_work_list(items.items, items.rows, positions, items.pages))

    def _recorded(self, load: Decode) -> WorkList:
        """As `gpu_decode` lays a step out for its recording."""
        page = self.shape.page_size
        width, shared = -(-load.context // page), load.trunk // page
        table = [
            (*range(shared), *(shared + i * (width - shared) + k for k in range(width - shared)))
            for i in range(load.batch)
        ]
        rows = [DecodeRow(i, load.context - 1, pages) for i, pages in enumerate(table)]
        pieces = self.device.attention_pieces(self.shape.kv_heads)
        several, words = decode_block(rows, load.batch, Tables(page, width, load.batch), pieces)
        room = layout(load.batch, pieces, shared=several)
        _, items, entries, indptr, index = (
            torch.from_numpy(words[at : at + size])
            for at, size in zip(room.offsets, room.sizes, strict=False)
        )
        return self._moved(
            WorkList(
                items=items.view(-1, ITEM_WORDS),
                rows=entries,
                positions=torch.full((load.batch,), load.context - 1, dtype=torch.int32),
                pages=torch.from_numpy(np.array(table, np.int32).ravel()),
                merge_indptr=indptr,
                merge_index=index,
                n_partials=room.entries,
                max_rows=load.batch if several else 1,
                total_rows=room.entries,
            )
        )

    def _moved(self, work: WorkList) -> WorkList:
        where = self.device.torch_device
        moved = {k: v.to(where) for k, v in vars(work).items() if isinstance(v, Tensor)}
        return WorkList(**{**vars(work), **moved})

    def _queries(self, n: int) -> Tensor:
        return self._numbers(n, self.shape.heads, self.shape.head_dim).to(self.dtype)

    def _numbers(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, device=self.device.torch_device, dtype=self.dtype)


def _tokens(load: Load) -> int:
    return load.length if isinstance(load, Prefill) else load.batch * load.context


def _wrapped(work: WorkList, n_pages: int) -> WorkList:
    return WorkList(**{**vars(work), "pages": work.pages % n_pages})
