"""Blocks of recorded decode steps: every query gets each of its keys once, in any batch."""

import random

import numpy as np
import pytest

from ramify.srt.attention.work_list import QueryRun, plan_items
from ramify.srt.execution.graph_buckets import (
    DecodeRow,
    Tables,
    bucket_of,
    bucket_sizes,
    decode_block,
    layout,
    spare_block,
)


def test_sizes_are_dense_where_steps_are_small():
    assert bucket_sizes(40) == (1, 2, 4, 8, 16, 24, 32, 40)
    assert bucket_sizes(19) == (1, 2, 4, 8, 16, 19)
    assert bucket_sizes(3) == (1, 2, 3)
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(0) == ()


def test_a_step_takes_the_smallest_size_that_holds_it():
    sizes = bucket_sizes(24)
    assert [bucket_of(n, sizes) for n in (1, 3, 8, 9, 24, 25)] == [1, 4, 8, 16, 24, None]


def batch(rng, tables, n):
    """Rows whose tables begin alike in some groups, as requests of one trunk have them."""
    trunks = [[rng.randrange(900) for _ in range(rng.randint(0, 12))] for _ in range(3)]
    places = rng.sample(range(tables.spare), n)
    rows = []
    for place in places:
        trunk = rng.choice(trunks)
        pages = [*trunk[: rng.randint(0, len(trunk))], *(rng.randrange(900, 1900) for _ in "abc")]
        most = len(pages) * tables.page_size - 1
        rows.append(DecodeRow(place, rng.randint(max(most - 60, 0), most), tuple(pages)))
    return rows


def parts(block, room):
    """Rows, items, item rows, indptr and index."""
    return [block[at : at + n] for at, n in zip(room.offsets, room.sizes, strict=False)]


def keys_of(block, room, rows, tables, page_table, steps_later):
    """For each batch index the (page, slot) of every key it reads, and its partials."""
    at, items, entries, _, _ = parts(block, room)
    items = items.reshape(-1, 6)
    flat = page_table.reshape(-1)
    read = {i: [] for i in range(room.bucket)}
    partials = {i: [] for i in range(room.bucket)}
    direct = dict.fromkeys(range(room.bucket), 0)
    for row_begin, row_count, page_begin, key_begin, key_count, partial in items.tolist():
        for k, i in enumerate(entries[row_begin : row_begin + row_count].tolist()):
            position = (rows[i].position if i < len(rows) else 0) + steps_later
            for key in range(key_begin, min(key_begin + key_count, position + 1)):
                page = page_begin + key // tables.page_size - key_begin // tables.page_size
                read[i].append((int(flat[page]), key % tables.page_size))
            if partial < 0:
                direct[i] += 1
            else:
                partials[i].append(partial + k)
    return at, read, partials, direct


