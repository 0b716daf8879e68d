"""A token-granular radix tree over page storage: match, insert, split, lock, evict. Integers only.

A page holds P consecutive positions; position i of a sequence is in its page i // P, slot i % P.
Every node lists the pages its tokens touch, so a page in which one node ends and the next begins
is listed by both:

    P = 4     root
               `- A  positions 0..5   [ t0 t1 t2 t3 | t4 t5 .  .  ]      pages p0 p1
                   |- B  positions 6..9                [ .  .  t6 t7 | t8 t9 . . ]   p1 p2
                   `- C  positions 6..7                [ t4 t5 u6 u7 ]               p9

B came from the sequence that wrote p1, so p1 is listed twice. C branched off later: its request
copied slots 0..1 of p1 into the fresh page p9 (copy-on-write) and went on there.

Rules, kept by `_split` and `insert`, used by `path_pages`, checked by `invariants`:
 (1) page k of a path belongs to the deepest node on the path that lists page k;
 (2) a node lists the pages (start // P) .. ((end - 1) // P), each held once by the node;
 (3) a page is written by one request only, the one that took it; published slots never change;
 (4) a node's lock count is at least that of each of its children; only unlocked leaves are evicted;
 (5) the pages of a locked node are pinned, so unlocked pages are what eviction can free;
 (6) an evictable leaf is in the heap with a key that is at most its key of now. So the top of the
     heap, once its key is found to be right, is the smallest of all. Keys change with use, which
     ends in `unlock`, and with splits: both offer the node again.
"""

import heapq
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ramify.radix_cache import history
from ramify.radix_cache.eviction import EvictionKey, Key, NodeStats, cost_per_page, lru
from ramify.radix_cache.key import common_prefix
from ramify.radix_cache.page_allocator import PageAllocator


