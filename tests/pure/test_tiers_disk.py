"""The disk below host memory, case by case. P = 4 throughout."""

import sys
from pathlib import Path

import pytest

from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.plans import (
    FileDone,
    FileDrop,
    FileRead,
    FileWrite,
    PageCopy,
    PageRecord,
    PageStore,
)
from ramify.radix_cache.tiers import WRITE_FAILURES

sys.path.insert(0, str(Path(__file__).parent))
from tiers_rig import LONG, Rig


def test_a_stored_page_is_written_at_once_and_keeps_its_slot_until_then():
    rig = Rig(n_slots=3, disk_pages=20)
    rig.run(LONG)
    rig.push_out()
    assert [type(move) for move in rig.seen] == [PageStore, FileWrite] * 3
    rig.run([1] * 8)
    rig.push_out()
    assert rig.tiers.losses == 2  # every slot is being written
    rig.end_files()
    rig.run([2] * 8)
    rig.push_out()
    assert rig.tiers.losses == 2
    assert len(rig.tiers.pages.disk) == 3


def test_the_beginning_is_kept_when_there_are_too_few_slots_for_all():
    for disk_pages in (0, 20):
        rig = Rig(n_slots=2, disk_pages=disk_pages)
        rig.run([*LONG, 1])
        rig.push_out()
        assert rig.hit(LONG) == 8
        assert rig.tiers.losses == 2


def test_what_a_second_request_found_is_backed_up_while_it_is_on_the_device():
    rig = Rig(disk_pages=20)
    rig.run([*LONG[:6], 1])
    assert rig.seen == []
    rig.run([*LONG[:6], 2])
    assert [type(move) for move in rig.seen[1:]] == [PageStore, FileWrite] * 2
    rig.end_files()
    n = len(rig.seen)
    rig.run([*LONG[:6], 3])
    assert [type(move) for move in rig.seen[n:]] == [PageCopy]  # once is enough
    tokens = sorted(as_tokens(r.tokens).tolist() for r in rig.store.records.values())
    assert tokens == [LONG[:4], LONG[4:6]]


def on_disk_only(least=1, n_slots=8):
    """LONG and one token more are on disk, as after a restart."""
    rig = Rig(disk_pages=20, n_slots=n_slots)
    rig.run([*LONG, 1])
    while rig.cache.back_up_all(20):
        rig.end_files()
    rig.end_files()
    again = Rig(disk_pages=20, known=rig.store.records.values(), least=least, n_slots=n_slots)
    again.store.files = rig.store.files
    return again


def test_files_are_read_into_host_memory_and_stay_there_for_the_request():
    rig = on_disk_only()
    assert rig.hit(LONG) == 0
    fetch = rig.cache.fetch("", as_tokens([*LONG, 1, 2]), 13)
    assert fetch.pending
    rig.end_files()
    assert not fetch.pending
    assert rig.tiers.n_locked == 4
    lease = rig.run([*LONG, 1, 2])
    assert (lease.n_cached, lease.host_tokens, lease.disk_tokens) == (13, 0, 13)
    rig.cache.end_fetch(fetch)
    assert rig.tiers.n_locked == 0
    assert rig.cache.fetch("", as_tokens([*LONG, 1, 2]), 13) is None  # nothing to wait for


def test_too_little_on_disk_is_not_waited_for():
    rig = on_disk_only(least=13)
    key = as_tokens(LONG)
    assert rig.cache.fetch("", key, 12) is None
    assert rig.cache.miss_reason("", key, 0, 12) == "below threshold"
    longer = as_tokens([*LONG, 1, 2])
    assert rig.cache.miss_reason("", longer, 0, 14) == "evicted"  # known, and not had in time
    assert rig.cache.fetch("", longer, 14).pending


def test_what_is_in_host_memory_does_not_count_as_missing():
    rig = on_disk_only(least=5)
    first = rig.cache.fetch("", as_tokens(LONG[:8]), 8)
    rig.end_files()
    assert rig.cache.fetch("", as_tokens(LONG), 12) is None  # four tokens are
    assert rig.cache.fetch("", as_tokens([*LONG, 1]), 13) is not None  # and now five
    rig.cache.end_fetch(first)


def test_a_read_that_fails_leaves_what_is_before_it():
    rig = on_disk_only()
    fetch = rig.cache.fetch("", as_tokens(LONG), 12)
    rig.move()
    for i, ok in enumerate([True, False, True]):
        rig.cache.file_done(rig.store.end(0, ok))
        assert fetch.pending == (i < 2)
    assert rig.hit(LONG) == 4
    assert rig.tiers.losses == 1
    assert [type(move) for move in rig.move()] == [FileDrop]
    rig.cache.end_fetch(fetch)
    rig.end_files()
    assert rig.run(LONG).disk_tokens == 4


def test_two_requests_wait_for_one_read():
    rig = on_disk_only()
    one = rig.cache.fetch("", as_tokens(LONG), 12)
    two = rig.cache.fetch("", as_tokens([*LONG[:8], 9]), 8)
    rig.cache.end_fetch(one)  # aborted
    assert two.pending
    rig.end_files()
    assert not two.pending
    assert rig.count(FileRead) == 3
    assert rig.hit(LONG) == 12


def test_fetches_keep_at_most_half_of_the_slots():
    rig = on_disk_only(n_slots=5)
    fetch = rig.cache.fetch("", as_tokens(LONG), 12)
    rig.end_files()
    assert rig.hit(LONG) == 8
    assert rig.cache.fetch("", as_tokens(LONG), 12) is None
    rig.cache.end_fetch(fetch)


