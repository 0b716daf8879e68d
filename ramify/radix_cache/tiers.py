"""What goes down to host memory and disk, what comes back, and where it lies.

               evicted, backed up            written at once
    device  ---------------------->  host  ------------------->  disk
            <----------------------        <-------------------
                 acquire: loads               fetch: prefetched

Pages go by their content (see `page_keys`): whole pages, each with the tokens that it holds. They
are written to disk as they come to host memory, so an idle slot can be given up without waiting,
and a page that is needed again goes back up from wherever it is.

Rules, checked by `invariants`:
 (1) a slot is free or has one page; a page that is read, written or locked keeps its slot;
 (2) no more files than `disk_pages`, those being written included;
 (3) a known page is in host memory or on disk: see `tier_pages`;
 (4) moves are carried out in the order of `moves`, so a slot may be given away as soon as its last
     move is in the list. Only reads and writes of files end later: with `done`.

Pure: nothing is moved here.
"""

from array import array
from collections.abc import Iterable

from ramify.radix_cache.page_keys import PageKeys, page_key
from ramify.radix_cache.plans import (
    FileDone,
    FileDrop,
    FileRead,
    FileWrite,
    Move,
    PageRecord,
    PageStore,
)
from ramify.radix_cache.tier_pages import Fetch, TierPage, TierPages

MOST_WRITES = 512  # begun and not ended: a page that comes when the disk is behind is not written
WRITE_FAILURES = 8  # in a row: then one write at a time tries whether the disk works again


