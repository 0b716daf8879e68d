"""Host memory below the prefix cache, case by case. P = 4 throughout."""

import sys
from pathlib import Path

from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.plans import PageCopy, PageLoad

sys.path.insert(0, str(Path(__file__).parent))
from tiers_rig import LONG, Rig


def test_what_is_evicted_comes_back():
    rig = Rig()
    rig.run([*LONG, 1, 2])
    rig.push_out()
    assert rig.cache.tree.n_tokens == 0
    assert rig.hit([*LONG, 1, 2]) == 14
    assert rig.tiers.host_pages == 4
    lease = rig.run([*LONG, 1, 2, 3])
    assert (lease.n_cached, lease.host_tokens, lease.disk_tokens) == (14, 14, 0)


def test_another_namespace_finds_nothing():
    rig = Rig()
    rig.run(LONG, "a")
    rig.push_out()
    assert rig.hit(LONG, "a") == 12
    assert rig.hit(LONG, "b") == rig.hit(LONG) == 0


def test_a_load_takes_the_place_of_a_copy_that_holds_less():
    rig = Rig()
    rig.run([*LONG, 5])
    rig.push_out()
    rig.run([*LONG[:6], 1])  # on the device 6 of its tokens, in host memory 8
    rig.seen.clear()
    lease = rig.run(LONG)
    assert lease.copy is None
    assert lease.n_cached == 11
    assert lease.host_tokens == 11 - 6
    assert rig.count(PageLoad) == 2
    assert rig.count(PageCopy) == 0


def test_a_match_in_host_memory_ends_inside_a_page():
    rig = Rig()
    rig.run(LONG)
    rig.push_out()
    assert rig.hit([*LONG[:7], 1, 1, 1]) == 7


def test_no_slot_no_page_and_the_loss_is_counted():
    rig = Rig(n_slots=0)
    rig.run(LONG)
    rig.push_out()
    assert rig.tiers.losses == 3
    assert rig.hit(LONG) == 0


def test_the_page_used_longest_ago_leaves_host_memory_the_end_of_a_path_first():
    rig = Rig(n_slots=4)
    rig.run(LONG)
    rig.push_out()
    rig.run([1] * 8)
    rig.push_out()
    assert rig.hit([1] * 8) == 8
    assert rig.hit(LONG) == 8
    assert rig.tiers.losses == 0  # nothing was lost for want of a slot


def test_a_longer_page_makes_its_beginning_needless():
    rig = Rig()
    rig.run(LONG[:6])
    rig.push_out()
    assert rig.tiers.host_pages == 2
    rig.run(LONG[:8])
    rig.push_out()
    assert rig.tiers.host_pages == 2
    rig.run(LONG[:7])  # and is kept when the beginning comes again
    rig.push_out()
    assert rig.tiers.host_pages == 2
    assert rig.hit(LONG) == 8


def test_a_request_that_does_not_start_moves_nothing():
    rig = Rig()
    rig.run(LONG)
    rig.push_out()
    lease = rig.cache.acquire("", as_tokens(LONG), 11)
    assert lease.loads
    rig.cache.release(lease)
    assert rig.move() == ()


def test_what_was_published_is_loaded_though_the_request_is_over():
    """The tree lists the pages already: whoever matches them next must find them filled."""
    rig = Rig()
    rig.run(LONG)
    rig.push_out()
    lease = rig.cache.acquire("", as_tokens(LONG), 11)
    rig.cache.commit(lease, as_tokens(LONG[:11]))
    rig.cache.release(lease)
    rig.run(LONG)  # asserts what it reads


def test_without_reuse_there_are_no_tiers():
    rig = Rig(reuse=False)
    rig.run(LONG)
    rig.push_out()
    assert rig.seen == []
    assert rig.cache.fetch("", as_tokens(LONG), 11) is None
