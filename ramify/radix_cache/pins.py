"""Prefixes that are kept from eviction for a time: bounded in pages, in number and in time.

A pin is a lock on the path to the end of a prefix, held by this table instead of a request:

    root - A - B - C          pin of A B: locks A and B; C is evicted as ever
               `-- D

Pins are kept in the order in which they expire, equal times in the order of pinning. The pages
pinned are those that nodes on pinned paths list, each counted once; a later split changes nothing
about them, so what was within the bound stays within it.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from ramify.radix_cache.tree import Node, RadixTree

MAX_PINS = 1024
MAX_TTL_S = 7 * 24 * 3600.0


@dataclass(eq=False, slots=True)
class Pin:
    """A locked path: `node` is where it ends."""

    node: Node
    expires: float


class PinTable:
    """The pins of one tree, found by the namespace and tokens they were made with."""

    def __init__(self, tree: RadixTree, max_pages: int) -> None:
        self.max_pages = max_pages
        self._tree = tree
        self._pins: dict[bytes, Pin] = {}  # in order of expiry

    def __len__(self) -> int:
        return len(self._pins)

    def __iter__(self) -> Iterator[Pin]:
        """The pins, the first to expire first."""
        return iter(self._pins.values())

    def pin(
        self, namespace: str, key: "array[int]", now: float, ttl_s: float
    ) -> tuple[int, str | None]:
        """Pin the longest computed prefix of `key`. Returns its length, and why if it is refused.

        Pinned again with the same key, a pin covers what has been computed since and lasts at
        least as long as it did. A refusal changes nothing.
        """
        name = _name(namespace, key)
        node, n = self._tree.match(namespace, key, len(key))
        refusal = self._refusal(name, node, n, ttl_s)
        if node is None or refusal is not None:
            return 0, refusal
        node = self._tree.ending_at(namespace, node, n)
        self._tree.lock(node)
        earlier = self._pins.pop(name, None)
        if earlier is not None:
            self._tree.unlock(earlier.node)
        expires = max(now + ttl_s, earlier.expires if earlier is not None else now)
        self._pins[name] = Pin(node, expires)
        self._pins = dict(sorted(self._pins.items(), key=lambda item: item[1].expires))
        return n, None

    def unpin(self, namespace: str, key: "array[int]") -> int:
        """Drop the pin made with exactly this key. Returns the tokens it held, 0 without one."""
        pin = self._pins.pop(_name(namespace, key), None)
        if pin is None:
            return 0
        self._tree.unlock(pin.node)
        return pin.node.end

    def expire(self, now: float) -> None:
        """Drop the pins whose time is over."""
        while self._pins and next(iter(self)).expires <= now:
            self.drop_first()

    def drop_first(self) -> bool:
        """Drop the pin that expires first. False if there is none."""
        if not self._pins:
            return False
        name = next(iter(self._pins))
        self._tree.unlock(self._pins.pop(name).node)
        return True

    def clear(self) -> None:
        """Drop every pin."""
        while self.drop_first():
            pass

    def pages(self) -> set[int]:
        """The pages that pinned paths hold."""
        return {page for node in _paths(pin.node for pin in self) for page in node.pages}

    def per_node(self) -> dict[int, int]:
        """How many pins lock each node, by its number; nodes without one are left out."""
        counts: dict[int, int] = {}
        for pin in self:
            at: Node | None = pin.node
            while at is not None:
                counts[at.number] = counts.get(at.number, 0) + 1
                at = at.parent
        return counts

    def _refusal(self, name: bytes, node: Node | None, n: int, ttl_s: float) -> str | None:
        """Why the prefix that ends n tokens deep on the path to `node` may not be pinned."""
        if not 0 < ttl_s <= MAX_TTL_S:
            return f"ttl_s must be more than 0 and at most {MAX_TTL_S:.0f}, got {ttl_s}"
        if node is None or n == 0:
            return "nothing of this prefix is computed"
        if name not in self._pins and len(self._pins) >= MAX_PINS:
            return f"{MAX_PINS} prefixes are pinned already; unpin one"
        held = self.pages() | set(self._tree.path_pages(node, n))
        for above in _paths([node.parent] if node.parent is not None else []):
            held.update(above.pages)
        if len(held) > self.max_pages:
            return f"{len(held)} pages would be pinned, of which at most {self.max_pages} may be"
        return None


def _paths(ends: "Iterator[Node] | list[Node]") -> Iterator[Node]:
    """Every node on the paths to `ends`, each once."""
    seen: set[int] = set()
    for end in ends:
        at: Node | None = end
        while at is not None and at.number not in seen:
            seen.add(at.number)
            yield at
            at = at.parent


def _name(namespace: str, key: "array[int]") -> bytes:
    """What a pin is found by: a digest, so that a long key costs no memory."""
    text = namespace.encode("utf-8", "surrogatepass")
    return blake2b(len(text).to_bytes(8, "big") + text + key.tobytes(), digest_size=16).digest()