@pytest.mark.parametrize("seed", range(60))
def test_every_query_reads_its_keys_once_now_and_some_steps_later(seed):
    rng = random.Random(seed)
    page_size = rng.choice([16, 64])
    tables = Tables(page_size, width=20, spare=32)
    bucket = rng.choice(bucket_sizes(24))
    rows = batch(rng, tables, rng.randint(1, bucket))
    pieces = rng.choice([1, 2, 16, 66])
    shared, block = decode_block(rows, bucket, tables, pieces)
    room = layout(bucket, pieces, shared=shared)
    assert len(block) == room.offsets[-1]

    later = rng.choice([0, 5])  # the same block serves until the batch changes
    page_table = np.full((33, 20), 7777)
    for row in rows:
        grown = [*row.pages, *(3000 + k for k in range(20))][:20]
        page_table[row.row] = grown
    at, read, partials, direct = keys_of(block, room, rows, tables, page_table, later)
    assert at.tolist() == [*(row.row for row in rows), *[32] * (bucket - len(rows))]
    _, _, _, indptr, index = parts(block, room)
    for i in range(bucket):
        place, position = (rows[i].row, rows[i].position + later) if i < len(rows) else (32, later)
        expected = [
            (int(page_table[place][k // page_size]), k % page_size) for k in range(position + 1)
        ]
        assert sorted(read[i]) == sorted(expected)
        assert index[indptr[i] : indptr[i + 1]].tolist() == partials[i]
        assert (direct[i], bool(partials[i])) in ((1, False), (0, True))
    written = [p for mine in partials.values() for p in mine]
    assert sorted(written) == list(range(len(written)))
    assert len(written) <= room.entries


def test_a_trunk_is_read_once_and_a_long_run_in_pieces():
    tables = Tables(64, width=64, spare=8)
    alone = [DecodeRow(0, 2047, tuple(range(32)))]
    shared, block = decode_block(alone, 1, tables, 8)
    items = parts(block, layout(1, 8, shared=False))[1].reshape(-1, 6)
    assert not shared
    assert (items[:, 1] > 0).sum() == 8  # 2048 keys in eight pieces of 256
    four = [DecodeRow(i, 2050, (*range(32), 100 + i)) for i in range(4)]
    shared, block = decode_block(four, 4, tables, 1)
    items = parts(block, layout(4, 1, shared=True))[1].reshape(-1, 6)
    assert shared
    assert sorted(items[:, 1].tolist(), reverse=True)[:6] == [4, 1, 1, 1, 1, 0]


def test_a_trunk_of_many_rows_is_cut_too():
    """32 rows on 8192 keys, of which four heads make one large tile: alone it would be one program
    of 8192 keys for each K/V head."""
    tables = Tables(64, width=140, spare=32)
    rows = [DecodeRow(i, 8200 + i, (*range(128), 200 + i)) for i in range(32)]
    shared, block = decode_block(rows, 32, tables, 66)
    items = parts(block, layout(32, 66, shared=True))[1].reshape(-1, 6)
    assert shared
    assert items[items[:, 1] == 32, 4].tolist() == [512] * 16
    assert (items[:, 1] == 1).sum() == 32


@pytest.mark.parametrize("n", [2, 8, 32, 100])
@pytest.mark.parametrize("trunk", [10, 128, 500])
def test_a_shared_trunk_is_cut_as_planned_and_always_fits(n, trunk):
    """Cutting is given up only where trunks are nested deeply: not for one trunk, however long."""
    tables = Tables(64, width=600, spare=128)
    rows = [
        DecodeRow(i, (trunk + 3) * 64 - 1, (*range(trunk), *range(1000 + 3 * i, 1003 + 3 * i)))
        for i in range(n)
    ]
    runs = [QueryRun(i, 1, row.position, row.pages) for i, row in enumerate(rows)]
    for pieces in (2, 17, 66, 264):
        shared, block = decode_block(rows, n, tables, pieces)
        items = parts(block, layout(n, pieces, shared=True))[1].reshape(-1, 6)
        assert shared
        assert (items[:, 1] > 0).sum() == len(plan_items(runs, 64, programs=pieces).items)


def test_sharing_is_given_up_where_it_has_no_room():
    """Nested trunks: the i-th of 24 rows is in 24 - i items at most, far more than there is room
    for; the step is computed all the same."""
    tables = Tables(64, width=64, spare=32)
    rows = [DecodeRow(i, (i + 2) * 64 - 1, (*range(i + 1), 500 + i)) for i in range(24)]
    shared, block = decode_block(rows, 24, tables, 1)
    assert not shared
    assert len(block) == layout(24, 1, shared=False).offsets[-1]


def test_a_block_without_rows_reads_the_spare_page_only():
    tables = Tables(16, width=4, spare=9)
    room = layout(3, 2, shared=True)
    block = spare_block(room, tables)
    at, items, *_ = parts(block, room)
    assert at.tolist() == [9, 9, 9]
    items = items.reshape(-1, 6)
    assert items[:3].tolist() == [[i, 1, 36, 0, 64, -1] for i in range(3)]
    assert not items[3:].any()
