"""The best that any eviction could have done: Belady's rule on the tree, knowing the future.

Requests are taken in the order in which the real run admitted them. All sequences together make
one static tree, cut at every branch. A node is kept or evicted whole; only leaves of what is kept
may go, and the one whose next use lies farthest ahead goes first (Belady, A study of replacement
algorithms for a virtual-storage computer, 1966). Requests do not overlap here and hold no pages
while they run, so a real engine with the same memory cannot quite reach this.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from traces import Served, tokens

from ramify.radix_cache.page_allocator import PageAllocator
from ramify.radix_cache.tree import Node, RadixTree

NEVER = 1 << 60


@dataclass
class _Kept:
    """What the replay knows of a node of the static tree."""

    uses: list[int] = field(default_factory=list)  # requests whose prompt goes through, in order
    next_use: int = 0  # index into uses
    held: bool = False
    held_children: int = 0


def optimal_hits(served: Sequence[Served], capacity_tokens: int) -> int:
    """Prompt tokens that the best eviction would have found computed, over all requests."""
    replay = _Replay(served, capacity_tokens)
    return sum(replay.serve(number, request) for number, request in enumerate(served))


class _Replay:
    def __init__(self, served: Sequence[Served], capacity: int) -> None:
        self._free = capacity
        self._tree = _static_tree(served)
        self._state: dict[int, _Kept] = {}
        self._heap: list[tuple[int, int, Node]] = []  # (-next use, number, node)
        for number, request in enumerate(served):
            for node in self._path(request.prompt):
                self._at(node).uses.append(number)

    def serve(self, number: int, request: Served) -> int:
        """Hits of one request; afterwards its whole sequence is kept as far as memory allows."""
        path = self._path(request.prompt)
        hit = 0
        for node in path:
            state = self._at(node)
            state.next_use += 1
            if not state.held:
                break
            hit += len(node.tokens)
        for node in path:
            self._offer(node)
        for node in self._path(request.prompt + request.output[:-1]):
            if not self._keep(node, number):
                break
        return min(hit, len(request.prompt) - 1)

    def _keep(self, node: Node, number: int) -> bool:
        state = self._at(node)
        if not state.held:
            if self._next(node) == NEVER or not self._make_room(len(node.tokens), node):
                return False
            state.held = True
            self._free -= len(node.tokens)
            if node.parent is not None:
                self._at(node.parent).held_children += 1
        self._offer(node)
        return True

    def _make_room(self, n: int, wanted: Node) -> bool:
        """Evict leaves that are used later than the wanted node, farthest first."""
        limit = self._next(wanted)
        while self._free < n and self._heap:
            key, _, node = heapq.heappop(self._heap)
            state = self._at(node)
            if not state.held or state.held_children or -key != self._next(node):
                continue  # outdated: it was offered again with its present key
            if -key <= limit:
                heapq.heappush(self._heap, (key, node.number, node))
                return False
            state.held = False
            self._free += len(node.tokens)
            if node.parent is not None:
                self._at(node.parent).held_children -= 1
                self._offer(node.parent)
        return self._free >= n

    def _offer(self, node: Node) -> None:
        state = self._at(node)
        if state.held and not state.held_children and node.parent is not None:
            heapq.heappush(self._heap, (-self._next(node), node.number, node))

    def _next(self, node: Node) -> int:
        state = self._at(node)
        return state.uses[state.next_use] if state.next_use < len(state.uses) else NEVER

    def _at(self, node: Node) -> _Kept:
        return self._state.setdefault(node.number, _Kept())

    def _path(self, ids: list[int]) -> list[Node]:
        """Nodes of the static tree that lie wholly on the way of `ids`, from the top."""
        path: list[Node] = []
        node = self._tree.roots[""]
        n = 0
        while n < len(ids) and (child := node.children.get(ids[n])) is not None:
            if child.end > len(ids):
                break
            path.append(child)
            node, n = child, child.end
        return path


def _static_tree(served: Sequence[Served]) -> RadixTree:
    """All sequences, cut at every branch and at the end of every prompt."""
    total = sum(len(r.prompt) + len(r.output) for r in served) + 1
    tree = RadixTree(PageAllocator(total), total)
    for request in served:
        for ids in (request.prompt, request.prompt + request.output[:-1]):
            tree.insert("", tokens(ids), _one_page(tree, tokens(ids)))
    return tree


def _one_page(tree: RadixTree, key: object) -> list[int]:
    """The static tree has one page as long as everything: its pages mean nothing."""
    return [tree.pages.take()]
