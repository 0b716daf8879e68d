"""Pins: what they keep, how they end, what they may take, and that they never stop a request."""

import math

import pytest

from ramify.radix_cache import invariants, pins
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import PrefixCache

PAGE = 4


def serve(cache, ids, namespace=""):
    key = as_tokens(ids)
    lease = cache.acquire(namespace, key, len(key) - 1)
    assert cache.ensure(lease, len(key))
    cache.commit(lease, key)
    cache.release(lease)
    return lease.n_cached


def held(cache, ids, namespace=""):
    return cache.hit_lengths(namespace, as_tokens(ids), len(ids))[1]


def pin(cache, ids, now=0.0, ttl_s=10.0, namespace=""):
    return cache.pin(namespace, as_tokens(ids), now, ttl_s)


def squeeze(cache):
    """Evict all that may be evicted."""
    cache.tree.evict(cache.pages.n_pages + 1)
    assert invariants.check(cache) == []


def warm(n_pages=40, pin_share=0.5, reuse=True):
    """A cache that holds 0..19 and, branching off at 10, another ten tokens."""
    cache = PrefixCache(n_pages, PAGE, pin_share=pin_share, reuse=reuse)
    serve(cache, range(20))
    serve(cache, [*range(10), *range(90, 100)])
    return cache


def test_a_pin_keeps_exactly_the_computed_part_of_its_prefix():
    cache = warm()
    assert pin(cache, [*range(13), 77, 78]) == (13, None)
    squeeze(cache)
    assert held(cache, range(20)) == 13
    assert held(cache, [*range(10), *range(90, 100)]) == 10


def test_a_pin_ends_at_its_time_and_not_before():
    cache = warm()
    pin(cache, range(20), now=5.0, ttl_s=10.0)
    cache.expire_pins(14.9)
    squeeze(cache)
    assert held(cache, range(20)) == 20
    cache.expire_pins(15.0)
    squeeze(cache)
    assert held(cache, range(20)) == 0
    assert cache.pages.n_free == 40


def test_pinned_again_a_pin_lasts_longer_never_shorter_and_covers_what_came_since():
    cache = warm()
    longer = range(24)
    assert pin(cache, longer, now=0.0, ttl_s=10.0) == (20, None)
    serve(cache, longer)
    assert pin(cache, longer, now=1.0, ttl_s=20.0) == (24, None)
    assert pin(cache, longer, now=2.0, ttl_s=1.0) == (24, None)
    assert len(cache.pins) == 1
    cache.expire_pins(20.9)
    squeeze(cache)
    assert held(cache, longer) == 24
    cache.expire_pins(21.0)
    assert len(cache.pins) == 0


def test_unpin_ends_the_pin_of_exactly_the_same_prefix():
    cache = warm()
    pin(cache, range(12))
    assert cache.unpin("", as_tokens(range(11))) == 0
    assert cache.unpin("other", as_tokens(range(12))) == 0
    assert cache.unpin("", as_tokens(range(12))) == 12
    assert cache.unpin("", as_tokens(range(12))) == 0
    squeeze(cache)
    assert held(cache, range(20)) == 0


def test_pins_that_share_a_path_end_one_by_one():
    cache = warm()
    pin(cache, range(20))
    pin(cache, range(8))
    cache.unpin("", as_tokens(range(20)))
    squeeze(cache)
    assert held(cache, range(20)) == 8


def test_a_pin_survives_splits_of_its_path():
    cache = warm()
    pin(cache, range(20))
    serve(cache, [*range(15), 55])
    serve(cache, [*range(3), 56])
    squeeze(cache)
    assert held(cache, range(20)) == 20
    assert cache.unpin("", as_tokens(range(20))) == 20
    squeeze(cache)
    assert cache.tree.n_tokens == 0


def test_namespaces_are_pinned_apart():
    cache = warm()
    serve(cache, range(20), namespace="b")
    pin(cache, range(20), namespace="b")
    squeeze(cache)
    assert (held(cache, range(20)), held(cache, range(20), "b")) == (0, 20)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, pins.MAX_TTL_S * 1.01, math.inf, math.nan])
def test_the_time_is_bounded(ttl_s):
    cache = warm()
    tokens, error = pin(cache, range(20), ttl_s=ttl_s)
    assert tokens == 0
    assert "ttl_s must be more than 0 and at most" in error
    assert len(cache.pins) == 0


def test_what_is_not_computed_cannot_be_pinned():
    cache = warm()
    for ids in ([77], []):
        assert pin(cache, ids) == (0, "nothing of this prefix is computed")
    assert pin(cache, range(20), namespace="b")[0] == 0
    off = warm(reuse=False)
    assert pin(off, range(20)) == (0, "nothing can be pinned: the prefix cache is off")