def test_the_file_used_longest_ago_makes_way():
    rig = Rig(disk_pages=3)
    for k in range(3):
        rig.run([k] * 8)
        rig.push_out()
        rig.end_files()
    assert rig.count(FileDrop) == 3
    held = sorted(as_tokens(r.tokens)[0] for r in rig.store.records.values())
    assert held == [1, 2, 2]


def test_more_files_than_room_and_files_of_another_content_are_removed():
    rig = on_disk_only()
    records = [page.record for page in rig.tiers.pages.disk.values()]
    wrong = PageRecord(bytes(16), records[0].parent, records[0].tokens)
    rig = Rig(disk_pages=3, known=[*records, wrong])
    assert rig.move() == (FileDrop(records[0].key), FileDrop(wrong.key))
    assert len(rig.tiers.pages.disk) == 3


def test_a_disk_that_fails_again_and_again_is_tried_with_one_write_at_a_time():
    rig = Rig(n_slots=40, disk_pages=50)
    for k in range(WRITE_FAILURES):
        rig.run([k] * 4)
        rig.push_out()
        rig.end_files(ok=False)
    assert rig.tiers.losses == rig.count(FileWrite) == WRITE_FAILURES
    rig.run(LONG)
    rig.push_out()
    assert rig.count(FileWrite) == WRITE_FAILURES + 1
    assert rig.cache.back_up_all(9) == 0
    rig.end_files()
    rig.run([*LONG[::-1]])
    rig.push_out()
    assert rig.count(FileWrite) == WRITE_FAILURES + 4


def test_what_could_not_be_written_from_host_memory_is_written_at_the_end():
    rig = Rig(disk_pages=20)
    rig.run(LONG)
    rig.push_out()
    rig.end_files(ok=False)
    assert rig.store.files == {}
    assert rig.cache.back_up_all(2) == 1
    rig.end_files()
    assert rig.cache.back_up_all(2) == 0
    rig.end_files()
    assert len(rig.store.files) == 3
    assert rig.count(PageStore) == 3


def test_back_up_all_writes_everything_the_latest_first_in_as_many_calls_as_slots_need():
    rig = Rig(n_slots=2, disk_pages=20)
    rig.run([1] * 8)
    rig.run(LONG)
    assert rig.cache.back_up_all(100) == 3
    assert [m.record.tokens for m in rig.move()[1::2]] == [
        as_tokens(LONG[:4]).tobytes(),
        as_tokens(LONG[4:8]).tobytes(),
    ]
    rig.end_files()
    assert rig.cache.back_up_all(1) == 2
    rig.end_files()
    assert rig.cache.back_up_all(100) == 0
    rig.end_files()
    assert len(rig.store.files) == 5


def test_back_up_all_does_not_displace_what_it_has_written():
    rig = Rig(disk_pages=3)
    rig.run([1] * 8)
    rig.run(LONG)
    while rig.cache.back_up_all(1):
        rig.end_files()
    rig.end_files()
    assert rig.count(FileDrop) == 0
    assert {as_tokens(r.tokens)[0] for r in rig.store.records.values()} == {100, 104, 108}


def test_back_up_all_keeps_the_files_of_what_is_in_use():
    """Use on the device does not show in the order of files, so they are marked first."""
    rig = Rig(disk_pages=4)
    old, other, new = [1] * 8, [2] * 8, [3] * 8
    for tokens in (old, old, other, other):  # the second time it is written
        rig.run([*tokens, len(rig.seen)])
        rig.end_files()
    rig.run(other)
    rig.run(old)
    rig.run(new)
    rig.cache.tree.evict(rig.cache.pages.n_free + 1)
    while rig.cache.back_up_all(9):
        rig.end_files()
    rig.end_files()
    held = sorted(as_tokens(r.tokens)[0] for r in rig.store.records.values())
    assert held == [1, 1, 3, 3]


# --- flush ---------------------------------------------------------------------------------------


def test_flush_forgets_host_memory_and_files():
    rig = Rig(disk_pages=20)
    rig.run(LONG)
    rig.push_out()
    rig.end_files()
    rig.run([1, 2])
    stores = rig.count(PageStore)
    assert rig.cache.flush()
    rig.end_files()
    assert rig.count(PageStore) == stores  # what flush evicts is not kept
    assert rig.store.files == {}
    assert rig.tiers.host_pages == 0
    assert rig.hit(LONG) == 0


def test_flush_waits_for_fetches():
    rig = on_disk_only()
    fetch = rig.cache.fetch("", as_tokens(LONG), 12)
    assert not rig.cache.flush()
    rig.cache.end_fetch(fetch)
    assert rig.cache.flush()
    rig.end_files()
    assert rig.store.files == {}
    assert rig.tiers.host_pages == 0


@pytest.mark.parametrize("again", [False, True])
def test_a_write_in_flight_at_a_flush_leaves_no_file_but_that_of_a_page_kept_again(again):
    rig = Rig(disk_pages=20)
    rig.run(LONG[:4])
    rig.push_out()
    assert rig.cache.flush()
    assert rig.tiers.host_pages == 1
    if again:
        rig.run(LONG[:4])
        rig.push_out()
        rig.cache.file_done(rig.store.end(1))  # the write begun last ends first
    rig.end_files()
    assert len(rig.store.files) == again
    assert rig.tiers.host_pages == again


def test_the_end_of_what_was_not_begun_is_a_bug():
    rig = Rig(disk_pages=20)
    record = PageRecord(b"k" * 16, b"p" * 16, b"1234")
    with pytest.raises(AssertionError, match="nothing is done with slot 3"):
        rig.cache.file_done(FileDone(FileRead(record, 3), True))
