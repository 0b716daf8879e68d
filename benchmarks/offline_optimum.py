"""The best that any eviction could have done: Belady's rule on the tree, knowing the future.

All sequences together make one static tree, cut at every branch. Memory is counted in tokens. A
token that is not in use may stay until its next use, and one that stays that long is a hit:

    token x   used . . kept . . used                       1 hit
    token y          used . . . . . . given up . used      0 hits
    --------------------------------------------------> time, at most `capacity` rows at any time

So the question is which intervals fit, and each is worth the same. Giving up what is used farthest
ahead is then the best there is (L. A. Belady, A study of replacement algorithms for a
virtual-storage computer, 1966). With whole nodes, which have unequal sizes, it would not be: here a
node may lose its last tokens and keep the others. That a token is of no use without those before it
costs nothing, as they are used no later. What cannot be found is the last token of a prompt, which
every engine computes: keeping it for that is worth nothing.

Two schedules, both with the admissions of the real run in their order:

    optimal_hits      one request after the other, each gone before the next comes
    scheduled_hits    the real one: what a request holds cannot go while it runs

The first is that of a machine which serves one request at a time, with all memory for the past. The
second bounds what any eviction policy can reach in that run, and is generous: pages are never
partly empty, prefixes never held twice, and what a request computes is found by those admitted
after it at once.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from traces import Hold, Served, tokens

from ramify.radix_cache.page_allocator import PageAllocator
from ramify.radix_cache.tree import Node, RadixTree

NEVER = 1 << 60


def optimal_hits(served: Sequence[Served], capacity_tokens: int) -> int:
    """Prompt tokens that the best eviction finds, over all requests, served one by one."""
    replay = _Replay(served, capacity_tokens)
    hits = 0
    for number, request in enumerate(served):
        hits += replay.admit(number)
        replay.release(number, len(request.prompt) + max(len(request.output) - 1, 0))
        replay.make_room()
    return hits


def scheduled_hits(served: Sequence[Served], holds: Sequence[Hold], capacity_tokens: int) -> int:
    """Prompt tokens that the best eviction finds, where requests hold what they held in the run."""
    replay = _Replay(served, capacity_tokens)
    hits = 0
    held = [0] * len(served)
    admitted = 0
    for number, n_tokens in holds:
        if number == admitted:
            hits += replay.admit(number)
            admitted += 1
        elif held[number] == 0:
            replay.resume(number, n_tokens)
        elif n_tokens == 0:
            replay.release(number, held[number])
        else:
            replay.grow(number, n_tokens)
        held[number] = n_tokens
        replay.make_room()
    return hits


@dataclass
class _Part:
    """A node of the static tree. `held` of its tokens are in memory: all while it is pinned."""

    size: int
    end: int
    uses: list[int] = field(default_factory=list)  # requests that can find it, in order
    used: int = 0  # of the uses, those that are over
    pins: int = 0  # by requests that run
    held: int = 0

    @property
    def next_use(self) -> int:
        return self.uses[self.used] if self.used < len(self.uses) else NEVER

    @property
    def rank(self) -> tuple[int, int]:
        """Of all that is not pinned, the smallest goes first: used last, then the deepest."""
        return -self.next_use, -self.end


class _Replay:
    def __init__(self, served: Sequence[Served], capacity: int) -> None:
        self._served = served
        self._free = capacity
        self._tree = _static_tree(served)
        self._parts: dict[int, _Part] = {}  # by node
        self._own = [0] * len(served)  # slots that a running request has for what it generates
        self._heap: list[tuple[tuple[int, int], int, _Part]] = []  # (rank, node, part)
        for number in range(len(served)):
            for _, part in self._findable(number):
                part.uses.append(number)

    def admit(self, number: int) -> int:
        """Start a request: its prompt is held from now on. Returns how much of it was there."""
        hits = 0
        for _, part in self._findable(number):
            hits += part.held
            part.used += 1
        self._pin(number)
        return hits

    def resume(self, number: int, n_tokens: int) -> None:
        """Start it again after a retraction. Nobody counts what it finds."""
        self._pin(number)
        self.grow(number, n_tokens)

    def grow(self, number: int, n_tokens: int) -> None:
        """Let it hold n_tokens. What is generated is its own until it ends."""
        own = n_tokens - len(self._served[number].prompt)
        self._free += self._own[number] - own
        self._own[number] = own

    def release(self, number: int, n_tokens: int) -> None:
        """End it, or retract it. Its first n_tokens, all computed, may stay or go."""
        request = self._served[number]
        self._free += self._own[number]
        self._own[number] = 0
        for _, part in self._path(request.prompt):
            part.pins -= 1
        for node, part in self._path((request.prompt + request.output)[:n_tokens]):
            self._fill(part)
            if not part.pins:
                heapq.heappush(self._heap, (part.rank, node, part))

    def make_room(self) -> None:
        """Give up what is used farthest ahead, until the rest fits."""
        while self._free < 0 and self._heap:
            rank, _, part = self._heap[0]
            lost = min(part.held, -self._free)
            if part.pins or rank != part.rank or not lost:
                heapq.heappop(self._heap)  # outdated: offered again when it is released
                continue
            part.held -= lost
            self._free += lost

    def _pin(self, number: int) -> None:
        for _, part in self._path(self._served[number].prompt):
            self._fill(part)
            part.pins += 1

    def _fill(self, part: _Part) -> None:
        self._free -= part.size - part.held
        part.held = part.size

    def _findable(self, number: int) -> list[tuple[int, _Part]]:
        return self._path(self._served[number].prompt[:-1])

    def _path(self, ids: list[int]) -> list[tuple[int, _Part]]:
        """(node, part) of those that lie wholly on the way of `ids`, from the top."""
        path: list[tuple[int, _Part]] = []
        node: Node | None = self._tree.roots.get("")
        n = 0
        while node is not None and n < len(ids):
            node = node.children.get(ids[n])
            if node is None or node.end > len(ids):
                break
            n = node.end
            fresh = _Part(len(node.tokens), node.end)
            path.append((node.number, self._parts.setdefault(node.number, fresh)))
        return path


def _static_tree(served: Sequence[Served]) -> RadixTree:
    """All sequences, cut at every branch, before and after the last token of every prompt."""
    longest = max((len(r.prompt) + len(r.output) for r in served), default=1)
    tree = RadixTree(PageAllocator(3 * len(served)), longest)
    for request in served:
        prompt = request.prompt
        for ids in (prompt[:-1], prompt, prompt + request.output[:-1]):
            if ids:
                tree.insert("", tokens(ids), [tree.pages.take()])  # one page: it means nothing
    return tree
