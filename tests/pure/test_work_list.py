"""Whatever the tables, every query reads each of its keys exactly once, from the right page."""

import random

import pytest

from ramify.srt.attention.work_list import QueryRun, plan_items


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
    plan = plan_items(runs, page_size, share=rng.random() < 0.8, min_items=rng.choice([1, 4, 8]))
    read = keys_read(plan, runs, page_size)
    for run in runs:
        for i in range(run.n_rows):
            expected = [(p, run.pages[p // page_size]) for p in range(run.start + i + 1)]
            assert sorted(read[run.first_row + i]) == expected


@pytest.mark.parametrize("seed", range(50))
def test_partials_are_numbered_without_gaps_and_only_where_needed(seed):
    rng = random.Random(seed)
    runs = random_runs(rng, 16)
    plan = plan_items(runs, 16, min_items=rng.choice([1, 8]))
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
