"""How the prefix cache's own work grows with what it holds: up to 2 million tokens, 100,000 nodes.

    python benchmarks/cache_scale.py [--tokens N]

A synthetic trace without a model, over pages of 16: long documents, and conversations about them in
turns of 21 tokens; each turn continues an earlier conversation, one in five inside an earlier turn.
Everything is computed in chunks of 256. Times are medians in microseconds; what must not grow with
the size of the tree is seen by reading down a column. `acquire`, `insert` and `miss` are of a
conversation with a new turn; `evict` frees one page at a time and is quoted per node. `keys` counts
how often an evicting call asked the policy for a node's key: the mean, and the worst call, which
met a run of heap entries that use had outdated. It is exact; a walk of the tree would show in it.
"""

import random
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterator

from measure import add, add_machine, argument

from ramify.radix_cache.eviction import POLICIES, EvictionKey, Key, NodeStats, lru
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import PrefixCache

PAGE, CHUNK, DOCUMENT, TURN, PROMPT = 16, 256, 3900, 21, 4000
SAMPLES = 300
TOKENS_PER_DOCUMENT = 40_000  # with all conversations about it


def microseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e6


def fresh(rng: random.Random, n: int) -> "array[int]":
    return as_tokens(rng.randbytes(4 * n))


class Counted:
    """A policy that counts its calls."""

    def __init__(self, policy: EvictionKey) -> None:
        self.policy, self.calls = policy, 0

    def __call__(self, stats: NodeStats) -> Key:
        self.calls += 1
        return self.policy(stats)


class Trace:
    """Conversations served one after the other until the tree holds `n_tokens`."""

    def __init__(self, n_tokens: int, policy: EvictionKey = lru) -> None:
        self.n_tokens = n_tokens
        self.rng = random.Random(n_tokens)
        self.policy = Counted(policy)
        self.cache = PrefixCache(n_tokens // 8, PAGE, policy=self.policy)
        n_documents = max(1, n_tokens // TOKENS_PER_DOCUMENT)
        self.prompts = [fresh(self.rng, DOCUMENT) for _ in range(n_documents)]
        for prompt in self.prompts:
            self.serve(prompt)
        while self.cache.tree.n_tokens < n_tokens:
            self.prompts.append(self.turn())
            self.serve(self.prompts[-1])

    def turn(self) -> "array[int]":
        """An earlier conversation, perhaps left inside one of its latest turns, and a new turn."""
        earlier = self.rng.choice(self.prompts)
        left = self.rng.randrange(4 * TURN) if self.rng.random() < 0.2 else 0
        return earlier[: len(earlier) - left] + fresh(self.rng, TURN)

    def serve(self, prompt: "array[int]") -> tuple[float, float]:
        """One request. Returns the time of acquire and of the last commit, which inserts."""
        cache = self.cache
        began = time.perf_counter()
        lease = cache.acquire("", prompt, len(prompt) - 1)
        acquired = (time.perf_counter() - began) * 1e6
        assert cache.ensure(lease, len(prompt))
        for end in range(lease.n_cached + CHUNK, len(prompt), CHUNK):
            cache.commit(lease, prompt[:end])
        committed = microseconds(lambda: cache.commit(lease, prompt))
        cache.release(lease)
        return acquired, committed

    def sample(self) -> Iterator["array[int]"]:
        long = [prompt for prompt in self.prompts if len(prompt) >= PROMPT]
        return (self.rng.choice(long) for _ in range(SAMPLES))

    def match_us(self) -> float:
        tree = self.cache.tree
        times = [microseconds(lambda p=p: tree.match("", p, PROMPT)) for p in self.sample()]
        return statistics.median(times)

    def miss_us(self) -> float:
        reason = self.cache.miss_reason
        turns = [self.turn() for _ in range(SAMPLES)]
        times = [microseconds(lambda p=p: reason("", p, 0, len(p) - 1)) for p in turns]
        return statistics.median(times)

    def evict(self) -> tuple[float, float, float]:
        """Evict half of the tokens: (time per node, keys asked for per call, most of one call)."""
        tree, pages, nodes = self.cache.tree, self.cache.pages, self.n_nodes()
        taken, keys = 0.0, []
        while tree.n_tokens > self.n_tokens // 2:
            before = self.policy.calls
            taken += microseconds(lambda: tree.evict(pages.n_free + 1))
            keys.append(self.policy.calls - before)
        return taken / (nodes - self.n_nodes()), statistics.mean(keys), max(keys)

    def n_nodes(self) -> int:
        return sum(1 for _ in self.cache.tree.nodes())

    def bytes_per_token(self) -> float:
        """Memory of the tree's nodes and of the counts per page, over the tokens held."""
        total = 0
        for node in self.cache.tree.nodes():
            parts = (node, node.stats, node.tokens, node.pages, node.children)
            total += sum(sys.getsizeof(part) for part in parts)
        per_page = 3 * 8 + 28  # holders, pins, free list, the number itself
        return (total + per_page * self.cache.pages.n_pages) / self.cache.tree.n_tokens


def grow(most: int) -> None:
    """The table over sizes."""
    names = (
        "tokens",
        "nodes",
        "match",
        "acquire",
        "insert",
        "miss",
        "evict/node",
        "keys",
        "most keys",
        "bytes/tok",
    )
    print("  " + "".join(f"{name:>12}" for name in names))
    sizes = [most >> k for k in range(4, -1, -1)]
    for n_tokens in sizes:
        trace = Trace(n_tokens)
        nodes, per_token = trace.n_nodes(), trace.bytes_per_token()
        match = trace.match_us()
        served = [trace.serve(trace.turn()) for _ in range(SAMPLES)]
        acquire, insert = (statistics.median(times) for times in zip(*served, strict=True))
        figures = (match, acquire, insert, trace.miss_us(), *trace.evict(), per_token)
        row = f"{n_tokens:>12,}{nodes:>12,}" + "".join(f"{x:>12.1f}" for x in figures)
        print("  " + row, flush=True)


def deep_chain() -> float:
    """Time to match one prompt that lies in the tree as a chain of nodes of one page each."""
    cache, prompt = PrefixCache(PROMPT, PAGE), fresh(random.Random(0), PROMPT)
    lease = cache.acquire("", prompt, 0)
    assert cache.ensure(lease, PROMPT)
    for n in range(PAGE, PROMPT + 1, PAGE):
        cache.commit(lease, prompt[:n])
    return statistics.median(
        microseconds(lambda: cache.tree.match("", prompt, PROMPT)) for _ in range(SAMPLES)
    )


def main() -> None:
    add_machine()
    most = argument("tokens", 2_000_000)
    grow(most)
    add(f"match of {PROMPT} tokens in {PROMPT // PAGE} nodes, us", deep_chain())
    for name, policy in POLICIES.items():
        trace = Trace(most >> 4, policy)
        add(f"{name}: evict, us per node", trace.evict()[0])


if __name__ == "__main__":
    main()
