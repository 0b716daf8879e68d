"""The facade of the deciding half: a request leases pages, computes into them, publishes, releases.

    acquire   match, lock, hold the matched full pages; a partly matched page is copied (PageCopy)
    ensure    pages for the tokens to come, evicting if needed: all of them or none
    commit    publish what is computed; full pages that the tree already has replace our duplicates
    release   give everything back; what was published stays until evicted
    pin       keep a prefix from eviction for a time, as long as no request needs its pages to go on

A lease's table, P = 4, matched 6 of 9 tokens, 2 more computed and one page ahead:

    position    0  1  2  3 | 4  5  6  7 | 8  .  .  .
    page        tree's p0  | own p7     | own p8
                shared       ^ slots 0..1 copied from the tree's p1, the rest written by the request

Pure: integers in, integers and moves (see `plans`) out.
"""

from array import array
from dataclasses import dataclass
from itertools import islice

from ramify.radix_cache.eviction import EvictionKey, lru
from ramify.radix_cache.page_allocator import PageAllocator
from ramify.radix_cache.pins import PinTable
from ramify.radix_cache.plans import Move, PageCopy
from ramify.radix_cache.tree import Node, RadixTree
from ramify.radix_cache.view import NodeView, snapshot

NAMESPACES_TRIED = 5  # the oldest, in which a missed prefix is looked for


@dataclass(eq=False, slots=True)
class Lease:
    """A request's claim on pages. `node` is where its published prefix ends, locked; None: no lock.

    `n_cached` is how many tokens were found computed; `copy` is one of `PrefixCache.take_moves`.
    """

    namespace: str
    table: list[int]
    n_cached: int
    node: Node | None
    priority: int = 0
    copy: PageCopy | None = None
    found: bool = False  # whether its hit is counted: with the first commit, so once


