"""An eviction policy is an ordering key: the unlocked leaf with the smallest key goes first."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class NodeStats:
    """What a policy may look at. Ticks are the cache's logical time: one per acquire or commit."""

    created: int
    last_used: int
    hits: int = 0


EvictionKey = Callable[[NodeStats], int]


def lru(stats: NodeStats) -> int:
    """Least recently used first."""
    return stats.last_used
