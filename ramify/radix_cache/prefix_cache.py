"""The facade of the deciding half: a request leases pages, computes into them, publishes, releases.

    acquire   match, lock, hold the matched full pages; a partly matched page is copied (PageCopy)
    ensure    pages for the tokens to come, evicting if needed: all of them or none
    commit    publish what is computed; full pages that the tree already has replace our duplicates
    release   give everything back; what was published stays until evicted

A lease's table, P = 4, matched 6 of 9 tokens, 2 more computed and one page ahead:

    position    0  1  2  3 | 4  5  6  7 | 8  .  .  .
    page        tree's p0  | own p7     | own p8
                shared       ^ slots 0..1 copied from the tree's p1, the rest written by the request

Pure: integers in, integers and `PageCopy` plans out.
"""

from array import array
from dataclasses import dataclass

from ramify.radix_cache.eviction import EvictionKey, lru
from ramify.radix_cache.page_allocator import PageAllocator
from ramify.radix_cache.plans import PageCopy
from ramify.radix_cache.tree import Node, RadixTree


@dataclass(eq=False, slots=True)
class Lease:
    """A request's claim on pages. `node` is where its published prefix ends, locked; None: no lock.

    `n_cached` is how many tokens were found computed; `copy` must be carried out before use.
    """

    namespace: str
    table: list[int]
    n_cached: int
    node: Node | None
    copy: PageCopy | None = None


class PrefixCache:
    """Pages and tree of one KV pool. Made with `reuse=False` it finds nothing and keeps nothing."""

    def __init__(
        self, n_pages: int, page_size: int, *, policy: EvictionKey = lru, reuse: bool = True
    ) -> None:
        self.page_size = page_size
        self.pages = PageAllocator(n_pages)
        self.tree = RadixTree(self.pages, page_size, policy)
        self.leases: dict[int, Lease] = {}  # by id(), in order of acquisition
        self.reuse = reuse

    def pages_for(self, n_tokens: int) -> int:
        return -(-n_tokens // self.page_size)

    def hit_length(self, namespace: str, key: "array[int]", limit: int) -> int:
        """How many leading tokens of `key` could be reused now, at most `limit`. Pure."""
        return self.tree.match(namespace, key, limit)[1] if self.reuse else 0

    def acquire(self, namespace: str, key: "array[int]", limit: int) -> Lease:
        """Lease the longest computed prefix of `key`, at most `limit` tokens long."""
        lease = Lease(namespace, [], 0, None)
        self.leases[id(lease)] = lease
        matched, n = self.tree.match(namespace, key, limit) if self.reuse else (None, 0)
        if n == 0:
            return lease
        node = self.tree.ending_at(namespace, matched, n)
        self.tree.touch(node)
        self.tree.lock(node)
        lease.node = node
        pages = self.tree.path_pages(node, n)
        lease.table = pages[: n // self.page_size]
        for page in lease.table:
            self.pages.hold_pinned(page)
        lease.n_cached = len(lease.table) * self.page_size
        if n % self.page_size and self._make_room(1):
            lease.copy = PageCopy(pages[-1], self.pages.take(), n % self.page_size)
            lease.table.append(lease.copy.target)
            lease.n_cached = n
        return lease

    def ensure(self, lease: Lease, n_tokens: int) -> bool:
        """Make the table cover n_tokens, evicting if needed. False, and no page taken, if not."""
        need = self.pages_for(n_tokens) - len(lease.table)
        if need > 0:
            if not self._make_room(need):
                return False
            lease.table += [self.pages.take() for _ in range(need)]
        return True

    def commit(self, lease: Lease, key: "array[int]") -> None:
        """Publish `key`, all computed, and move the lock to its end.

        Full pages that the tree holds already take the place of the lease's own copies of them. A
        partial last page stays the writer's: the tree reads only the slots published so far.
        """
        if not self.reuse or not key:
            return
        node = self.tree.insert(lease.namespace, key, lease.table)
        self.tree.lock(node)
        self.detach(lease)
        lease.node = node
        pages = self.tree.path_pages(node, len(key))
        for k in range(len(key) // self.page_size):
            if lease.table[k] != pages[k]:
                self.pages.hold_pinned(pages[k])
                self.pages.drop_pinned(lease.table[k])
                lease.table[k] = pages[k]

    def detach(self, lease: Lease) -> None:
        """Unlock the tree's path; the lease keeps its own pages.

        Locked paths may pin more pages than the request itself needs (every branch point inside a
        page costs one). A request that cannot go on otherwise gives up the courtesy to the tree.
        """
        if lease.node is not None:
            self.tree.unlock(lease.node)
            lease.node = None

    def release(self, lease: Lease) -> None:
        """Give back every page and lock of the lease."""
        del self.leases[id(lease)]
        self.detach(lease)
        for page in lease.table:
            self.pages.drop_pinned(page)
        lease.table = []

    def flush(self) -> bool:
        """Forget every prefix. False, and no change, while any lease is out."""
        if self.leases:
            return False
        self.tree.clear()
        self.tree.roots.clear()
        return True

    def _make_room(self, n_pages: int) -> bool:
        if self.pages.n_available < n_pages:
            return False
        self.tree.evict(n_pages)
        return self.pages.n_free >= n_pages
