"""What it costs to move a page between the pool, host memory and files.

    python benchmarks/cache_tiers.py [--pages N]

Pages have the shape of SmolLM2-135M's in bfloat16: 16 tokens, 360 KiB. A store and a load are set
against one copy of as many bytes in one run, which is what memory allows; pages and slots come in
random order, so that the processor's caches do not hold them. A file's write and read are set
against writing and reading the same bytes without header, checksums, checks and the thread. Reads
come from the system's memory: the disk's own speed would hide what we add. TMPDIR says which disk.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import add, add_machine, argument, in_turn

from ramify.radix_cache.file_worker import FileWorker
from ramify.radix_cache.host_pool import HostPool
from ramify.radix_cache.kv_pool import KvPool, bytes_per_page
from ramify.radix_cache.page_files import PageFiles
from ramify.radix_cache.page_keys import page_key, root_key
from ramify.radix_cache.page_mover import PageMover
from ramify.radix_cache.plans import (
    FileDrop,
    FileRead,
    FileWrite,
    Move,
    PageCopy,
    PageLoad,
    PageRecord,
    PageStore,
)

LAYERS, HEADS, PAGE, DIM, DTYPE = 30, 3, 16, 64, torch.bfloat16
PAGE_BYTES = bytes_per_page(LAYERS, HEADS, PAGE, DIM, DTYPE)
ROUNDS = 7


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def record(i: int) -> PageRecord:
    tokens = i.to_bytes(4, "little") * PAGE
    return PageRecord(page_key(root_key(""), tokens), root_key(""), tokens)


def compare(
    name: str, n_pages: int, ours: Callable[[], object], least: Callable[[], object]
) -> None:
    """Print the time of a page, its rate, and how many times the least it takes."""
    mine, limit = in_turn(ROUNDS, lambda: seconds(ours), lambda: seconds(least))
    add(f"{name}: us per page", mine / n_pages * 1e6)
    add(f"{name}: GB/s", n_pages * PAGE_BYTES / mine / 1e9)
    add(f"{name}: times the least", mine / limit)


def memory(pool: KvPool, host: HostPool, order: list[int]) -> None:
    """Copies inside the pool, stores and loads."""
    n = len(order)
    mover = PageMover(pool, host)
    flat, other = host.slots.view(n, -1), torch.ones(n, PAGE_BYTES // 2, dtype=DTYPE)

    def memcpy() -> None:
        for i, k in enumerate(order):
            other[i].copy_(flat[k])

    stores = tuple(PageStore(i, k) for i, k in enumerate(order))
    loads = tuple(PageLoad(k, i) for i, k in enumerate(order))
    copies = tuple(PageCopy(i, k, PAGE // 2) for i, k in enumerate(order))
    fresh = seconds(lambda: mover.carry_out(stores))
    add("store to host memory, for the first time: us per page", fresh / n * 1e6)
    compare("store to host memory", n, lambda: mover.carry_out(stores), memcpy)
    compare("load from host memory", n, lambda: mover.carry_out(loads), memcpy)
    moved, copied = in_turn(
        ROUNDS,
        lambda: seconds(lambda: mover.carry_out(copies)),
        lambda: seconds(lambda: pool.copy(copies)),
    )
    add("copies of half a page: times the pool's own", moved / copied)


class Plain:
    """The same bytes in files without anything else."""

    def __init__(self, folder: Path, host: HostPool, order: list[int]) -> None:
        self.folder, self.host, self.order = folder, host, order

    def write(self) -> None:
        for k in self.order:
            part = self.folder / "part"
            with open(part, "wb", buffering=0) as file:
                file.write(self.host.raw(k))
            os.replace(part, self.folder / record(k).key.hex())

    def read(self) -> None:
        for k in self.order:
            with open(self.folder / record(k).key.hex(), "rb", buffering=0) as file:
                file.readinto(self.host.raw(k))

    def drop(self) -> None:
        for k in self.order:
            (self.folder / record(k).key.hex()).unlink()


def files(folder: Path, host: HostPool, order: list[int]) -> None:
    """Writes and reads by the worker, from the first begin to the last completion."""
    page_files = PageFiles(folder / "ours", "benchmark", PAGE_BYTES, PAGE)
    worker = FileWorker(page_files, host, max_queued=2 * len(order))
    plain = Plain(folder, host, order)

    def carry_out(*moves: Move) -> None:
        n_done = 0
        for move in moves:
            worker.begin(move)
        while n_done < len(moves):
            worker.wait(60)
            done = worker.poll()
            assert done, "nothing ended in a minute"
            assert all(each.ok for each in done), "a page was not written or read"
            n_done += len(done)

    def remove() -> None:
        for k in order:
            worker.begin(FileDrop(record(k).key))
        plain.drop()

    writes = [FileWrite(k, record(k)) for k in order]
    reads = [FileRead(record(k), k) for k in order]
    n = len(order)
    for _ in range(2):  # files that are there are written over; once more, to be rid of the start
        carry_out(*writes)
        plain.write()
    compare("write to a file", n, lambda: carry_out(*writes), plain.write)
    compare("read from a file", n, lambda: carry_out(*reads), plain.read)
    add(
        "scan at start: us per file", in_turn(ROUNDS, lambda: seconds(page_files.scan))[0] / n * 1e6
    )
    remove()
    worker.close()


def main() -> None:
    add_machine()
    torch.set_num_threads(1)
    n = argument("pages", 1000)
    add("pages", n)
    add("bytes of a page", PAGE_BYTES)
    order = list(range(n))
    random.Random(0).shuffle(order)
    pool = KvPool(LAYERS, n, HEADS, PAGE, DIM, DTYPE)
    pool.keys.fill_(1)
    pool.values.fill_(2)
    host = HostPool(pool, n)
    with torch.inference_mode():
        memory(pool, host, order)
    with tempfile.TemporaryDirectory() as folder:
        files(Path(folder), host, order)


if __name__ == "__main__":
    main()