class TierIndex:
    """The pages of host memory and disk. `known` are the files that are there, oldest first."""

    def __init__(
        self,
        page_size: int,
        n_slots: int,
        disk_pages: int = 0,
        known: Iterable[PageRecord] = (),
        prefetch_min_tokens: int = 32,
    ) -> None:
        self.n_slots = n_slots
        self.disk_pages = disk_pages
        self.prefetch_min_tokens = prefetch_min_tokens
        self.pages = TierPages(page_size)
        self.owners: list[TierPage | None] = [None] * n_slots
        self.free = list(range(n_slots - 1, -1, -1))
        self.fetches: dict[int, Fetch] = {}  # by id()
        self.moves: list[Move] = []
        self.losses = 0  # pages that could not be kept, and files that could not be used
        self.version = 0  # changes when a page has come up from disk or could not
        self.n_writing = self.n_reading = self.n_locked = 0
        self._failures = 0  # of writes, in a row
        for record in known:
            self._know(record)

    def _know(self, record: PageRecord) -> None:
        """Take up a file that is there; one too many displaces the oldest."""
        n = len(record.tokens)
        sound = 0 < n <= 4 * self.pages.page_size and n % 4 == 0
        if not sound or record.key != page_key(record.parent, record.tokens):
            self.moves.append(FileDrop(record.key))
        elif record.key not in self.pages.by_key and self._make_room_on_disk():
            page = self.pages.add(record)
            page.on_disk = True
            self.pages.settle(page)

    # --- gauges ----------------------------------------------------------------------------------

    @property
    def io_pending(self) -> bool:
        """Whether files are being read or written."""
        return self.n_reading + self.n_writing > 0

    @property
    def host_pages(self) -> int:
        return self.n_slots - len(self.free)

    @property
    def writes(self) -> bool:
        """Whether there is a disk, and it can be written to as far as is known."""
        return self.disk_pages > 0 and self._failures < WRITE_FAILURES

    @property
    def room(self) -> int:
        """How many slots can be had now."""
        return len(self.free) + len(self.pages.idle)

    # --- down ------------------------------------------------------------------------------------

    def keep(self, page: int, record: PageRecord) -> None:
        """Take over what an evicted page of the device holds, or count it lost."""
        if self._place(page, record) is None:
            self.losses += 1

    def lose(self, record: PageRecord) -> None:
        """Count a page of the device that goes, unless it is known here."""
        self.losses += self.pages.covering(record) is None

    def back_up(self, page: int, record: PageRecord) -> bool:
        """Write what a page of the device holds to disk. False if no slot can be had for it now."""
        known = self.pages.covering(record)
        if known is None or not known.safe:
            known = self._place(page, record)
        return known is not None and known.safe

    def is_safe(self, record: PageRecord) -> bool:
        """Whether it is on disk or on its way there."""
        known = self.pages.covering(record)
        return known is not None and known.safe

    def only_in_host(self) -> list[PageRecord]:
        """What would be written if it were possible, the most recently used first."""
        return [page.record for page in reversed(self.pages.idle.values()) if not page.on_disk]

    def touch_record(self, record: PageRecord) -> None:
        """Mark what is known of a page as used now."""
        known = self.pages.covering(record)
        if known is not None:
            self.pages.touch(known)

    def _place(self, page: int, record: PageRecord) -> TierPage | None:
        """The page of host memory or disk that holds `record`; None if there is no slot for it."""
        known = self.pages.covering(record)
        if known is None or (known.slot < 0 and known.record.key == record.key):
            slot = self._take_slot()
            if slot is None:
                return known
            self.moves.append(PageStore(page, slot))
            known = known or self.pages.add(record)
            self._occupy(known, slot)
            for other in self.pages.shorter(record):
                if not (other.reading or other.writing or other.locks):
                    self._forget(other)
        self._write(known)
        self.pages.touch(known)
        return known

    def _write(self, page: TierPage) -> None:
        """Begin to write a page to disk, if that is wanted and there is room."""
        if page.on_disk or page.writing or not page.ready or self.disk_pages == 0:
            return
        most = MOST_WRITES if self.writes else 1
        if self.n_writing < most and self._make_room_on_disk():
            page.writing = True
            self.n_writing += 1
            self.moves.append(FileWrite(page.slot, page.record))
            self.pages.settle(page)

    def _make_room_on_disk(self) -> bool:
        """Whether there is room for one more file; the least recently used makes way."""
        if len(self.pages.disk) + self.n_writing < self.disk_pages:
            return True
        for page in self.pages.disk.values():
            if not page.reading:
                self._drop_file(page)
                return True
        return False

    # --- up --------------------------------------------------------------------------------------

    def in_host(
        self, key: "array[int]", keys: PageKeys, n: int, limit: int
    ) -> list[tuple[TierPage, int]]:
        """(page, where the match ends in it) of those that can be loaded after n tokens."""
        return self.pages.chain(key, keys, n, limit, ready=True)

    def touch(self, pages: "list[TierPage]") -> None:
        """Mark the pages of a path as used now, the last of them first to go."""
        for page in reversed(pages):
            if page.known:
                self.pages.touch(page)

    def missing(self, key: "array[int]", keys: PageKeys, n: int, limit: int) -> int:
        """How many tokens after the first n are known, but not yet in host memory."""
        return _missing(self.pages.chain(key, keys, n, limit, ready=False), n)

    def fetch(self, key: "array[int]", keys: PageKeys, n: int, limit: int) -> Fetch | None:
        """Begin to read what continues n tokens; None if nothing need or can be waited for.

        At most half of the slots are kept for fetches: the others take what is evicted.
        """
        if not self.pages.disk:
            return None
        chain = self.pages.chain(key, keys, n, limit, ready=False)
        if _missing(chain, n) < self.prefetch_min_tokens:
            return None
        self.touch([page for page, _ in chain])
        fetch = self.hold([])
        for page, _ in chain:
            room = page.locks > 0 or self.n_locked < max(self.n_slots // 2, 1)
            if not room or not (page.slot >= 0 or self._read(page)):
                break
            self._lock(page, fetch)
        if not fetch.pending:
            self.end_fetch(fetch)
            return None
        return fetch

    def hold(self, pages: Iterable[TierPage]) -> Fetch:
        """Keep pages in host memory until `end_fetch`."""
        fetch = Fetch()
        self.fetches[id(fetch)] = fetch
        for page in pages:
            self._lock(page, fetch)
        return fetch

    def end_fetch(self, fetch: Fetch) -> None:
        """The pages of a fetch may go again. What is being read is read to its end."""
        del self.fetches[id(fetch)]
        for page in reversed(fetch.pages):
            page.locks -= 1
            self.n_locked -= page.locks == 0
            self.pages.settle(page)

    def _lock(self, page: TierPage, fetch: Fetch) -> None:
        self.n_locked += page.locks == 0
        page.locks += 1
        fetch.pages.append(page)
        if page.reading:
            page.waiting.append(fetch)
            fetch.open += 1
        self.pages.settle(page)

    def _read(self, page: TierPage) -> bool:
        """Begin to read a page from disk. False if no slot can be had."""
        slot = self._take_slot() if page.on_disk else None
        if slot is None:
            return False
        page.reading = True
        self.n_reading += 1
        self._occupy(page, slot)
        page.from_disk = True
        self.moves.append(FileRead(page.record, slot))
        return True

    # --- the ends of reads and writes ------------------------------------------------------------

    def done(self, done: FileDone) -> None:
        """Fold in the end of a read or a write."""
        page = self.owners[done.move.slot]
        assert page is not None, f"nothing is done with slot {done.move.slot}"
        assert page.record.key == done.move.record.key, "another page is in that slot"
        self.losses += not done.ok
        page.on_disk = done.ok
        if isinstance(done.move, FileRead):
            self._read_ended(page)
        else:
            page.writing = False
            self.n_writing -= 1
            self._failures = 0 if done.ok else self._failures + 1
        if not page.known:
            self._free_slot(page)
        if not page.known or not done.ok:
            self._remove_file(page.record.key)
        self.pages.settle(page)

    def _read_ended(self, page: TierPage) -> None:
        page.reading = False
        self.n_reading -= 1
        self.version += 1
        for fetch in page.waiting:
            fetch.open -= 1
        page.waiting.clear()
        if page.known and not page.on_disk:
            self.pages.remove(page)

    def _remove_file(self, key: bytes) -> None:
        """Remove a file, unless a page has become known that has it or will write it."""
        again = self.pages.by_key.get(key)
        if again is None or not again.safe:
            self.moves.append(FileDrop(key))

    # --- slots and files -------------------------------------------------------------------------

    def _take_slot(self) -> int | None:
        """A slot that nothing uses, if need be that of the page used longest ago; None: no such."""
        if not self.free and self.pages.idle:
            page = next(iter(self.pages.idle.values()))
            if page.on_disk:
                self._free_slot(page)
                self.pages.settle(page)
            else:
                self._forget(page)
        return self.free.pop() if self.free else None

    def _occupy(self, page: TierPage, slot: int) -> None:
        self.owners[slot] = page
        page.slot, page.from_disk = slot, False
        self.pages.settle(page)

    def _free_slot(self, page: TierPage) -> None:
        if page.slot >= 0:
            self.owners[page.slot] = None
            self.free.append(page.slot)
            page.slot = -1

    def _drop_file(self, page: TierPage) -> None:
        self.moves.append(FileDrop(page.record.key))
        page.on_disk = False
        self.pages.settle(page)
        if page.slot < 0:
            self.pages.remove(page)

    def _forget(self, page: TierPage) -> None:
        """Forget a page, slot and file; what is being read or written keeps its slot until then."""
        self.pages.remove(page)
        if page.reading or page.writing:
            return
        if page.on_disk:
            self.moves.append(FileDrop(page.record.key))
            page.on_disk = False
        self._free_slot(page)

    def clear(self) -> None:
        """Forget every page. No fetch may be out."""
        for page in list(self.pages.by_key.values()):
            self._forget(page)
        self.version += 1


def _missing(chain: list[tuple[TierPage, int]], n: int) -> int:
    """How many tokens of a chain that continues n tokens are not in host memory."""
    missing = 0
    for page, end in chain:
        if not page.ready:
            missing += end - n
        n = end
    return missing