class PrefixCache:
    """Pages and tree of one KV pool. Made with `reuse=False` it finds nothing and keeps nothing."""

    def __init__(
        self,
        n_pages: int,
        page_size: int,
        *,
        policy: EvictionKey = lru,
        reuse: bool = True,
        pin_share: float = 0.25,
    ) -> None:
        self.page_size = page_size
        self.pages = PageAllocator(n_pages)
        self.tree = RadixTree(self.pages, page_size, policy)
        self.pins = PinTable(self.tree, int(n_pages * pin_share))
        self.leases: dict[int, Lease] = {}  # by id(), in order of acquisition
        self.reuse = reuse
        self._moves: list[Move] = []  # in the order in which they were decided

    def pages_for(self, n_tokens: int) -> int:
        return -(-n_tokens // self.page_size)

    def hit_length(self, namespace: str, key: "array[int]", limit: int) -> int:
        """How many leading tokens of `key` could be reused now, at most `limit`. Pure."""
        return self.tree.match(namespace, key, limit)[1] if self.reuse else 0

    def acquire(self, namespace: str, key: "array[int]", limit: int, priority: int = 0) -> Lease:
        """Lease the longest computed prefix of `key`, at most `limit` tokens long."""
        lease = Lease(namespace, [], 0, None, priority)
        self.leases[id(lease)] = lease
        matched, n = self.tree.match(namespace, key, limit) if self.reuse else (None, 0)
        if n > 0:
            self._take_over(lease, self.tree.ending_at(namespace, matched, n), n)
        self._yield_pins(self.pages_for(len(key)) - len(lease.table))
        return lease

    def _take_over(self, lease: Lease, node: Node, n: int) -> None:
        """Lock the path to `node`, n tokens deep, hold its full pages and copy a partial one."""
        self.tree.touch(node, lease.priority)
        self.tree.lock(node)
        lease.node = node
        pages = self.tree.path_pages(node, n)
        lease.table = pages[: n // self.page_size]
        for page in lease.table:
            self.pages.hold_pinned(page)
        lease.n_cached = len(lease.table) * self.page_size
        if n % self.page_size and self._evict_to(1):
            lease.copy = PageCopy(pages[-1], self.pages.take(), n % self.page_size)
            lease.table.append(lease.copy.target)
            lease.n_cached = n
            self._moves.append(lease.copy)

    def take_moves(self) -> tuple[Move, ...]:
        """What must be moved before the next step computes. The caller sees to it, in this order."""
        moves, self._moves = tuple(self._moves), []
        return moves

    def ensure(self, lease: Lease, n_tokens: int) -> bool:
        """Make the table cover n_tokens, evicting if needed. False, and no page taken, if not."""
        need = self.pages_for(n_tokens) - len(lease.table)
        if need > 0:
            self._yield_pins(need)
            if not self._evict_to(need):
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
        if not lease.found and lease.node is not None:
            self.tree.count_hit(lease.node)
        lease.found = True
        node = self.tree.insert(lease.namespace, key, lease.table, lease.priority)
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
        """Give back every page and lock of the lease. A copy that was not taken yet is not made."""
        del self.leases[id(lease)]
        self._moves = [move for move in self._moves if move is not lease.copy]
        self.detach(lease)
        for page in lease.table:
            self.pages.drop_pinned(page)
        lease.table = []

    def flush(self) -> bool:
        """Forget all prefixes, pins and past evictions. False, and no change, if a lease is out."""
        if self.leases:
            return False
        self.pins.clear()
        self.tree.clear()
        self.tree.roots.clear()
        return True

    # --- pins ------------------------------------------------------------------------------------

    def pin(
        self, namespace: str, key: "array[int]", now: float, ttl_s: float
    ) -> tuple[int, str | None]:
        """Keep the longest computed prefix of `key` until now + ttl_s: see PinTable.pin."""
        if not self.reuse:
            return 0, "nothing can be pinned: the prefix cache is off"
        return self.pins.pin(namespace, key, now, ttl_s)

    def unpin(self, namespace: str, key: "array[int]") -> int:
        """Drop the pin made with exactly this key. Returns the tokens it held, 0 without one."""
        return self.pins.unpin(namespace, key)

    def expire_pins(self, now: float) -> None:
        """Drop the pins whose time is over."""
        self.pins.expire(now)

    # --- looking ---------------------------------------------------------------------------------

    def miss_reason(
        self, namespace: str, key: "array[int]", n_cached: int, limit: int
    ) -> str | None:
        """Why no more of `key` was reused; None if all that `limit` allows is computed or was.

            evicted     more of it was there once: see EvictedPrefixes
            namespace   more of it is there, but in another namespace (a few are looked at)
            never seen  neither, as far as is known

        "namespace" says something about others: it is for operators, not for the clients that the
        namespaces keep apart. There is no threshold for reuse, so no miss is below one.
        """
        if not self.reuse or n_cached >= limit:
            return None
        n = self.tree.match(namespace, key, limit)[1]
        if n >= limit:
            return None  # there, but no page was free to copy the partial last page to
        if self.tree.evicted.had(namespace, key, n):
            return "evicted"
        for other in islice(self.tree.roots, NAMESPACES_TRIED):
            if self.tree.match(other, key, n + 1)[1] > n:
                return "namespace"
        return "never seen"

    def snapshot(self, limit: int) -> tuple[int, list[NodeView]]:
        """(number of nodes, the `limit` most recently used of them). Changes nothing."""
        return snapshot(self.tree, self.pins.per_node(), limit)

    # --- room ------------------------------------------------------------------------------------

    def _evict_to(self, n_pages: int) -> bool:
        """Evict until n_pages are free. False, and nothing evicted, if that cannot be."""
        if self.pages.n_available < n_pages:
            return False
        self.tree.evict(n_pages)
        return self.pages.n_free >= n_pages

    def _yield_pins(self, n_pages: int) -> None:
        """Drop pins, the next to expire first, where the only lease cannot get n_pages otherwise.

        A scheduler relies on a lone request always fitting the pool. While there are others, they
        are asked first: they wait, or are retracted until one is left.
        """
        while len(self.leases) == 1 and self.pages.n_available < n_pages and self.pins.drop_first():
            pass
