"""The thread of the page files: nobody waits for it, and everything that was begun ends.

A pipe in the place of the file being written stands in for a disk that is stuck: opening it waits
until somebody reads, and writing ends in an error when that reader goes.
"""

import logging
import os
import select
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ramify.radix_cache.file_worker import FileWorker
from ramify.radix_cache.host_pool import HostPool
from ramify.radix_cache.kv_pool import KvPool
from ramify.radix_cache.page_files import PageFiles
from ramify.radix_cache.page_keys import page_key, root_key
from ramify.radix_cache.plans import FileDone, FileDrop, FileRead, FileWrite, PageRecord

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from completions import ended
from waiting import wait_until

PAGE_SIZE, HEAD_DIM, SLOTS = 4, 8192, 8
PAGE_BYTES = 2 * PAGE_SIZE * HEAD_DIM * 4  # more than a pipe holds


def record(i):
    tokens = bytes([i, 0, 0, 0] * PAGE_SIZE)
    return PageRecord(page_key(root_key(""), tokens), root_key(""), tokens)


@pytest.fixture
def host():
    """Slot i is filled with i."""
    host = HostPool(KvPool(1, 1, 1, PAGE_SIZE, HEAD_DIM, torch.float32), SLOTS)
    for i in range(SLOTS):
        host.slots[i] = i
    return host


@pytest.fixture
def start(host, tmp_path):
    """A maker of workers over one folder, which closes what it made."""
    made = []

    def start(**options):
        made.append(FileWorker(PageFiles(tmp_path, "f", PAGE_BYTES, PAGE_SIZE), host, **options))
        return made[-1]

    yield start
    for worker in made:
        worker.close()


@pytest.fixture
def part(tmp_path):
    """The file being written."""
    return tmp_path / "f" / ".part"


def stick(worker, part):
    """Let the disk hang in the write of page 0, which is the running one from here on."""
    os.mkfifo(part)
    worker.begin(FileWrite(0, record(0)))
    wait_until(lambda: not worker._writes)


def release(part):
    """Read a little of what is stuck, and go."""
    reader = os.open(part, os.O_RDONLY | os.O_NONBLOCK)
    assert select.select([reader], [], [], 10)[0]
    os.close(reader)


def test_what_was_written_is_read_and_what_was_dropped_is_not(start, host):
    worker = start()
    for i in (1, 2):
        worker.begin(FileWrite(i, record(i)))
    assert ended(worker, 2) == [FileDone(FileWrite(i, record(i)), True) for i in (1, 2)]
    worker.begin(FileRead(record(2), 5))
    assert ended(worker, 1) == [FileDone(FileRead(record(2), 5), True)]
    assert (host.slots[5] == 2).all()
    worker.begin(FileDrop(record(2).key))
    wait_until(lambda: not worker._writes)
    worker.begin(FileWrite(3, record(3)))  # behind the drop, so its end tells of the drop's
    ended(worker, 1)
    worker.begin(FileRead(record(2), 6))
    assert ended(worker, 1) == [FileDone(FileRead(record(2), 6), False)]


def test_a_drop_and_a_write_of_one_page_keep_their_order(start):
    worker = start()
    for _ in range(20):
        worker.begin(FileDrop(record(1).key))
        worker.begin(FileWrite(1, record(1)))
    ended(worker, 20)
    worker.begin(FileRead(record(1), 0))
    assert ended(worker, 1)[0].ok


def test_a_full_queue_refuses_writes_at_once_but_no_reads(start, part):
    worker = start(max_queued=2)
    worker.begin(FileWrite(1, record(1)))
    ended(worker, 1)
    stick(worker, part)
    writes = [FileWrite(i, record(i)) for i in range(2, 6)]
    began = time.monotonic()
    for write in writes:
        worker.begin(write)
    reads = [FileRead(record(1), slot) for slot in (6, 7)]
    for read in reads:
        worker.begin(read)
    assert worker.poll() == [FileDone(write, False) for write in writes[2:]]
    assert time.monotonic() - began < 1
    release(part)
    stuck = FileDone(FileWrite(0, record(0)), False)  # its reader went
    after = [FileDone(move, True) for move in (*reads, *writes[:2])]  # a request waits for a read
    assert ended(worker, 5) == [stuck, *after]


def test_waiting_ends_with_the_first_completion_or_in_time(start, part):
    worker = start()
    began = time.monotonic()
    worker.wait(0.02)
    assert 0.02 <= time.monotonic() - began < 1
    stick(worker, part)
    threading.Timer(0.05, release, [part]).start()
    worker.wait(10)
    assert time.monotonic() - began < 5
    assert worker.poll() == [FileDone(FileWrite(0, record(0)), False)]


def test_waiting_does_not_end_because_something_began(start, part):
    worker = start()
    stick(worker, part)
    threading.Timer(0.02, worker.begin, [FileDrop(record(1).key)]).start()
    began = time.monotonic()
    worker.wait(0.2)
    assert time.monotonic() - began >= 0.2
    release(part)


def test_many_failures_are_told_once(start, caplog):
    worker = start()
    for _ in range(50):
        worker.begin(FileRead(record(1), 0))
    assert {done.ok for done in ended(worker, 50)} == {False}
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "No such file" in caplog.text


def test_a_damaged_page_is_not_ok(start, tmp_path):
    worker = start()
    worker.begin(FileWrite(1, record(1)))
    ended(worker, 1)
    path = tmp_path / "f" / record(1).key.hex()
    text = bytearray(path.read_bytes())
    text[-1000] ^= 1
    path.write_bytes(text)
    worker.begin(FileRead(record(1), 2))
    assert ended(worker, 1) == [FileDone(FileRead(record(1), 2), False)]


def test_closing_finishes_the_writes_and_lets_the_folder_go(start, host):
    worker = start()
    for i in range(SLOTS):
        worker.begin(FileWrite(i, record(i)))
    worker.close()
    assert [done.ok for done in worker.poll()] == [True] * SLOTS
    again = start()
    again.begin(FileRead(record(SLOTS - 1), 0))
    assert ended(again, 1)[0].ok
    assert (host.slots[0] == SLOTS - 1).all()


def test_what_is_begun_after_closing_is_not_ok(start):
    worker = start()
    worker.close()
    moves = (FileWrite(1, record(1)), FileRead(record(1), 1))
    for move in moves:
        worker.begin(move)
    worker.begin(FileDrop(record(1).key))
    assert worker.poll() == [FileDone(move, False) for move in moves]


def test_closing_does_not_wait_for_a_stuck_disk(start, part, caplog):
    worker = start()
    stick(worker, part)
    moves = (FileWrite(1, record(1)), FileRead(record(2), 2))
    for move in moves:
        worker.begin(move)
    began = time.monotonic()
    worker.close(timeout_s=0.05)
    assert time.monotonic() - began < 2
    assert worker.poll() == [FileDone(move, False) for move in reversed(moves)]
    assert "1 pages were not written" in caplog.text
    release(part)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_after_a_bug_in_the_thread_nothing_is_waited_for(start, part):
    worker = start()
    stick(worker, part)
    moves = (FileRead(record(1), SLOTS), FileRead(record(1), 0), FileWrite(1, record(1)))
    for move in moves:  # there is no slot SLOTS
        worker.begin(move)
    release(part)
    assert ended(worker, 4)[1:] == [FileDone(move, False) for move in moves]
    worker.begin(moves[1])
    assert worker.poll() == [FileDone(moves[1], False)]
