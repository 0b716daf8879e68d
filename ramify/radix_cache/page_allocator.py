"""Which pages are free, held, and evictable: counts per page, no tensors.

A page is held by tree nodes and by requests. Requests and locked nodes also pin what they hold.

    free       no holder                 n_free
    evictable  holders, none pinned      n_evictable: freed by evicting unlocked nodes
    pinned     at least one pin          the rest

free + evictable + pinned == n_pages at all times.
"""


class PageAllocator:
    """Counts of holders and pins of every page, and a stack of the free ones."""

    def __init__(self, n_pages: int) -> None:
        self.n_pages = n_pages
        self.holders = [0] * n_pages
        self.pins = [0] * n_pages
        self.n_evictable = 0
        self._free = list(range(n_pages - 1, -1, -1))

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_available(self) -> int:
        """Pages that can be had now: free ones, and those that eviction would free."""
        return len(self._free) + self.n_evictable

    def free_pages(self) -> list[int]:
        """The free pages, the next to be taken last."""
        return list(self._free)

    def take(self) -> int:
        """A free page, held and pinned once by the caller. The caller has made sure one is free."""
        page = self._free.pop()
        self.holders[page] = self.pins[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Add a holder that does not pin."""
        assert self.holders[page] > 0, f"page {page} is free"
        self.holders[page] += 1

    def drop(self, page: int) -> None:
        """Remove a holder that does not pin; the last one frees the page."""
        assert self.holders[page] > self.pins[page], f"page {page} has no unpinned holder"
        self.holders[page] -= 1
        if self.holders[page] == 0:
            self.n_evictable -= 1
            self._free.append(page)

    def pin(self, page: int) -> None:
        """Turn one holder into a pinning one."""
        assert self.holders[page] > self.pins[page], f"page {page} has no holder left to pin"
        self.n_evictable -= self.pins[page] == 0
        self.pins[page] += 1

    def unpin(self, page: int) -> None:
        """The inverse of `pin`."""
        assert self.pins[page] > 0, f"page {page} is not pinned"
        self.pins[page] -= 1
        self.n_evictable += self.pins[page] == 0

    def hold_pinned(self, page: int) -> None:
        """Add a pinning holder: `hold` and `pin` in one, done for every page reused."""
        assert self.holders[page] > 0, f"page {page} is free"
        self.n_evictable -= self.pins[page] == 0
        self.holders[page] += 1
        self.pins[page] += 1

    def drop_pinned(self, page: int) -> None:
        """Remove a pinning holder: `unpin` and `drop` in one."""
        assert self.pins[page] > 0, f"page {page} is not pinned"
        self.pins[page] -= 1
        self.holders[page] -= 1
        if self.holders[page] == 0:
            self._free.append(page)
        elif self.pins[page] == 0:
            self.n_evictable += 1
