"""Whatever the tables, every query reads each of its keys exactly once, from the right page."""

import random

import pytest

from ramify.srt.attention.work_list import (
    FEW_ROWS,
    MIN_FEW_KEYS,
    MIN_MANY_KEYS,
    SIDE_BY_SIDE,
    TILE_ROWS,
    QueryRun,
    plan_items,
    room_for_parts,
)


def random_runs(rng, page_size):
    """Runs whose tables share random trunks, with decodes and prefill chunks mixed."""
    trunks = [[rng.randint(1000 * t, 1000 * t + 400) for _ in range(40)] for t in range(1, 3)]
    trunks.append(trunks[0][:13] + [9000 + k for k in range(27)])
    runs, first_row = [], 0
    for number in range(rng.randint(1, 9)):
        n_rows = rng.choice([1, 1, 1, rng.randint(2, 40)])
        start = rng.randint(0, 39 * page_size - n_rows)
        n_pages = -(-(start + n_rows) // page_size)
        shared = rng.randint(0, start // page_size)
        own = [10_000 + 100 * number + k for k in range(n_pages)]
        pages = (rng.choice(trunks)[:shared] + own)[:n_pages]
        runs.append(QueryRun(first_row, n_rows, start, tuple(pages)))
        first_row += n_rows
    return runs


def keys_read(plan, runs, page_size):
    """{row: [(position, page)]} as a kernel would read them, causal limit applied."""
    position_of = {r.first_row + i: r.start + i for r in runs for i in range(r.n_rows)}
    read = {row: [] for row in position_of}
    for row_begin, row_count, page_begin, key_begin, key_count, _ in plan.items:
        for row in plan.rows[row_begin : row_begin + row_count]:
            for p in range(key_begin, key_begin + key_count):
                if p <= position_of[row]:
                    page = plan.pages[page_begin + p // page_size - key_begin // page_size]
                    read[row].append((p, page))
    return read


@pytest.mark.parametrize("seed", range(200))
def test_every_key_is_read_once_and_from_its_page(seed):
    rng = random.Random(seed)
    page_size = rng.choice([4, 16])
    runs = random_runs(rng, page_size)
    cut = rng.choice([{"min_items": 1}, {"min_items": 4}, {"min_items": 8}, {"programs": 66}])
    plan = plan_items(runs, page_size, share=rng.random() < 0.8, **cut)
    read = keys_read(plan, runs, page_size)
    for run in runs:
        for i in range(run.n_rows):
            expected = [(p, run.pages[p // page_size]) for p in range(run.start + i + 1)]
            assert sorted(read[run.first_row + i]) == expected


@pytest.mark.parametrize(
    ("n_keys", "page_size", "cut"),
    [(257, 64, {"programs": 3}), (513, 16, {"min_items": 4})],
)
def test_a_rest_of_a_single_key_is_not_lost(n_keys, page_size, cut):
    runs = [QueryRun(0, 1, n_keys - 1, tuple(range(40)))]
    plan = plan_items(runs, page_size, **cut)
    assert [item[4] for item in plan.items][-1] == 1
    assert sorted(p for p, _ in keys_read(plan, runs, page_size)[0]) == list(range(n_keys))


@pytest.mark.parametrize("seed", range(50))
def test_partials_are_numbered_without_gaps_and_only_where_needed(seed):
    rng = random.Random(seed)
    runs = random_runs(rng, 16)
    plan = plan_items(runs, 16, min_items=rng.choice([1, 8]), programs=rng.choice([0, 20]))
    items_of = {}
    next_partial = 0
    for row_begin, row_count, *_, partial in plan.items:
        for row in plan.rows[row_begin : row_begin + row_count]:
            items_of.setdefault(row, []).append(partial)
        if partial >= 0:
            assert partial == next_partial
            next_partial += row_count
    for partials in items_of.values():
        assert (-1 in partials) <= (len(partials) == 1)


def test_a_shared_trunk_is_read_once():
    """Sixteen decodes over one trunk of 64 pages: one item for the trunk, one for each tail."""
    trunk = tuple(range(64))
    runs = [QueryRun(i, 1, 64 * 16 + 3, (*trunk, 100 + i)) for i in range(16)]
    plan = plan_items(runs, 16)
    assert sum(item[4] for item in plan.items) == 64 * 16 + 16 * 4
    assert plan_items(runs, 16, share=False).items[0][4] == 64 * 16 + 4


def test_a_part_of_a_group_may_share_more_than_the_whole():
    """All three share one short page; two of them share forty more."""
    runs = [
        QueryRun(0, 1, 700, (1, *range(50, 93))),
        QueryRun(1, 1, 700, (1, *range(50, 90), 7, 8, 9)),
        QueryRun(2, 1, 700, (1, *range(500, 543))),
    ]
    plan = plan_items(runs, 16)
    assert (41 * 16) in [item[4] for item in plan.items if item[1] == 2]


def one_long_among_short(rng, page_size):
    """Decodes and chunks of which some have a context that is many times the others'."""
    trunk = [*range(1, 1 + rng.choice([0, 4, 300]))]
    runs, first_row = [], 0
    for number in range(rng.randint(1, 60)):
        n_rows = rng.choice([1, 1, 1, 1, rng.randint(2, 10), rng.randint(20, 700)])
        own = rng.choice([3, 3, 3, rng.randint(1, 900)]) + -(-n_rows // page_size)
        pages = (*(trunk if rng.random() < 0.7 else ()), *(10_000 * number + k for k in range(own)))
        start = len(pages) * page_size - n_rows - rng.randrange(page_size)
        runs.append(QueryRun(first_row, n_rows, max(start, 0), pages))
        first_row += n_rows
    return runs


def program_keys(plan, least_rows, most_rows):
    """For each program of one launch the keys it reads: items of these rows, in tiles."""
    keys = []
    for _, n_rows, _, _, n_keys, _ in plan.items:
        if least_rows <= n_rows <= most_rows:
            tiles = 1 if n_rows <= FEW_ROWS else -(-n_rows // TILE_ROWS)
            keys += [n_keys] * tiles
    return keys


@pytest.mark.parametrize("seed", range(100))
def test_no_program_is_long_after_the_others(seed):
    """The longest one is bounded by what each had if as many as run at once had the same."""
    rng = random.Random(seed)
    page_size, programs = rng.choice([16, 64]), rng.choice([2, 17, 66, 264])
    runs = one_long_among_short(rng, page_size)
    whole = plan_items(runs, page_size)
    plan = plan_items(runs, page_size, programs=programs)
    mean = sum(program_keys(whole, 1, FEW_ROWS)) / programs
    longest = max(program_keys(plan, 1, FEW_ROWS), default=0)
    assert longest < max(mean, MIN_FEW_KEYS) + page_size
    mean = sum(program_keys(whole, FEW_ROWS + 1, 10**9)) / -(-programs // SIDE_BY_SIDE)
    many = [item[4] for item in plan.items if item[1] > FEW_ROWS]
    assert max(many, default=0) < 2 * (max(mean, MIN_MANY_KEYS) + page_size)


@pytest.mark.parametrize("seed", range(100))
def test_parts_fit_the_room_that_is_kept_for_them(seed):
    rng = random.Random(seed)
    page_size, programs = rng.choice([16, 64]), rng.choice([1, 2, 17, 66, 264])
    runs = one_long_among_short(rng, page_size)
    share = rng.random() < 0.8
    whole = plan_items(runs, page_size, share=share)
    plan = plan_items(runs, page_size, share=share, programs=programs)
    more_items, more_rows = room_for_parts(programs)
    assert len(whole.items) <= len(plan.items) <= len(whole.items) + more_items
    assert len(plan.rows) <= len(whole.rows) + more_rows


def test_a_long_context_beside_short_ones_is_cut_and_they_are_not():
    runs = [QueryRun(0, 1, 32_767, tuple(range(512)))]
    runs += [QueryRun(i, 1, 1023, tuple(range(512 + 16 * i, 528 + 16 * i))) for i in range(1, 65)]
    plan = plan_items(runs, 64, programs=66)
    keys = [item[4] for item in plan.items]
    assert keys.count(1024) == 64
    assert len(keys) == 64 + 22
    assert max(keys) < (64 * 1024 + 32_768) / 66 + 64
    assert max(item[4] for item in plan_items(runs, 64, min_items=65).items) == 32_768


def test_equal_contexts_are_not_cut_where_there_are_enough():
    runs = [QueryRun(i, 1, 4095, tuple(range(64 * i, 64 * i + 64))) for i in range(66)]
    assert plan_items(runs, 64, programs=66) == plan_items(runs, 64)


@pytest.mark.parametrize(("n_rows", "parts"), [(20, 16), (256, 2), (512, 1), (2048, 1)])
def test_a_chunk_on_a_long_context_is_cut_until_its_programs_are_enough(n_rows, parts):
    """66 programs in small tiles are some 17 in large ones: those of 512 rows are 16 already."""
    runs = [QueryRun(0, n_rows, 32_768 - n_rows, tuple(range(512)))]
    plan = plan_items(runs, 64, programs=66)
    assert len(plan.items) == parts
    assert {item[1] for item in plan.items} == {n_rows}


def test_a_first_chunk_is_left_whole():
    """Its rows are programs enough, and partial results would cost as much as it does."""
    for n_rows in (40, 200, 512, 1024, 4096):
        runs = [QueryRun(0, n_rows, 0, tuple(range(64)))]
        assert len(plan_items(runs, 64, programs=66).items) == 1
