"""The cache's promises one by one: hits to the token, order of eviction, namespaces, accounting."""

import random

import pytest

from ramify.radix_cache import invariants
from ramify.radix_cache.key import as_tokens, common_prefix
from ramify.radix_cache.page_allocator import PageAllocator
from ramify.radix_cache.prefix_cache import PrefixCache

PAGE = 4


def serve(cache, ids, namespace="", limit=None):
    """Acquire, compute everything, publish, release: one request alone. Returns its hit."""
    key = as_tokens(ids)
    lease = cache.acquire(namespace, key, len(ids) - 1 if limit is None else limit)
    assert cache.ensure(lease, len(ids))
    cache.commit(lease, key)
    cache.release(lease)
    return lease.n_cached


def test_hits_follow_the_cached_token_contract():
    """After a flush: 0, 100, 4999, 499, 5000. No hit is lost to a page border."""
    cache = PrefixCache(2000, PAGE)
    lengths = (100, 5000, 5000, 500, 5500)
    assert [serve(cache, range(n)) for n in lengths] == [0, 100, 4999, 499, 5000]
    assert cache.flush()
    assert serve(cache, range(100)) == 0


def test_a_match_inside_a_page_is_copied_never_written_over():
    cache = PrefixCache(8, PAGE)
    serve(cache, [1, 2, 3, 4, 5, 6])
    lease = cache.acquire("", as_tokens([1, 2, 3, 4, 5, 9, 9]), 6)
    assert lease.n_cached == 5
    assert lease.copy is not None
    assert lease.copy.n_slots == 1
    assert lease.copy.target == lease.table[1] != lease.copy.source


def test_without_a_free_page_for_the_copy_full_pages_are_still_reused():
    cache = PrefixCache(3, PAGE)
    serve(cache, range(6))
    holder = cache.acquire("", as_tokens(range(6)), 4)  # locks the path of the first page
    other = cache.acquire("", as_tokens([*range(6), 7]), 6)
    third = cache.acquire("", as_tokens([*range(6), 8]), 6)
    assert [holder.n_cached, other.n_cached, third.n_cached] == [4, 6, 4]
    assert third.copy is None
    assert invariants.check(cache) == []


def test_a_page_for_the_copy_is_had_by_evicting():
    cache = PrefixCache(4, PAGE)
    serve(cache, [1] * 6)
    serve(cache, [2] * 8)
    lease = cache.acquire("", as_tokens([1] * 6), 5)
    assert lease.n_cached == 5
    assert cache.hit_lengths("", as_tokens([2] * 8), 8)[1] == 0


def test_pinning_holders_come_and_go_as_hold_and_pin_do():
    apart, at_once = PageAllocator(2), PageAllocator(2)
    for pages in (apart, at_once):
        page = pages.take()
        pages.unpin(page)  # evictable from here on
    apart.hold(page)
    apart.pin(page)
    at_once.hold_pinned(page)
    assert vars(apart) == vars(at_once)
    apart.unpin(page)
    apart.drop(page)
    at_once.drop_pinned(page)
    assert vars(apart) == vars(at_once)
    assert apart.n_evictable == 1


def test_the_least_recently_used_leaf_goes_first_and_locked_ones_never():
    cache = PrefixCache(7, PAGE)  # one more than the three hold, for copies
    for first in (10, 20, 30):
        serve(cache, [first] * 8)
    serve(cache, [10] * 8)  # used again: now the youngest
    lease = cache.acquire("", as_tokens([30] * 8), 7)
    assert serve(cache, [40] * 4) == 0  # needs one page: 20 must go
    hits = {t: cache.hit_lengths("", as_tokens([t] * 8), 8)[1] for t in (10, 20, 30, 40)}
    assert hits == {10: 8, 20: 0, 30: 8, 40: 4}
    cache.release(lease)


def test_namespaces_share_nothing():
    cache = PrefixCache(16, PAGE)
    serve(cache, range(8), namespace="a")
    assert cache.hit_lengths("b", as_tokens(range(8)), 8)[1] == 0
    assert cache.hit_lengths("a", as_tokens(range(8)), 8)[1] == 8