@dataclass(eq=False, slots=True)
class Node:
    """A run of tokens after its parent's. `start` is the position of the first of them."""

    number: int  # creation order: makes the order of evictions total
    start: int
    tokens: "array[int]"
    pages: list[int]
    parent: "Node | None"
    stats: NodeStats
    digest: int  # of the namespace and all tokens up to the node's end
    children: dict[int, "Node"] = field(default_factory=dict)  # by first token
    locks: int = 0
    queued: Key | None = None  # the key under which it is in the eviction heap
    namespace: str = ""  # of a root
    page_key: bytes = b""  # of the pages full at the node's end, once asked for: see `page_keys`
    backed_up: bool = False  # its pages are on disk or on their way there

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class RadixTree:
    """The trees of all namespaces over one set of pages."""

    def __init__(self, pages: PageAllocator, page_size: int, policy: EvictionKey = lru) -> None:
        self.pages = pages
        self.page_size = page_size
        self.policy = policy
        self.roots: dict[str, Node] = {}
        self.n_tokens = 0  # held by all nodes together
        self.evicted_tokens = 0  # since the start
        self.evicted = history.EvictedPrefixes()
        self.heap: list[tuple[Key, int, Node]] = []  # (key, number, node), keys may be outdated
        self.version = 0  # changes whenever a match may come out differently
        self._nodes_made = 0
        self._tick = 0
        self._floor = 0  # the largest rank ever evicted

    @property
    def now(self) -> int:
        """The logical time: the tick of the latest use."""
        return self._tick

    # --- looking ---------------------------------------------------------------------------------

    def match(self, namespace: str, key: "array[int]", limit: int) -> tuple[Node | None, int]:
        """(deepest node reached, tokens matched), at most `limit`; the end may be inside the node.

        Changes nothing: no split, no time stamp.
        """
        node = self.roots.get(namespace)
        n = 0
        while node is not None and n < limit:
            child = node.children.get(key[n])
            if child is None:
                break
            node, start = child, n
            n += len(child.tokens)
            if n > limit or key[start:n] != child.tokens:  # most nodes match whole: one compare
                return node, start + common_prefix(child.tokens, 0, key, start, limit - start)
        return node, n

    def path_pages(self, node: Node, n: int) -> list[int]:
        """The pages of the first n positions of the path to `node`: rule (1)."""
        table = [-1] * -(-n // self.page_size)
        at: Node | None = node
        filled_from = len(table)  # pages from here on are known
        while at is not None and filled_from > 0:
            first = at.start // self.page_size
            if first < filled_from:
                table[first:filled_from] = at.pages[: filled_from - first]
                filled_from = first
            at = at.parent
        return table

    def nodes(self) -> Iterator[Node]:
        """Every node with tokens, a parent before its children."""
        stack = [child for root in self.roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    # --- growing ---------------------------------------------------------------------------------

    def touch(self, node: Node, priority: int = 0) -> None:
        """Mark the path to `node` as used now, by a request of this priority."""
        self._tick += 1
        at: Node | None = node
        while at is not None:
            stats = at.stats
            stats.last_used = self._tick
            stats.floor = self._floor
            if stats.priority < priority:
                stats.priority = priority
            at = at.parent

    def count_hit(self, node: Node) -> None:
        """Count a request that found the path to `node` computed."""
        at: Node | None = node
        while at is not None:
            at.stats.hits += 1
            at = at.parent

    def ending_at(self, namespace: str, node: Node | None, n: int) -> Node:
        """The node that ends exactly n tokens deep on the path to `node`, split off if need be."""
        if node is None:
            stats = NodeStats(self._tick, self._tick)
            digest = history.namespace_digest(namespace)
            root = Node(self._next_number(), 0, array("I"), [], None, stats, digest)
            root.namespace = namespace
            return self.roots.setdefault(namespace, root)
        return self._split(node, n) if n < node.end else node

    def insert(
        self, namespace: str, key: "array[int]", table: list[int], priority: int = 0
    ) -> Node:
        """Publish the computed sequence `key` whose pages are `table`. Returns its end, locked.

        Where the tree already has the tokens, its own pages stay and `table` is not listed.
        """
        matched, n = self.match(namespace, key, len(key))
        node = self.ending_at(namespace, matched, n)
        if n < len(key):
            pages = table[n // self.page_size : -(-len(key) // self.page_size)]
            for page in pages:
                self.pages.hold(page)
            node = self._grow(node, key[n:], pages, priority)
        self.touch(node, priority)
        self.lock(node)
        return node

    def _grow(self, parent: Node, tokens: "array[int]", pages: list[int], priority: int) -> Node:
        """A new child of `parent`, its pages held already."""
        cost = cost_per_page(parent.end, len(tokens), len(pages))
        stats = NodeStats(self._tick, self._tick, priority=priority, cost=cost)
        digest = history.extend(parent.digest, tokens)
        node = Node(self._next_number(), parent.end, tokens, pages, parent, stats, digest)
        parent.children[tokens[0]] = node
        self.n_tokens += len(tokens)
        self.version += 1
        return node

    def _next_number(self) -> int:
        self._nodes_made += 1
        return self._nodes_made

    def _split(self, node: Node, at: int) -> Node:
        """Cut node [a, b) into upper [a, at) and the same node [at, b). Returns the upper half.

        page border not cut: P = 4, at = 4        page border cut: at = 6
        [t0 t1 t2 t3 | t4 t5]                     [t0 t1 t2 t3 | t4 t5 t6 t7]
        upper p0       node p1                    upper p0 p1    node p1     p1: one hold more
        """
        parent, k = node.parent, at - node.start
        assert parent is not None, "a root is never split"
        head, tail = node.tokens[:k], node.tokens[k:]
        cut_page = (at - 1) // self.page_size - node.start // self.page_size
        upper = Node(
            number=self._next_number(),
            start=node.start,
            tokens=head,
            pages=node.pages[: cut_page + 1],
            parent=parent,
            stats=replace(node.stats, cost=cost_per_page(node.start, k, cut_page + 1)),
            digest=history.extend(parent.digest, head),
            children={tail[0]: node},
            locks=node.locks,
            backed_up=node.backed_up,
        )
        if at % self.page_size:  # listed by both from now on: rule (2)
            self.pages.hold(upper.pages[-1])
            if node.locks:
                self.pages.pin(upper.pages[-1])
        parent.children[head[0]] = upper
        node.pages = node.pages[at // self.page_size - node.start // self.page_size :]
        node.start, node.tokens, node.parent = at, tail, upper
        node.stats.cost = cost_per_page(at, len(tail), len(node.pages))
        self._offer(node)  # the key may be smaller now: rule (6)
        return upper

    # --- locking and evicting --------------------------------------------------------------------

    def lock(self, node: Node) -> None:
        """Keep the path to `node` from eviction."""
        at = node
        while at.parent is not None:
            at.locks += 1
            if at.locks == 1:
                for page in at.pages:
                    self.pages.pin(page)
            at = at.parent

    def unlock(self, node: Node) -> None:
        """The inverse of `lock`."""
        at = node
        while at.parent is not None:
            at.locks -= 1
            if at.locks == 0:
                for page in at.pages:
                    self.pages.unpin(page)
                self._offer(at)
            at = at.parent

    def evict(self, n_pages: int, leaving: Callable[[Node], None] | None = None) -> None:
        """Evict unlocked leaves, smallest key first, until n_pages are free or none is left.

        Each is shown to `leaving` while it still has its pages.
        """
        while self.pages.n_free < n_pages and self.heap:
            key, _, node = heapq.heappop(self.heap)
            if key != node.queued:
                continue  # offered again since, with a smaller key
            node.queued = None
            if key != self.policy(node.stats):
                self._offer(node)  # it was used since: back with today's key
            elif not node.children and not node.locks:
                self._floor = max(self._floor, key[0])
                if leaving is not None:
                    leaving(node)
                self._remove(node)

    def clear(self) -> None:
        """Forget everything that is not locked, and that it was ever there."""
        self.evict(self.pages.n_pages + 1)
        self.evicted.clear()

    def _offer(self, node: Node) -> None:
        """See to it that an evictable node is in the heap, under a key no larger than its own.

        A node that has grown or was locked since it was offered is offered again when that ends.
        """
        if node.parent is None or node.children or node.locks:
            return
        key = self.policy(node.stats)
        if node.queued is None or key < node.queued:
            node.queued = key
            heapq.heappush(self.heap, (key, node.number, node))

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None, "a root is never offered"
        for page in node.pages:
            self.pages.drop(page)
        self.evicted.add(parent.digest, node.start, node.tokens)
        del parent.children[node.tokens[0]]
        self.n_tokens -= len(node.tokens)
        self.evicted_tokens += len(node.tokens)
        self.version += 1
        if parent.parent is None and not parent.children:
            self.roots.pop(parent.namespace, None)
        self._offer(parent)
