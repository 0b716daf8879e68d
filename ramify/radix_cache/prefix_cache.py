"""The facade of the deciding half: a request leases pages, computes into them, publishes, releases.

    acquire   match, lock, hold the matched full pages; a partly matched page is copied (PageCopy),
              and what host memory knows beyond is loaded (PageLoad)
    ensure    pages for the tokens to come, evicting if needed: all of them or none
    commit    publish what is computed; full pages that the tree already has replace our duplicates
    release   give everything back; what was published stays until evicted
    pin       keep a prefix from eviction for a time, as long as no request needs its pages to go on
    fetch     read what the disk knows beyond into host memory, for a request that waits

A lease's table, P = 4, matched 6 of 9 tokens, 2 more computed and one page ahead:

    position    0  1  2  3 | 4  5  6  7 | 8  .  .  .
    page        tree's p0  | own p7     | own p8
                shared       ^ slots 0..1 copied from the tree's p1, the rest written by the request

Pure: integers in, integers and moves (see `plans`) out.
"""

from array import array
from dataclasses import dataclass, field
from itertools import islice

from ramify.radix_cache import backup
from ramify.radix_cache.eviction import EvictionKey, lru
from ramify.radix_cache.page_allocator import PageAllocator
from ramify.radix_cache.page_keys import PageKeys, node_pages
from ramify.radix_cache.pins import PinTable
from ramify.radix_cache.plans import FileDone, Move, PageCopy, PageLoad
from ramify.radix_cache.tier_pages import Fetch, TierPage
from ramify.radix_cache.tiers import TierIndex
from ramify.radix_cache.tree import Node, RadixTree
from ramify.radix_cache.view import NodeView, snapshot

NAMESPACES_TRIED = 5  # the oldest, in which a missed prefix is looked for


