"""Carries out moves between the pool, host memory and files, one after the other.

Page by page: a page of the pool is a run of memory for each layer, and torch copies such runs in
about one and a half times what one memcpy of the same bytes takes (`benchmarks/cache_tiers.py`).
Gathering many pages by an index took three times longer.
"""

from collections.abc import Callable
from typing import Any

from ramify.radix_cache.file_worker import FileWorker
from ramify.radix_cache.host_pool import HostPool
from ramify.radix_cache.kv_pool import KvPool
from ramify.radix_cache.plans import (
    FileDrop,
    FileRead,
    FileWrite,
    Move,
    PageCopy,
    PageLoad,
    PageStore,
)


class PageMover:
    """The pool and the tiers below it. Belongs to the thread that computes.

    A move of a tier that is not there is a bug of whoever decided it: it raises KeyError.
    """

    def __init__(
        self, pool: KvPool, host: HostPool | None = None, files: FileWorker | None = None
    ) -> None:
        self._pool = pool
        self._carry: dict[type[Move], Callable[[Any], None]] = {PageCopy: self._copy}
        if host is not None:
            self._slots = host.slots
            self._carry |= {PageStore: self._store, PageLoad: self._load}
        if files is not None:
            self._carry |= dict.fromkeys((FileWrite, FileRead, FileDrop), files.begin)

    def carry_out(self, moves: tuple[Move, ...]) -> None:
        """Do the moves in their order; those of files are begun, and end with a FileDone."""
        for move in moves:
            self._carry[type(move)](move)

    def _copy(self, move: PageCopy) -> None:
        self._pool.copy((move,))

    def _store(self, move: PageStore) -> None:
        keys, values = self._slots[move.slot]
        keys.copy_(self._pool.keys[:, move.page])
        values.copy_(self._pool.values[:, move.page])

    def _load(self, move: PageLoad) -> None:
        keys, values = self._slots[move.slot]
        self._pool.keys[:, move.page].copy_(keys)
        self._pool.values[:, move.page].copy_(values)
