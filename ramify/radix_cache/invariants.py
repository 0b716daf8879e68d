"""Check a cache from first principles: every page has the owners that tree, leases and pins say."""

from array import array
from collections import Counter
from collections.abc import Iterator

from ramify.radix_cache import history
from ramify.radix_cache.eviction import cost_per_page
from ramify.radix_cache.page_keys import PageKeys, page_key
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.radix_cache.tiers import TierIndex
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
        *_tiers(cache),
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
            if node.page_key and node.page_key != _page_key(cache, node):
                yield f"node {node.number} has another page key than its tokens"
            cost = cost_per_page(node.start, len(node.tokens), len(node.pages))
            if node.stats.cost != cost:
                yield f"node {node.number} says it costs {node.stats.cost}, not {cost}"


def _page_key(cache: PrefixCache, node: Node) -> bytes:
    """The key of the pages that are full at the node's end, from the root on."""
    path = [node]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    tokens = array("I")
    for each in reversed(path):
        tokens += each.tokens
    keys = PageKeys(path[-1].namespace, cache.page_size)
    return keys.parent(tokens, len(tokens) // cache.page_size)


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


def _tiers(cache: PrefixCache) -> Iterator[str]:
    """The rules of `tiers` and of `tier_pages`."""
    if cache.tiers is not None:
        yield from _tier_slots(cache.tiers)
        yield from _tier_pages(cache.tiers)
        yield from _tier_counts(cache.tiers)


def _tier_slots(tiers: TierIndex) -> Iterator[str]:
    """Rule (1): a slot is free or has one page, which says so too."""
    for slot, page in enumerate(tiers.owners):
        if (page is None) != (slot in tiers.free):
            yield f"host slot {slot} is free and has a page, or neither"
        if page is not None and page.slot != slot:
            yield f"host slot {slot} has a page that says it is in {page.slot}"
        if page is not None and not (page.known or page.reading or page.writing):
            yield f"host slot {slot} has a forgotten page"
    for page in tiers.pages.by_key.values():
        if page.slot >= 0 and tiers.owners[page.slot] is not page:
            yield f"host slot {page.slot} is not of the page that says so"


def _tier_pages(tiers: TierIndex) -> Iterator[str]:
    """Rule (3), the orders, the links both ways, and the keys."""
    pages = tiers.pages
    for key, page in pages.by_key.items():
        name, record = key.hex()[:8], page.record
        if record.key != key or page_key(record.parent, record.tokens) != key:
            yield f"tier page {name} has another key than its tokens"
        siblings = pages.siblings.get(record.parent)
        if siblings is None or siblings.get(key) is not page:
            yield f"tier page {name} is not among its siblings"
        if page.slot < 0 and not page.on_disk:
            yield f"tier page {name} is nowhere"
        if (pages.idle.get(key) is page) != page.idle:
            yield f"tier page {name} is idle or is not, and the order says otherwise"
        if (pages.disk.get(key) is page) != page.on_disk:
            yield f"tier page {name} is on disk or is not, and the order says otherwise"
        if (page.reading or page.writing) and page.slot < 0:
            yield f"tier page {name} is read or written, and has no slot"
    if sum(map(len, pages.siblings.values())) != len(pages.by_key):
        yield "there are siblings that are not known"
    for order in (pages.idle, pages.disk):
        if any(key not in pages.by_key for key in order):
            yield "an unknown page is to be evicted from host memory or disk"


def _tier_counts(tiers: TierIndex) -> Iterator[str]:
    """Rule (2), locks and counters."""
    used = [page for page in tiers.owners if page is not None]
    if tiers.n_writing != sum(page.writing for page in used):
        yield f"{tiers.n_writing} pages are counted as being written"
    if tiers.n_reading != sum(page.reading for page in used):
        yield f"{tiers.n_reading} pages are counted as being read"
    if len(tiers.pages.disk) + tiers.n_writing > tiers.disk_pages:
        yield f"{len(tiers.pages.disk)} files and {tiers.n_writing} to come are too many"
    locks = Counter(page.record.key for f in tiers.fetches.values() for page in f.pages)
    for page in tiers.pages.by_key.values():
        if page.locks > locks[page.record.key]:
            yield f"a tier page has {page.locks} locks for {locks[page.record.key]} fetches"
    fetched = {id(page): page for f in tiers.fetches.values() for page in f.pages}
    if tiers.n_locked != len(fetched):
        yield f"{tiers.n_locked} tier pages are counted as locked, {len(fetched)} are"
    if any(page.locks <= 0 for page in fetched.values()):
        yield "a tier page that a fetch needs is not locked"
    for fetch in tiers.fetches.values():
        if fetch.open != sum(page.reading for page in fetch.pages):
            yield f"a fetch waits for {fetch.open} reads"
