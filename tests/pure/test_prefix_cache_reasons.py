"""Why a prefix was not found, what is remembered of evictions, and the view of the tree."""

import random

import pytest

from ramify.radix_cache.history import STRIDE, EvictedPrefixes, extend, namespace_digest
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.messages import TreeNode

PAGE = 4


def serve(cache, ids, namespace=""):
    """One request alone. Returns why it was not found whole."""
    key = as_tokens(ids)
    lease = cache.acquire(namespace, key, len(key) - 1)
    reason = cache.miss_reason(namespace, key, lease.n_cached, len(key) - 1)
    assert cache.ensure(lease, len(key))
    cache.commit(lease, key)
    cache.release(lease)
    return reason


def evict_all(cache):
    cache.tree.evict(cache.pages.n_pages + 1)


def test_a_first_sight_a_hit_and_a_miss_after_eviction_have_their_names():
    cache = PrefixCache(20, PAGE)
    assert serve(cache, range(20)) == "never seen"
    assert serve(cache, range(20)) is None
    assert serve(cache, [*range(10), 77, 78]) == "never seen"
    evict_all(cache)
    assert serve(cache, range(20)) == "evicted"
    assert serve(cache, [50, 51]) == "never seen"


def test_what_was_evicted_below_a_prefix_that_stayed_is_known():
    cache = PrefixCache(20, PAGE)
    serve(cache, range(20))
    serve(cache, range(8))
    serve(cache, [*range(8), 70])  # cuts at 8
    cache.pin("", as_tokens(range(8)), 0.0, 1.0)
    evict_all(cache)
    assert serve(cache, range(20)) == "evicted"
    assert serve(cache, [*range(8), 71, 72]) == "never seen"


def test_it_is_known_also_when_another_request_computed_the_beginning_again():
    cache = PrefixCache(100, PAGE)
    serve(cache, range(200))
    evict_all(cache)
    serve(cache, [*range(100), 999])
    assert serve(cache, range(200)) == "evicted"


def test_a_prefix_of_another_namespace_is_told_from_one_never_seen():
    cache = PrefixCache(40, PAGE)
    serve(cache, range(20), namespace="a")
    assert serve(cache, range(20), namespace="b") == "namespace"
    assert serve(cache, [*range(10), 77, 78], namespace="a") == "never seen"
    evict_all(cache)
    assert serve(cache, range(20), namespace="c") == "never seen"


def test_evictions_are_of_one_namespace():
    cache = PrefixCache(40, PAGE)
    serve(cache, range(20), namespace="a")
    evict_all(cache)
    assert serve(cache, range(20), namespace="a") == "evicted"
    evict_all(cache)
    assert serve(cache, range(20), namespace="b") == "never seen"


def test_what_may_not_be_reused_was_not_missed():
    """The limit is what the request allows: log-probabilities of the prompt, the last token."""
    cache = PrefixCache(20, PAGE)
    key = as_tokens(range(8))
    assert cache.miss_reason("", key, 0, 0) is None
    serve(cache, range(8))
    assert cache.miss_reason("", key, 4, 7) is None  # there, but no page was free for a copy
    off = PrefixCache(20, PAGE, reuse=False)
    assert off.miss_reason("", key, 0, 7) is None


def test_flush_forgets_evictions_too():
    cache = PrefixCache(20, PAGE)
    serve(cache, range(20))
    assert cache.flush()
    assert serve(cache, range(20)) == "never seen"


def test_the_memory_of_evictions_is_bounded_and_keeps_the_latest():
    memory = EvictedPrefixes(capacity=10)
    for first in range(50):
        memory.add(namespace_digest(""), 0, as_tokens([first, 1, 2]))
    assert len(memory) == 10
    known = [first for first in range(50) if memory.had("", as_tokens([first, 7]), 0)]
    assert known == [*range(40, 50)]


def test_a_prefix_evicted_again_counts_as_late_as_it_was_evicted_last():
    memory = EvictedPrefixes(capacity=2)
    for first in (1, 2, 1, 3):
        memory.add(namespace_digest(""), 0, as_tokens([first]))
    assert [memory.had("", as_tokens([first]), 0) for first in (1, 2, 3)] == [True, False, True]


@pytest.mark.parametrize("seed", range(10))
def test_every_beginning_that_reaches_a_mark_is_known(seed):
    """Evicted s .. e: a match of n tokens is told if n + 1 or the next multiple is a mark."""
    rng = random.Random(seed)
    tokens = as_tokens([rng.randrange(2) for _ in range(300)])
    start, end = rng.randrange(100), rng.randrange(150, 300)
    memory = EvictedPrefixes()
    memory.add(extend(namespace_digest("n"), tokens[:start]), start, tokens[start:end])
    marks = {start + 1} | {n for n in range(start + 2, end + 1) if n % STRIDE == 0}
    for n in range(300):
        multiple = -(-(n + 1) // STRIDE) * STRIDE
        expected = n + 1 in marks or (multiple in marks and multiple <= 300)
        assert memory.had("n", tokens, n) == expected
        assert not memory.had("m", tokens, n)


def test_the_view_shows_the_latest_first_with_what_holds_them():
    cache = PrefixCache(40, PAGE)
    serve(cache, range(20))
    serve(cache, [*range(10), *range(90, 96)], namespace="")
    serve(cache, range(5), namespace="b")
    cache.pin("", as_tokens(range(20)), 0.0, 5.0)
    lease = cache.acquire("", as_tokens([*range(10), 90]), 10)
    total, nodes = cache.snapshot(10)
    assert total == len(nodes) == 4
    upper, last, lower, branch = nodes[0], nodes[1], nodes[3], nodes[2]
    assert (upper.start, upper.n_tokens, upper.parent, upper.idle) == (0, 10, 0, 0)
    assert (upper.locks, upper.pins, upper.hits) == (2, 1, 1)
    assert upper.token_ids == [*range(10)]
    assert (last.namespace, last.n_tokens, last.locks) == ("b", 5, 0)
    assert (branch.parent, branch.start, branch.token_ids[0]) == (upper.number, 10, 90)
    assert (lower.parent, lower.pins, lower.n_pages, lower.hits) == (upper.number, 1, 3, 0)
    assert [node.idle for node in nodes] == sorted(node.idle for node in nodes)
    cache.release(lease)


def test_the_view_is_bounded_in_nodes_and_tokens_and_changes_nothing():
    cache = PrefixCache(200, PAGE)
    for first in range(10):
        serve(cache, [first] * 40)
    version = cache.tree.version
    total, nodes = cache.snapshot(3)
    assert (total, len(nodes)) == (10, 3)
    assert [node.token_ids for node in nodes] == [[first] * 16 for first in (9, 8, 7)]
    assert cache.snapshot(3) == (total, nodes)
    assert cache.snapshot(0) == (10, [])
    assert cache.tree.version == version


def test_the_view_has_the_fields_of_the_message():
    cache = PrefixCache(20, PAGE)
    serve(cache, range(8))
    (node,) = cache.snapshot(1)[1]
    assert tuple(node.__slots__) == TreeNode.__struct_fields__
