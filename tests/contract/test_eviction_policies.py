"""What every eviction policy promises, on random traces, and what each one is for.

The oracle knows nothing of the heap: it sorts the evictable leaves by key, again and again.
"""

import copy
import itertools
import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ramify.radix_cache import invariants
from ramify.radix_cache.eviction import POLICIES, NodeStats, cost_per_page
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.config import EVICTION_POLICIES

PAGE = 4
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def serve(cache, ids, priority=0):
    """One request alone, start to end. Returns its hit."""
    key = as_tokens(ids)
    lease = cache.acquire("", key, len(key) - 1, priority)
    assert cache.ensure(lease, len(key))
    cache.commit(lease, key)
    cache.release(lease)
    return lease.n_cached


def held(cache, ids):
    return cache.hit_lengths("", as_tokens(ids), len(ids))[1]


class Trace:
    """A seeded life of a cache: requests that overlap, pins, and evictions checked as they come."""

    def __init__(self, seed, policy):
        self.rng = random.Random(seed)
        self.policy = policy
        self.cache = PrefixCache(60, PAGE, policy=policy, pin_share=0.3)
        self.open = []  # (lease, key)
        self.victims = []

    def run(self, n_steps=150):
        for step in range(n_steps):
            self.rng.choice([self.begin, self.begin, self.end, self.pin, self.evict])(step)
            assert invariants.check(self.cache) == []
        return self

    def ids(self):
        trunk = [self.rng.randrange(3)] * 6
        return [*trunk, *(self.rng.randrange(2) for _ in range(self.rng.randrange(1, 18)))]

    def begin(self, step):
        key = as_tokens(self.ids())
        lease = self.cache.acquire("", key, len(key) - 1, self.rng.randrange(-2, 3))
        if len(self.open) < 3 and self.cache.ensure(lease, len(key)):
            self.cache.commit(lease, key)
            self.open.append((lease, key))
        else:
            self.cache.release(lease)

    def end(self, step):
        if self.open:
            self.cache.release(self.open.pop(self.rng.randrange(len(self.open)))[0])

    def pin(self, step):
        self.cache.expire_pins(step)
        self.cache.pin("", as_tokens(self.ids()), step, self.rng.randrange(1, 40))

    def evict(self, step):
        """Free one page more; exactly the nodes that the oracle names go."""
        before = {node.number for node in self.cache.tree.nodes()}
        expected = predict(self.cache, self.policy, self.cache.pages.n_free + 1)
        self.cache.tree.evict(self.cache.pages.n_free + 1)
        assert before - {node.number for node in self.cache.tree.nodes()} == set(expected)
        self.victims += expected


def predict(cache, policy, n_free):
    """The victims in order, by sorting the evictable leaves anew before each."""
    nodes = {node.number: node for node in cache.tree.nodes()}
    holders, free, victims = list(cache.pages.holders), cache.pages.n_free, []
    while free < n_free:
        parents = {node.parent.number for node in nodes.values()}
        leaves = [n for n in nodes.values() if n.number not in parents and not n.locks]
        if not leaves:
            break
        victim = min(leaves, key=lambda node: (policy(node.stats), node.number))
        for page in victim.pages:
            holders[page] -= 1
            free += holders[page] == 0
        victims.append(victim.number)
        del nodes[victim.number]
    return victims


def test_the_table_has_the_names_of_the_option():
    assert tuple(POLICIES) == EVICTION_POLICIES


@every_policy
@pytest.mark.parametrize("seed", range(12))
def test_victims_are_those_of_sorting_the_leaves_by_key(policy, seed):
    assert len(Trace(seed, policy).run().victims) > 10


@every_policy
def test_equal_traces_have_equal_victims(policy):
    """The order is total: nothing depends on hashes, addresses or the clock."""
    runs = [Trace(7, policy).run().victims for _ in range(10)]
    assert runs == [runs[0]] * 10