def test_namespaces_leave_nothing_behind_when_evicted():
    """A client that sends a new salt with every request must not grow the table of roots."""
    cache = PrefixCache(4, PAGE)
    for salt in range(50):
        serve(cache, range(8), namespace=str(salt))
    assert len(cache.tree.roots) <= 2


def test_ensure_takes_all_or_nothing():
    cache = PrefixCache(3, PAGE)
    lease = cache.acquire("", as_tokens([1]), 0)
    assert cache.ensure(lease, 8)
    before = (list(lease.table), cache.pages.n_free)
    assert not cache.ensure(lease, 17)
    assert (list(lease.table), cache.pages.n_free) == before


def test_a_duplicate_computed_at_the_same_time_is_given_back():
    cache = PrefixCache(8, PAGE)
    key = as_tokens(range(8))
    first, second = cache.acquire("", key, 7), cache.acquire("", key, 7)
    for lease in (first, second):
        assert cache.ensure(lease, 8)
    cache.commit(first, key)
    cache.commit(second, key)
    assert second.table == first.table
    assert cache.pages.n_free == 6
    assert invariants.check(cache) == []


def test_a_detached_lease_lets_the_tree_be_evicted_but_keeps_its_pages():
    cache = PrefixCache(4, PAGE)
    serve(cache, range(8))
    lease = cache.acquire("", as_tokens(range(9)), 6)  # page 0 shared, page 1 copied
    assert not cache.ensure(lease, 16)
    cache.detach(lease)
    assert cache.ensure(lease, 16)
    assert invariants.check(cache) == []


def test_without_reuse_nothing_is_found_and_nothing_kept():
    cache = PrefixCache(4, PAGE, reuse=False)
    assert [serve(cache, range(8)), serve(cache, range(8))] == [0, 0]
    assert cache.pages.n_free == 4


@pytest.mark.parametrize("seed", range(20))
def test_common_prefix_agrees_with_counting(seed):
    rng = random.Random(seed)
    a = [rng.randint(0, 1) for _ in range(60)]
    b = a[:30] + [rng.randint(0, 1) for _ in range(30)]
    i, j, limit = rng.randint(0, 5), rng.randint(0, 5), rng.randint(0, 70)
    n = 0
    while n < limit and i + n < 60 and j + n < 60 and a[i + n] == b[j + n]:
        n += 1
    assert common_prefix(as_tokens(a), i, as_tokens(b), j, limit) == n


def corrupt_holders(cache):
    cache.pages.holders[0] += 1


def corrupt_pins(cache):
    cache.pages.pins[next(p for p in range(8) if cache.pages.holders[p])] += 1


def corrupt_locks(cache):
    next(iter(cache.tree.roots[""].children.values())).locks += 1


def corrupt_pages(cache):
    next(iter(cache.tree.roots[""].children.values())).pages.pop()


def corrupt_tokens(cache):
    cache.tree.n_tokens += 1


def corrupt_free(cache):
    cache.pages._free.pop()


def corrupt_digest(cache):
    next(iter(cache.tree.nodes())).digest += 1


def corrupt_cost(cache):
    next(iter(cache.tree.nodes())).stats.cost += 1


def corrupt_heap(cache):
    cache.tree.heap.clear()


def corrupt_queued_key(cache):
    rank, tick = next(iter(cache.tree.nodes())).queued
    cache.tree.heap[0] = ((rank, tick + 1), *cache.tree.heap[0][1:])
    next(iter(cache.tree.nodes())).queued = (rank, tick + 1)


@pytest.mark.parametrize(
    "corrupt",
    [
        corrupt_holders,
        corrupt_pins,
        corrupt_locks,
        corrupt_pages,
        corrupt_tokens,
        corrupt_free,
        corrupt_digest,
        corrupt_cost,
        corrupt_heap,
        corrupt_queued_key,
    ],
)
def test_the_invariants_can_fail(corrupt):
    cache = PrefixCache(8, PAGE)
    serve(cache, range(6))
    assert invariants.check(cache) == []
    corrupt(cache)
    assert invariants.check(cache) != []
