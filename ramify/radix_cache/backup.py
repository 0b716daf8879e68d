"""What is written to disk before it is evicted: what was found again, and at the end all of it."""

from ramify.radix_cache.page_keys import node_pages
from ramify.radix_cache.plans import PageRecord
from ramify.radix_cache.tiers import TierIndex
from ramify.radix_cache.tree import Node, RadixTree

IN_HOST = -1  # instead of a page of the device


def back_up_path(node: Node, page_size: int, tiers: TierIndex) -> None:
    """Write the path to `node` to disk, from its root on, as far as slots can be had now."""
    path: list[Node] = []
    at: Node | None = node
    while tiers.writes and at is not None and not at.backed_up:
        path.append(at)
        at = at.parent
    pages = []
    for each in reversed(path):
        pages += node_pages(each, page_size)
        each.backed_up = all(tiers.back_up(page, record) for page, record in pages)
        if not each.backed_up:
            break
    for _, record in reversed(pages):
        tiers.touch_record(record)  # so that the end of the path is the first to go


def back_up_all(tree: RadixTree, tiers: TierIndex, n: int) -> int:
    """Begin to write up to n pages that are not on disk: see PrefixCache.back_up_all."""
    if not tiers.writes:
        return 0
    wanted = _worth_writing(tree, tiers.disk_pages)
    below = tiers.only_in_host()[: tiers.disk_pages - len(wanted)]
    wanted += [(IN_HOST, record) for record in below]
    for _, record in reversed(wanted):
        tiers.touch_record(record)  # so that none of them makes way for another
    left = [(page, record) for page, record in wanted if not tiers.is_safe(record)]
    for page, record in left[:n]:
        if not tiers.back_up(page, record):
            break
    return sum(not tiers.is_safe(record) for _, record in left)


def _worth_writing(tree: RadixTree, n_pages: int) -> list[tuple[int, PageRecord]]:
    """The n_pages pages of the tree used last; a path, which is used at once, from its root."""
    nodes = sorted(tree.nodes(), key=lambda n: (-n.stats.last_used, n.start, n.number))
    wanted: list[tuple[int, PageRecord]] = []
    for node in nodes:
        pages = node_pages(node, tree.page_size)
        if node.children and node.end % tree.page_size:
            pages.pop()  # the children's page holds more
        wanted += pages
        if len(wanted) >= n_pages:
            break
    return wanted[:n_pages]