@every_policy
def test_locked_and_pinned_paths_stay_whatever_is_asked(policy):
    cache = PrefixCache(40, PAGE, policy=policy, pin_share=0.5)
    for first in range(4):
        serve(cache, [first] * 14, priority=first)
        serve(cache, [*([first] * 6), 9, 9, 9, 9], priority=first)
    lease = cache.acquire("", as_tokens([0] * 14), 10)
    assert cache.pin("", as_tokens([*([1] * 6), 9]), 0.0, 10.0) == (7, None)
    cache.tree.evict(41)
    assert [held(cache, [first] * 14) for first in range(4)] == [10, 6, 0, 0]
    assert held(cache, [*([1] * 6), 9, 9, 9, 9]) == 7
    assert invariants.check(cache) == []
    cache.release(lease)


@every_policy
def test_eviction_ends_when_enough_pages_are_free_or_nothing_is_left(policy):
    cache = PrefixCache(20, PAGE, policy=policy)
    for first in range(5):
        serve(cache, [first] * 12)
    cache.tree.evict(7)
    assert 7 <= cache.pages.n_free <= 9  # the last victim held three
    cache.tree.evict(21)
    assert cache.pages.n_free == 20
    assert cache.tree.n_tokens == 0


@every_policy
@given(
    stats=st.builds(
        NodeStats,
        created=st.integers(0, 9),
        last_used=st.integers(9, 99),
        hits=st.integers(0, 3),
        priority=st.integers(-3, 3),
        floor=st.integers(0, 10**6),
        cost=st.integers(0, 10**6),
    ),
    later=st.integers(1, 9),
    hits=st.integers(0, 1),
    rise=st.integers(0, 9),
)
def test_use_makes_a_key_grow_never_shrink(policy, stats, later, hits, rise):
    """So the lazily updated heap holds one entry a node."""
    used = replace(
        stats,
        last_used=stats.last_used + later,
        hits=stats.hits + hits,
        priority=stats.priority + rise,
        floor=stats.floor + rise,
    )
    assert policy(used) >= policy(stats)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "fifo"])
def test_of_two_alike_the_one_used_longer_ago_goes_first(name):
    older = NodeStats(created=1, last_used=5, hits=1, priority=2, floor=3, cost=4)
    assert POLICIES[name](older) < POLICIES[name](replace(older, last_used=6))


def test_a_key_that_shrinks_is_handled_too():
    """It costs heap entries, not the order of victims."""
    for seed in range(5):
        assert len(Trace(seed, lambda stats: (0, -stats.last_used)).run().victims) > 10


def test_the_oracle_can_fail():
    """A cache that evicts by another key than it says is found out."""
    trace = Trace(1, POLICIES["lfu"])
    trace.policy = POLICIES["lru"]
    with pytest.raises(AssertionError):
        trace.run()


