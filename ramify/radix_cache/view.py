"""The tree as operators may see it."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from ramify.radix_cache.tree import Node, RadixTree

SHOWN_TOKENS = 16  # of each node, from its first


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. `idle`: ticks of the cache since its last use. `locks` counts the `pins` too."""

    number: int
    parent: int  # the parent's number; 0 for a child of a root
    namespace: str
    start: int
    token_ids: list[int]  # the first of its tokens
    n_tokens: int
    n_pages: int
    hits: int
    locks: int
    pins: int
    idle: int


def snapshot(tree: RadixTree, pins: Mapping[int, int], limit: int) -> tuple[int, list[NodeView]]:
    """(number of nodes, the `limit` most recently used, on one path from the root down).

    `pins` counts the pins of each node by its number. Reads every node once.
    """
    nodes = list(tree.nodes())
    latest = heapq.nlargest(limit, nodes, key=lambda n: (n.stats.last_used, -n.start, -n.number))
    return len(nodes), [_view(node, tree.now, pins.get(node.number, 0)) for node in latest]


def _view(node: Node, now: int, pins: int) -> NodeView:
    assert node.parent is not None, "a root is not shown"
    return NodeView(
        number=node.number,
        parent=node.parent.number if node.start > 0 else 0,
        namespace=_root(node).namespace,
        start=node.start,
        token_ids=node.tokens[:SHOWN_TOKENS].tolist(),
        n_tokens=len(node.tokens),
        n_pages=len(node.pages),
        hits=node.stats.hits,
        locks=node.locks,
        pins=pins,
        idle=now - node.stats.last_used,
    )


def _root(node: Node) -> Node:
    while node.parent is not None:
        node = node.parent
    return node
