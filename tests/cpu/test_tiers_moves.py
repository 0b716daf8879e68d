"""Pages on their way between the pool, host memory and files: no bit changes, no move overtakes."""

import sys
from pathlib import Path

import pytest
import torch

from ramify.radix_cache.file_worker import FileWorker
from ramify.radix_cache.host_pool import HostPool
from ramify.radix_cache.kv_pool import KvPool, bytes_per_page
from ramify.radix_cache.page_files import PageFiles
from ramify.radix_cache.page_keys import page_key, root_key
from ramify.radix_cache.page_mover import PageMover
from ramify.radix_cache.plans import (
    FileDone,
    FileDrop,
    FileRead,
    FileWrite,
    PageCopy,
    PageLoad,
    PageRecord,
    PageStore,
)

sys.path.insert(0, str(Path(__file__).parent))
from completions import ended

SHAPE = {"n_layers": 3, "n_pages": 6, "n_kv_heads": 2, "page_size": 4, "head_dim": 8}
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
RECORD = PageRecord(page_key(root_key(""), b"abcd"), root_key(""), b"abcd")


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def pool(request):
    """Full of random bits, infinities and NaN with payloads among them."""
    pool = KvPool(**SHAPE, dtype=request.param)
    bits = BITS[request.param]
    torch.manual_seed(0)
    for memory in (pool.keys, pool.values):
        most = torch.iinfo(bits)
        memory.view(bits).copy_(torch.randint(most.min, most.max, memory.shape))
    return pool


@pytest.fixture
def worker(pool, tmp_path):
    """A maker of workers over one folder, which closes what it made."""
    made = []

    def make(host):
        shape = {key: value for key, value in SHAPE.items() if key != "n_pages"}
        size = bytes_per_page(**shape, dtype=pool.keys.dtype)
        made.append(FileWorker(PageFiles(tmp_path, "f", size, SHAPE["page_size"]), host))
        return made[-1]

    yield make
    for each in made:
        each.close()


def bits(pool):
    """[2, layers, pages, ...] integers: NaN is unequal to itself."""
    return torch.stack((pool.keys, pool.values)).view(BITS[pool.keys.dtype]).clone()


def test_a_page_comes_back_from_host_memory_to_the_bit_and_no_other_changes(pool):
    expected = bits(pool)
    expected[:, :, 5] = expected[:, :, 2]
    mover = PageMover(pool, HostPool(pool, 3))
    mover.carry_out((PageStore(page=2, slot=1), PageLoad(slot=1, page=5)))
    assert torch.equal(bits(pool), expected)


def test_a_slot_holds_keys_then_values_of_all_layers(pool):
    host = HostPool(pool, 2)
    PageMover(pool, host).carry_out((PageStore(page=3, slot=1),))
    raw = torch.frombuffer(host.raw(1), dtype=torch.uint8)
    assert torch.equal(raw, bits(pool)[:, :, 3].contiguous().view(torch.uint8).flatten())
    assert not any(host.raw(0))


def test_a_page_comes_back_from_a_file_to_the_bit_in_another_run(pool, worker):
    expected = bits(pool)
    expected[:, :, 0] = expected[:, :, 4]
    host = HostPool(pool, 2)
    first = worker(host)
    write = FileWrite(0, RECORD)
    PageMover(pool, host, first).carry_out((PageStore(4, 0), write))
    assert ended(first, 1) == [FileDone(write, True)]
    first.close()

    fresh = HostPool(pool, 2)
    second = worker(fresh)
    mover = PageMover(pool, fresh, second)
    read = FileRead(RECORD, 1)
    mover.carry_out((read,))
    assert ended(second, 1) == [FileDone(read, True)]
    mover.carry_out((PageLoad(1, 0),))
    assert torch.equal(bits(pool), expected)


def test_moves_are_done_in_their_order(pool):
    """Page 0 is saved, overwritten, saved elsewhere, then both saves come back."""
    before = bits(pool)
    mover = PageMover(pool, HostPool(pool, 2))
    mover.carry_out(
        (
            PageStore(0, 0),
            PageCopy(1, 0, SHAPE["page_size"]),
            PageStore(0, 1),
            PageLoad(0, 2),
            PageLoad(1, 3),
            PageStore(5, 0),
            PageLoad(0, 4),
        )
    )
    after = bits(pool)
    assert torch.equal(after[:, :, 0], before[:, :, 1])
    assert torch.equal(after[:, :, 2], before[:, :, 0])
    assert torch.equal(after[:, :, 3], before[:, :, 1])
    assert torch.equal(after[:, :, 4], before[:, :, 5])


def test_without_tiers_a_copy_is_what_it_always_was(pool):
    expected = bits(pool)
    expected[:, :, 3, :, :2] = expected[:, :, 1, :, :2]
    PageMover(pool).carry_out((PageCopy(1, 3, 2),))
    assert torch.equal(bits(pool), expected)


@pytest.mark.parametrize(
    "move", [PageStore(0, 0), PageLoad(0, 0), FileWrite(0, RECORD), FileDrop(b"")]
)
def test_a_move_of_a_tier_that_is_not_there_is_a_bug(pool, move):
    with pytest.raises(KeyError, match=type(move).__name__):
        PageMover(pool).carry_out((move,))