def test_pinned_pages_are_bounded_shared_ones_counted_once():
    """The bound is 6 pages. 0..19 holds 5, and 0..9 with its branch 3 and 3, the cut one twice."""
    cache = warm(n_pages=24, pin_share=0.25)
    assert pin(cache, range(20)) == (20, None)
    assert pin(cache, range(17)) == (17, None)  # nothing more
    tokens, error = pin(cache, [*range(10), *range(90, 100)])
    assert tokens == 0
    assert error == "8 pages would be pinned, of which at most 6 may be"
    assert pin(cache, [*range(10), 90, 91]) == (12, None)
    assert invariants.check(cache) == []


def test_the_pages_of_a_path_count_not_only_those_that_a_request_would_read():
    """The branch reads five pages, but its path lists also the one cut at the branch point."""
    cache = warm(n_pages=20, pin_share=0.25)
    branch = [*range(10), *range(90, 100)]
    assert pin(cache, branch) == (0, "6 pages would be pinned, of which at most 5 may be")


def test_a_pin_is_found_by_namespace_and_tokens_not_by_their_bytes_run_together():
    cache = warm()
    packed = int.from_bytes(b"abcd", "little")
    serve(cache, [packed, 1])
    serve(cache, [1], namespace="abcd")
    pin(cache, [packed, 1])
    assert cache.unpin("abcd", as_tokens([1])) == 0
    assert cache.unpin("", as_tokens([packed, 1])) == 2


def test_a_refused_pin_changes_nothing():
    cache = warm(n_pages=24, pin_share=0.1)
    pin(cache, range(8))
    before = [(node.number, node.start, node.locks) for node in cache.tree.nodes()]
    assert pin(cache, range(19))[0] == 0
    assert pin(cache, range(8), ttl_s=0.0)[0] == 0
    assert [(node.number, node.start, node.locks) for node in cache.tree.nodes()] == before
    cache.expire_pins(9.9)
    assert len(cache.pins) == 1


def test_without_a_share_nothing_can_be_pinned():
    assert pin(warm(pin_share=0.0), [0])[0] == 0


def test_the_number_of_pins_is_bounded():
    cache = warm()
    keys = [[*range(8), 1000 + n] for n in range(pins.MAX_PINS + 1)]  # the same path, other keys
    assert [pin(cache, key)[0] for key in keys] == [8] * pins.MAX_PINS + [0]
    assert pin(cache, keys[0])[0] == 8  # again, not one more
    cache.unpin("", as_tokens(keys[1]))
    assert pin(cache, keys[-1])[0] == 8


def test_a_lone_request_gets_every_page_and_the_pins_next_to_expire_yield_first():
    cache = PrefixCache(12, PAGE, pin_share=0.9)
    for first, ttl in ((1, 30.0), (2, 10.0), (3, 20.0)):
        serve(cache, [first] * 12)
        assert pin(cache, [first] * 12, ttl_s=ttl) == (12, None)
    lease = cache.acquire("", as_tokens([9] * 20), 19)  # needs 5 of 12: one pin must go
    assert cache.ensure(lease, 20)
    assert [held(cache, [first] * 12) for first in (1, 2, 3)] == [12, 0, 12]
    assert cache.ensure(lease, 28)
    assert [held(cache, [first] * 12) for first in (1, 2, 3)] == [12, 0, 0]
    assert cache.ensure(lease, 48)
    assert len(cache.pins) == 0
    assert invariants.check(cache) == []


def test_pins_yield_already_when_a_lone_request_is_leased():
    """Admission looks at the pages available before it asks for them."""
    cache = PrefixCache(8, PAGE, pin_share=0.9)
    serve(cache, [1] * 16)
    pin(cache, [1] * 16)
    lease = cache.acquire("", as_tokens([2] * 32), 31)
    assert cache.pages.n_available == 8
    assert cache.ensure(lease, 32)


def test_pins_do_not_yield_while_another_request_could_make_way():
    cache = PrefixCache(8, PAGE, pin_share=0.9)
    serve(cache, [1] * 16)
    pin(cache, [1] * 16)
    first = cache.acquire("", as_tokens([2] * 4), 3)
    second = cache.acquire("", as_tokens([3] * 4), 3)
    assert cache.ensure(first, 12)
    assert not cache.ensure(second, 8)
    assert len(cache.pins) == 1
    cache.release(first)
    assert cache.ensure(second, 32)
    assert len(cache.pins) == 0


def test_flush_drops_pins():
    cache = warm()
    pin(cache, range(20))
    assert cache.flush()
    assert len(cache.pins) == 0
    assert (cache.pages.n_free, cache.tree.n_tokens) == (40, 0)
    assert invariants.check(cache) == []


def test_the_invariants_see_a_pin_without_its_lock():
    cache = warm()
    pin(cache, range(20))
    cache.tree.unlock(next(iter(cache.pins)).node)
    assert any("locks for" in line for line in invariants.check(cache))


def test_the_invariants_see_pins_beyond_their_bound_and_out_of_order():
    cache = warm()
    pin(cache, range(20), ttl_s=10.0)
    pin(cache, range(8), ttl_s=20.0)
    cache.pins.max_pages = 1
    next(iter(cache.pins)).expires = 30.0
    found = invariants.check(cache)
    assert found == ["5 pages are pinned of at most 1", "pins are not in the order they expire in"]
