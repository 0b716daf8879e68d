"""Check a cache from first principles: every page has the owners that tree, leases and pins say."""

from collections.abc import Iterator

from ramify.radix_cache import history
from ramify.radix_cache.eviction import cost_per_page
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.radix_cache.tree import Node


def check(cache: PrefixCache) -> list[str]:
    """What is broken, in words; empty when every invariant holds. Changes nothing."""
    return [
        *_structure(cache),
        *_derived(cache),
        *_locks(cache),
        *_pins(cache),
        *_heap(cache),
        *_pages(cache),
    ]


def _nodes(cache: PrefixCache) -> Iterator[Node]:
    stack = list(cache.tree.roots.values())
    while stack:
        node = stack.pop()
        yield node
        stack += node.children.values()


def _structure(cache: PrefixCache) -> Iterator[str]:
    """Rule (2) of the tree, links both ways, and the token count."""
    size = cache.page_size
    n_tokens = 0
    for node in _nodes(cache):
        n_tokens += len(node.tokens)
        if node.parent is None:
            if node.start or node.tokens or node.pages:
                yield f"root {node.number} is not empty"
        elif not node.tokens:
            yield f"node {node.number} has no tokens"
        elif len(node.pages) != (node.end - 1) // size - node.start // size + 1:
            yield f"node {node.number} lists {len(node.pages)} pages for {node.start}..{node.end}"
        for first, child in node.children.items():
            if child.parent is not node or child.start != node.end or child.tokens[0] != first:
                yield f"node {child.number} does not continue node {node.number}"
    if n_tokens != cache.tree.n_tokens:
        yield f"the tree counts {cache.tree.n_tokens} tokens and holds {n_tokens}"


def _derived(cache: PrefixCache) -> Iterator[str]:
    """Every node's digest is that of all tokens up to its end, its cost that of its own."""
    for node in _nodes(cache):
        before = node.parent.digest if node.parent else history.namespace_digest(node.namespace)
        if node.digest != history.extend(before, node.tokens):
            yield f"node {node.number} has another digest than its tokens"
        if node.tokens:
            cost = cost_per_page(node.start, len(node.tokens), len(node.pages))
            if node.stats.cost != cost:
                yield f"node {node.number} says it costs {node.stats.cost}, not {cost}"


def _locks(cache: PrefixCache) -> Iterator[str]:
    """Rule (4): a node's locks are the leases and pins that end at or below it."""
    expected: dict[int, int] = {}
    for end in [*(lease.node for lease in cache.leases.values()), *(p.node for p in cache.pins)]:
        node = end
        while node is not None:
            expected[node.number] = expected.get(node.number, 0) + 1
            node = node.parent
    for node in _nodes(cache):
        owners = expected.pop(node.number, 0)
        if node.parent is not None and node.locks != owners:
            yield f"node {node.number} has {node.locks} locks for {owners} leases and pins"
    for number in expected:
        yield f"node {number} is locked and not in the tree"


def _pins(cache: PrefixCache) -> Iterator[str]:
    """Pins keep their bound and their order."""
    if len(cache.pins.pages()) > cache.pins.max_pages:
        yield f"{len(cache.pins.pages())} pages are pinned of at most {cache.pins.max_pages}"
    times = [pin.expires for pin in cache.pins]
    if times != sorted(times):
        yield "pins are not in the order they expire in"


def _heap(cache: PrefixCache) -> Iterator[str]:
    """Rule (6): what may be evicted is in the heap, under a key no larger than its own."""
    entries = {(key, number) for key, number, _ in cache.tree.heap}
    for node in cache.tree.nodes():
        if not node.children and not node.locks:
            if node.queued is None or (node.queued, node.number) not in entries:
                yield f"leaf {node.number} is not in the heap"
            elif node.queued > cache.tree.policy(node.stats):
                yield f"leaf {node.number} is queued with too large a key"


def _pages(cache: PrefixCache) -> Iterator[str]:
    """Rule (5), holders, pins, free list and counters."""
    pages = cache.pages
    holders = [0] * pages.n_pages
    pins = [0] * pages.n_pages
    for node in _nodes(cache):
        for page in node.pages:
            holders[page] += 1
            pins[page] += node.locks > 0
    for lease in cache.leases.values():
        for page in lease.table:
            holders[page] += 1
            pins[page] += 1
    for page in range(pages.n_pages):
        if holders[page] != pages.holders[page]:
            yield f"page {page} counts {pages.holders[page]} holders and has {holders[page]}"
        if pins[page] != pages.pins[page]:
            yield f"page {page} counts {pages.pins[page]} pins and has {pins[page]}"
    free = sorted(pages.free_pages())
    if free != [page for page, n in enumerate(holders) if n == 0]:
        yield f"{len(free)} pages are listed free, {holders.count(0)} have no holder"
    evictable = sum(h > 0 and not p for h, p in zip(holders, pins, strict=True))
    if evictable != pages.n_evictable:
        yield f"{pages.n_evictable} pages are counted evictable, {evictable} are"
