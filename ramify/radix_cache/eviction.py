"""An eviction policy is an ordering key: the unlocked leaf with the smallest key goes first.

A key is (rank, tick). Equal keys go in the order in which their nodes were made, so the order of
victims is total: the same calls evict the same nodes.

    policy      rank                             then
    lru         -                                least recently used
    lfu         requests that found it           least recently used
    slru        found at least once              least recently used
    fifo        -                                oldest
    priority    highest priority that used it    least recently used
    cost        floor at its last use + cost     least recently used

The rule for a policy: **use makes a key grow, never shrink**. The tree's heap stores the key that a
node had when it was offered. A key that has grown since is found when the node is on top; one that
has shrunk must be offered again, at the price of one more entry. So only a split does that, which
changes `cost`.

`cost` is GreedyDual-Size (P. Cao and S. Irani, Cost-Aware WWW Proxy Caching Algorithms, USENIX
Symposium on Internet Technologies and Systems, 1997). What is kept is ranked by what a byte of it
saves. Instead of ageing everything else at each eviction, what is used is lifted: the rank of the
last victim is the floor on which the next uses stand.
"""

from collections.abc import Callable
from dataclasses import dataclass

LINEAR_WORK = 4096
"""The depth at which reading what is before a token costs as much as the rest of its computation.

Multiplications outside attention over those per position read: about six times the model's width.
"""

Key = tuple[int, int]


@dataclass(slots=True)
class NodeStats:
    """What a policy may look at. Ticks are the cache's logical time: one per acquire or commit."""

    created: int
    last_used: int
    hits: int = 0  # requests that found it computed
    priority: int = 0  # the highest of the requests that used it
    floor: int = 0  # rank of the last victim before the last use; never falls
    cost: int = 0  # of computing its tokens again, per page that they hold


EvictionKey = Callable[[NodeStats], Key]


def lru(stats: NodeStats) -> Key:
    """Least recently used first."""
    return 0, stats.last_used


def lfu(stats: NodeStats) -> Key:
    """What the fewest requests have found first."""
    return stats.hits, stats.last_used


def slru(stats: NodeStats) -> Key:
    """What was computed and never found again first: one pass over new data displaces only it."""
    return int(stats.hits > 0), stats.last_used


def fifo(stats: NodeStats) -> Key:
    """Oldest first, used or not."""
    return 0, stats.created


def priority(stats: NodeStats) -> Key:
    """What only requests of low priority have used first."""
    return stats.priority, stats.last_used


def cost(stats: NodeStats) -> Key:
    """What is cheapest to compute again for the memory that it holds first, with age."""
    return stats.floor + stats.cost, stats.last_used


POLICIES: dict[str, EvictionKey] = {
    "lru": lru,
    "lfu": lfu,
    "slru": slru,
    "fifo": fifo,
    "priority": priority,
    "cost": cost,
}


def cost_per_page(start: int, n_tokens: int, n_pages: int) -> int:
    """Work to compute positions start .. start + n_tokens - 1 again, per page held.

    The unit is one position read by attention: a token at position p costs LINEAR_WORK + p.
    """
    positions = n_tokens * (2 * start + n_tokens - 1) // 2
    return (n_tokens * LINEAR_WORK + positions) // n_pages
