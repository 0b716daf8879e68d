"""A step whose long key runs are cut for a GPU keeps the rules of a work list, and its results."""

import random
from functools import partial

import pytest
import torch

from ramify.kernels.reference.attention import paged_attention
from ramify.kernels.work_list import check, make_work_list
from ramify.srt.attention.work_list import QueryRun, plan_items

PAGE, N_PAGES = 16, 400


def runs_of(rng):
    """A few decodes and chunks, a decode with a long context, and a trunk that most share."""
    pages = iter(rng.sample(range(N_PAGES), N_PAGES))
    trunk = [next(pages) for _ in range(rng.choice([0, 40]))]
    runs, first_row = [], 0
    for number in range(rng.randint(2, 8)):
        n_rows = 1 if number == 1 else rng.choice([1, 1, rng.randint(2, 9), rng.randint(20, 70)])
        own = [next(pages) for _ in range(100 if number == 1 else rng.randint(5, 9))]
        table = (*(trunk if rng.random() < 0.8 else ()), *own)
        start = len(table) * PAGE - n_rows - rng.randrange(PAGE)
        start = max(start, 0)
        runs.append(QueryRun(first_row, n_rows, start, table))
        first_row += n_rows
    return runs


def work_of(runs, planned):
    positions = [run.start + i for run in runs for i in range(run.n_rows)]
    work = make_work_list(planned.items, planned.rows, positions, planned.pages)
    check(work, N_PAGES, PAGE)
    return work


@pytest.mark.parametrize("seed", range(30))
def test_results_are_those_of_whole_runs(seed):
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    runs = runs_of(rng)
    whole = work_of(runs, plan_items(runs, PAGE, share=False))
    work = work_of(runs, plan_items(runs, PAGE, programs=rng.choice([4, 8, 66])))
    assert len(work.items) > len(whole.items)
    q, k_pool, v_pool = draw(len(work.positions), 4, 8), *draw(2, N_PAGES, 2, PAGE, 8)
    results = [paged_attention(q, k_pool, v_pool, w, 8**-0.5) for w in (work, whole)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
