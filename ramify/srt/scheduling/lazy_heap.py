"""The smallest of many items whose keys change: an exact answer without touching the others.

    items   {7: a, 9: b}                every item once, by number
    heap    (3, 7) (5, 9) (8, 9) ...    entries (key, number), some outdated

Invariant: each item has an entry whose key is not larger than the item's key now. `put` adds one
whenever a key gets smaller; a key that got larger is corrected when its entry comes to the top. So
an entry on top that tells the truth is the smallest item. Entries of items that are gone are
dropped when they come up, or all together when they outnumber the others.
"""

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

SLACK = 64  # outdated entries that are not worth a clean-up


class LazyHeap(Generic[T]):
    """Items by number, smallest `key` first; ties go to the smaller number."""

    def __init__(self, key: Callable[[T], float]) -> None:
        self.items: dict[int, T] = {}
        self._key = key
        self._heap: list[tuple[float, int]] = []

    def put(self, number: int, item: T) -> None:
        """Add an item, or note that its key may have become smaller."""
        self.items[number] = item
        heapq.heappush(self._heap, (self._key(item), number))
        if len(self._heap) > 2 * len(self.items) + SLACK:
            self._heap = [(self._key(each), n) for n, each in self.items.items()]
            heapq.heapify(self._heap)

    def remove(self, number: int) -> None:
        """Forget an item. Raises KeyError if it is not here."""
        del self.items[number]
        if not self.items:
            self._heap.clear()

    def first(self) -> T | None:
        """The item with the smallest key; it stays. None if there is none."""
        while self._heap:
            key, number = self._heap[0]
            item = self.items.get(number)
            if item is None:
                heapq.heappop(self._heap)
            elif (present := self._key(item)) != key:
                heapq.heapreplace(self._heap, (present, number))
            else:
                return item
        return None
