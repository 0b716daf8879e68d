"""The pages that host memory and disk know, found by content, and which of them goes next.

    by_key     every known page; it has a slot, or a file, or both
    siblings   the known pages of one parent, most recently used last
    idle       has a slot, and nothing uses it: may lose it; least recently used first
    disk       has a file; least recently used first

    a page in host memory          slot   file   in idle
    being read from its file        yes    yes     no
    ready                           yes      ?     yes
    ready, needed by a fetch        yes      ?     no
    being written to its file       yes     no     no

A page whose tokens are the beginning of a sibling's is of no use: `covering` finds the longer one,
`shorter` those that a new page makes needless. Both look at the LOOKS siblings used last, and so
does the search for the page in which a match ends: among more of them the best may be missed.
"""

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice

from ramify.radix_cache.key import as_tokens, common_prefix
from ramify.radix_cache.page_keys import PageKeys
from ramify.radix_cache.plans import PageRecord

LOOKS = 16


@dataclass(eq=False, slots=True)
class Fetch:
    """Pages kept in host memory for a request, of which `open` are still being read."""

    pages: "list[TierPage]" = field(default_factory=list)
    open: int = 0

    @property
    def pending(self) -> bool:
        return self.open > 0


@dataclass(eq=False, slots=True)
class TierPage:
    """A page below the device. `locks` counts the fetches that need its slot to stay."""

    record: PageRecord
    slot: int = -1
    on_disk: bool = False
    reading: bool = False
    writing: bool = False
    locks: int = 0
    from_disk: bool = False  # how it came to host memory
    waiting: list[Fetch] = field(default_factory=list)  # for the end of reading
    known: bool = True  # False: forgotten while its slot was in use

    @property
    def ready(self) -> bool:
        """Whether it can be loaded now."""
        return self.slot >= 0 and not self.reading

    @property
    def safe(self) -> bool:
        """Whether it is on disk or on its way there."""
        return self.on_disk or self.writing

    @property
    def idle(self) -> bool:
        return self.ready and not self.writing and not self.locks


class TierPages:
    """The index of all known pages. Moves nothing."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.by_key: dict[bytes, TierPage] = {}
        self.siblings: dict[bytes, OrderedDict[bytes, TierPage]] = {}
        self.idle: OrderedDict[bytes, TierPage] = OrderedDict()
        self.disk: OrderedDict[bytes, TierPage] = OrderedDict()

    def add(self, record: PageRecord) -> TierPage:
        """A page that is not known yet. The caller gives it a slot or a file."""
        page = self.by_key[record.key] = TierPage(record)
        self.siblings.setdefault(record.parent, OrderedDict())[record.key] = page
        return page

    def remove(self, page: TierPage) -> None:
        """Forget a page. What it has of slot and file is the caller's to give back."""
        key, parent = page.record.key, page.record.parent
        page.known = False
        del self.by_key[key], self.siblings[parent][key]
        if not self.siblings[parent]:
            del self.siblings[parent]
        self.idle.pop(key, None)
        self.disk.pop(key, None)

    def settle(self, page: TierPage) -> None:
        """After a change of its state: in `idle` and `disk` or not, as the table above says."""
        if not page.known:
            return
        for order, belongs in ((self.idle, page.idle), (self.disk, page.on_disk)):
            if not belongs:
                order.pop(page.record.key, None)
            elif page.record.key not in order:
                order[page.record.key] = page

    def touch(self, page: TierPage) -> None:
        """Mark a known page as used now."""
        key = page.record.key
        self.siblings[page.record.parent].move_to_end(key)
        for order in (self.idle, self.disk):
            if key in order:
                order.move_to_end(key)

    # --- looking ---------------------------------------------------------------------------------

    def chain(
        self, key: "array[int]", keys: PageKeys, n: int, limit: int, *, ready: bool
    ) -> list[tuple[TierPage, int]]:
        """(page, where the match ends in it) of the pages that go on after n tokens of `key`.

        At most up to `limit`; only pages that can be loaded now if `ready`. `keys` are those of
        `key`. The first page begins at the border before n, so its match may replace a shorter one.
        """
        found: list[tuple[TierPage, int]] = []
        k, full = n // self.page_size, len(key) // self.page_size
        while self.by_key and n < limit:
            page = self.by_key.get(keys.parent(key, k + 1)) if k < full else None
            if page is not None and (page.ready or not ready):
                k, n = k + 1, min((k + 1) * self.page_size, limit)
                found.append((page, n))
                continue
            page, end = self._longest(key, keys.parent(key, k), k, limit, ready)
            if page is not None and end > n:
                found.append((page, end))
            break
        return found

    def _longest(
        self, key: "array[int]", parent: bytes, k: int, limit: int, ready: bool
    ) -> tuple[TierPage | None, int]:
        """(the page that holds most of the beginning of page k of `key`, where the match ends)."""
        start = k * self.page_size
        best, longest = None, 0
        for page in self._recent(parent):
            if page.ready or not ready:
                tokens = as_tokens(page.record.tokens)
                equal = common_prefix(key, start, tokens, 0, limit - start)
                if equal > longest:
                    best, longest = page, equal
        return best, start + longest

    def covering(self, record: PageRecord) -> TierPage | None:
        """The known page that holds all of `record`: the same, or a longer one."""
        same = self.by_key.get(record.key)
        if same is not None or len(record.tokens) == 4 * self.page_size:
            return same
        for page in self._recent(record.parent):
            if page.record.tokens.startswith(record.tokens):
                return page
        return None

    def shorter(self, record: PageRecord) -> list[TierPage]:
        """The siblings that a page of `record` makes needless."""
        return [
            page
            for page in self._recent(record.parent)
            if page.record.key != record.key and record.tokens.startswith(page.record.tokens)
        ]

    def _recent(self, parent: bytes) -> list[TierPage]:
        siblings = self.siblings.get(parent)
        return [] if siblings is None else list(islice(reversed(siblings.values()), LOOKS))