@every_policy
@pytest.mark.parametrize("n", [250, 4000])
def test_eviction_looks_at_a_few_nodes_however_large_the_tree(policy, n):
    """Half of the sequences are used again, so half of the heap's entries are out of date."""
    asked = []
    cache = PrefixCache(3 * n, PAGE, policy=lambda stats: asked.append(0) or policy(stats))
    for k in [*range(n), *range(0, n, 2)]:
        serve(cache, [k % 10, k, k, k, k])
    nodes = sum(1 for _ in cache.tree.nodes())
    asked.clear()
    cache.tree.evict(cache.pages.n_free + n // 2)
    gone = nodes - sum(1 for _ in cache.tree.nodes())
    assert gone >= n // 4
    assert len(asked) <= 6 * gone


def test_a_split_that_makes_a_key_smaller_is_noticed():
    """Cut off its cheap end, a node is cheaper than it was offered for, and goes first."""
    cache = PrefixCache(40, PAGE, policy=POLICIES["cost"])
    serve(cache, [1] * 16)
    serve(cache, [2] * 14)  # 14 tokens on 4 pages: cheaper per page than 16
    lease = cache.acquire("", as_tokens([1] * 15), 15)  # what is left below is one token
    cache.release(lease)
    cache.tree.evict(cache.pages.n_free + 1)
    assert (held(cache, [1] * 16), held(cache, [2] * 14)) == (15, 0)


def order_of_loss(policy, *uses):
    """Serve the sequences named by `uses` ((name, priority), ...); the order in which they go."""
    cache = PrefixCache(64, PAGE, policy=POLICIES[policy])
    for name, priority in uses:
        serve(cache, [name] * 8, priority)
    lost = []
    names = sorted({name for name, _ in uses})
    for _ in range(200):
        cache.tree.evict(cache.pages.n_free + 1)
        lost += [n for n in names if n not in lost and held(cache, [n] * 8) == 0]
    return lost


def test_lru_forgets_what_was_used_longest_ago():
    assert order_of_loss("lru", (1, 0), (2, 0), (3, 0), (1, 0)) == [2, 3, 1]


def test_lfu_forgets_what_was_found_least():
    uses = [(1, 0)] * 3 + [(2, 0)] * 2 + [(3, 0)] * 4
    assert order_of_loss("lfu", *uses) == [2, 1, 3]


def test_slru_protects_from_the_second_use_on():
    """A scan of new data displaces only itself, however recent it is."""
    assert order_of_loss("slru", (1, 0), (1, 0), (2, 0), (3, 0)) == [2, 3, 1]


def test_fifo_forgets_the_oldest_however_much_it_is_used():
    assert order_of_loss("fifo", (1, 0), (2, 0), (3, 0), (1, 0), (1, 0)) == [1, 2, 3]


def test_priority_keeps_what_any_important_request_has_used():
    assert order_of_loss("priority", (1, 5), (2, -1), (3, 0), (4, 0), (2, -7)) == [2, 3, 4, 1]
    assert order_of_loss("priority", (1, 0), (1, 9), (2, 5), (1, 0)) == [2, 1]


def test_cost_keeps_what_saves_most_for_its_pages():
    """Full pages save more than a page with one token, deep ones more than shallow ones."""
    assert cost_per_page(0, 16, 4) > cost_per_page(0, 13, 4) > cost_per_page(0, 1, 1)
    assert cost_per_page(10_000, 16, 4) > 3 * cost_per_page(0, 16, 4)
    cache = PrefixCache(64, PAGE, policy=POLICIES["cost"])
    serve(cache, [1] * 8)
    serve(cache, [2] * 5)  # later, and for as many pages fewer tokens
    cache.tree.evict(cache.pages.n_free + 1)
    assert (held(cache, [1] * 8), held(cache, [2] * 5)) == (8, 0)


def test_cost_lets_what_is_never_used_again_go_in_the_end():
    """The floor rises with every victim, so even the costliest gives way to what is used."""
    cache = PrefixCache(8, PAGE, policy=POLICIES["cost"])
    serve(cache, [1] * 8)
    for name in range(2, 40):
        serve(cache, [name] * 5)
    assert held(cache, [1] * 8) == 0


def test_one_request_is_one_hit_however_many_chunks_it_commits():
    """Else long prompts would look popular, and a lease tried in vain would count as a use."""
    cache = PrefixCache(16, PAGE)
    serve(cache, [1] * 8)
    cache.release(cache.acquire("", as_tokens([1] * 12), 11))  # admitted in vain
    lease = cache.acquire("", as_tokens([1] * 16), 15)
    assert cache.ensure(lease, 16)
    for n in (10, 12, 16, 16):
        cache.commit(lease, as_tokens([1] * n))
    cache.release(lease)
    hits = {node.start: node.stats.hits for node in cache.tree.nodes()}
    assert hits == {0: 1, 8: 0, 10: 0, 12: 0}


def test_the_oracle_sees_every_policy_differ():
    """Six names, six orders: no two policies are the same function."""
    trace = Trace(3, POLICIES["lru"]).run()
    caches = [copy.deepcopy(trace.cache) for _ in POLICIES]
    orders = [tuple(predict(c, p, 60)) for c, p in zip(caches, POLICIES.values(), strict=True)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