@dataclass(eq=False, slots=True)
class Lease:
    """A request's claim on pages. `node` is where its published prefix ends, locked; None: no lock.

    `n_cached` is how many tokens were found computed, of which `host_tokens` and `disk_tokens` had
    to be loaded. `copy` and `loads` are among the moves that `PrefixCache.take_moves` returns.
    """

    namespace: str
    table: list[int]
    n_cached: int
    node: Node | None
    priority: int = 0
    copy: PageCopy | None = None
    loads: list[PageLoad] = field(default_factory=list)
    host_tokens: int = 0
    disk_tokens: int = 0
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
        tiers: TierIndex | None = None,
    ) -> None:
        self.page_size = page_size
        self.pages = PageAllocator(n_pages)
        self.tree = RadixTree(self.pages, page_size, policy)
        self.pins = PinTable(self.tree, int(n_pages * pin_share))
        self.leases: dict[int, Lease] = {}  # by id(), in order of acquisition
        self.reuse = reuse
        self.tiers = tiers if reuse else None
        self._moves: list[Move] = self.tiers.moves if self.tiers else []  # in order of decision

    def pages_for(self, n_tokens: int) -> int:
        return -(-n_tokens // self.page_size)

    @property
    def version(self) -> int:
        """Changes whenever a prefix may be found that was not found before."""
        return self.tree.version + (self.tiers.version if self.tiers else 0)

    def hit_lengths(
        self, namespace: str, key: "array[int]", limit: int, keys: PageKeys | None = None
    ) -> tuple[int, int]:
        """How many leading tokens of `key` could be reused now, at most `limit`: (those on the
        device, those and what continues them in host memory). Pure. `keys`: see `page_keys`.
        """
        n = self.tree.match(namespace, key, limit)[1] if self.reuse else 0
        found = self._in_host(namespace, key, n, limit, keys)
        return n, found[-1][1] if found else n

    def page_keys(self, namespace: str) -> PageKeys | None:
        """What a caller may keep for a growing sequence, so that its digests are made only once."""
        return PageKeys(namespace, self.page_size) if self.tiers else None

    def acquire(
        self,
        namespace: str,
        key: "array[int]",
        limit: int,
        priority: int = 0,
        keys: PageKeys | None = None,
    ) -> Lease:
        """Lease the longest computed prefix of `key`, at most `limit` tokens long."""
        lease = Lease(namespace, [], 0, None, priority)
        self.leases[id(lease)] = lease
        matched, n = self.tree.match(namespace, key, limit) if self.reuse else (None, 0)
        if n > 0:
            self._take_over(lease, self.tree.ending_at(namespace, matched, n), n)
        found = self._in_host(namespace, key, n, limit, keys)
        if found:
            self._load(lease, n, found)
        elif lease.node is not None and n % self.page_size:
            self._copy(lease, lease.node.pages[-1], n)
        self._yield_pins(self.pages_for(len(key)) - len(lease.table))
        return lease

    def _take_over(self, lease: Lease, node: Node, n: int) -> None:
        """Lock the path to `node`, n tokens deep, and hold its full pages."""
        self.tree.touch(node, lease.priority)
        self.tree.lock(node)
        lease.node = node
        lease.table = self.tree.path_pages(node, n)[: n // self.page_size]
        for page in lease.table:
            self.pages.hold_pinned(page)
        lease.n_cached = len(lease.table) * self.page_size

    def _copy(self, lease: Lease, source: int, n: int) -> None:
        """Copy the matched part of the page in which the first n tokens end."""
        if self._evict_to(1):
            lease.copy = PageCopy(source, self.pages.take(), n % self.page_size)
            lease.table.append(lease.copy.target)
            lease.n_cached = n
            self._moves.append(lease.copy)

    def take_moves(self) -> tuple[Move, ...]:
        """What must be moved before the next step computes: the caller does so, in this order."""
        moves = tuple(self._moves)
        self._moves.clear()
        return moves

    @property
    def has_moves(self) -> bool:
        return bool(self._moves)

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
            if self.tiers:  # it was found again, so it is worth keeping
                backup.back_up_path(lease.node, self.page_size, self.tiers)
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
        """Give back every page and lock of the lease. What nobody will read is not moved."""
        del self.leases[id(lease)]
        if not lease.found and (lease.copy is not None or lease.loads):
            needless = {id(lease.copy), *map(id, lease.loads)}
            self._moves[:] = [move for move in self._moves if id(move) not in needless]
        self.detach(lease)
        for page in lease.table:
            self.pages.drop_pinned(page)
        lease.table = []

    def flush(self) -> bool:
        """Forget all prefixes, pins, past evictions, and what host memory and disk hold.

        False, and no change, if a lease or a fetch is out.
        """
        if self.leases or (self.tiers and self.tiers.fetches):
            return False
        if self.tiers:
            self.tiers.clear()
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

    # --- host memory and disk --------------------------------------------------------------------

    def fetch(
        self, namespace: str, key: "array[int]", limit: int, keys: PageKeys | None = None
    ) -> Fetch | None:
        """Begin to read what the disk knows beyond device and host memory; None: do not wait.

        The pages stay in host memory until `end_fetch`, which the caller must call.
        """
        if self.tiers is None:
            return None
        n = self.tree.match(namespace, key, limit)[1]
        return self.tiers.fetch(key, keys or PageKeys(namespace, self.page_size), n, limit)

    def end_fetch(self, fetch: Fetch) -> None:
        """The pages of a fetch may leave host memory again. It need not have ended."""
        assert self.tiers is not None, "there are no fetches without tiers"
        self.tiers.end_fetch(fetch)

    @property
    def io_pending(self) -> bool:
        """Whether files are being read or written: a `file_done` will come."""
        return self.tiers is not None and self.tiers.io_pending

    def file_done(self, done: FileDone) -> None:
        """Fold in the end of a FileRead or FileWrite."""
        assert self.tiers is not None, "there are no files without tiers"
        self.tiers.done(done)

    def back_up_all(self, n: int) -> int:
        """Begin to write up to n pages that are not on disk, the most recently used first.

        Returns how many remain: call again as writes end, for as long as you can wait.
        """
        return backup.back_up_all(self.tree, self.tiers, n) if self.tiers else 0

    def _in_host(
        self, namespace: str, key: "array[int]", n: int, limit: int, keys: PageKeys | None
    ) -> list[tuple[TierPage, int]]:
        """(page, where the match ends in it) of the pages in host memory that go on after n."""
        if self.tiers is None:
            return []
        return self.tiers.in_host(key, keys or PageKeys(namespace, self.page_size), n, limit)

    def _load(self, lease: Lease, n: int, found: list[tuple[TierPage, int]]) -> None:
        """Load what continues the first n tokens, as much of it as pages can be had for."""
        assert self.tiers is not None, "only tiers find pages in host memory"
        found = found[: self.pages.n_available]
        pages = [tier_page for tier_page, _ in found]
        hold = self.tiers.hold(pages)  # eviction stores pages too
        self._evict_to(len(found))
        for tier_page, end in found:
            load = PageLoad(tier_page.slot, self.pages.take())
            self._moves.append(load)
            lease.loads.append(load)
            lease.table.append(load.page)
            if tier_page.from_disk:
                lease.disk_tokens += end - n
            else:
                lease.host_tokens += end - n
            lease.n_cached = n = end
        self.tiers.end_fetch(hold)
        self.tiers.touch(pages)

    def _keep(self, node: Node) -> None:
        """Store a node that is evicted: its first pages, without which the others are of no use.

        The last of them goes first, so that host memory gives it up first.
        """
        assert self.tiers is not None, "only tiers keep what is evicted"
        pages = node_pages(node, self.page_size)
        room = self.tiers.room
        for page, record in reversed(pages[:room]):
            self.tiers.keep(page, record)
        for _, record in pages[room:]:
            self.tiers.lose(record)

    # --- looking ---------------------------------------------------------------------------------

    def miss_reason(
        self,
        namespace: str,
        key: "array[int]",
        n_cached: int,
        limit: int,
        keys: PageKeys | None = None,
    ) -> str | None:
        """Why no more of `key` was reused; None if all that `limit` allows is computed or was.

            below threshold  more of it is on disk, too little to wait for
            evicted          more of it was there once (see EvictedPrefixes), or is on disk and
                             could not be had in time
            namespace        more of it is there, but in another namespace (a few are looked at)
            never seen       none of these, as far as is known

        "namespace" says something about others: it is for operators, not for the clients that the
        namespaces keep apart.
        """
        if not self.reuse or n_cached >= limit:
            return None
        on_device, n = self.hit_lengths(namespace, key, limit, keys)
        if n >= limit:
            return None  # there, but no page was free to copy or load it to
        if self.tiers:
            keys = keys or PageKeys(namespace, self.page_size)
            missing = self.tiers.missing(key, keys, on_device, limit)
            if missing:
                few = missing < self.tiers.prefetch_min_tokens
                return "below threshold" if few else "evicted"
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
        self.tree.evict(n_pages, self._keep if self.tiers else None)
        return self.pages.n_free >= n_pages

    def _yield_pins(self, n_pages: int) -> None:
        """Drop pins, the next to expire first, where the only lease cannot get n_pages otherwise.

        A scheduler relies on a lone request always fitting the pool. While there are others, they
        are asked first: they wait, or are retracted until one is left.
        """
        while len(self.leases) == 1 and self.pages.n_available < n_pages and self.pins.drop_first():
            pass
