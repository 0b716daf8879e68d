"""Deterministic mode of the runner for GPUs, on CPU tensors and in plain torch.

Bits are compared here where plain torch keeps them: without recordings, whose attention looks past
the last key before it masks. With the kernels of a GPU: `tests/triton/test_interpreted_rows.py`.
"""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_gpu_runner import Run, cpu_runner, gpu_runner, same_scores, tiny_model

from ramify.kernels.work_list import check
from ramify.srt.attention.row_items import row_items
from ramify.srt.attention.work_list import QueryRun, plan_items
from ramify.srt.execution.graph_buckets import DecodeRow, Tables, decode_block, layout

SIZES = {"n_pages": 40, "page_size": 16}


def watched(model):
    """The model, and the number of rows of the largest item that its attention gets."""
    rows, attention = [], model.ops.paged_attention

    def noted(q, k_pool, v_pool, work, scale):
        rows.append(work.max_rows)
        assert work.n_partials == 0
        return attention(q, k_pool, v_pool, work, scale)

    model.ops.paged_attention = noted
    return rows


@pytest.mark.parametrize("seed", range(2))
def test_chunks_batches_and_cached_prefixes_change_no_bit(seed):
    model = tiny_model("qwen3", rows_apart=True)
    rows = watched(model)
    seen = []
    for most, step_tokens in ((1, 256), (17, 48), (9, 13)):
        runner, _ = gpu_runner(model, **SIZES, most=most, graph_rows=0, deterministic=True)
        run = Run(runner, seed, overlap=False, **SIZES, most=most, step_tokens=step_tokens)
        seen.append((run.answers(), run.scores))
    assert sum(map(len, seen[0][0][0].values())) > 40
    assert any(seen[0][1].values())  # log-probabilities, compared as they are
    assert seen[0] == seen[1] == seen[2]
    assert set(rows) == {1}


def test_recorded_steps_give_the_same_tokens():
    model = tiny_model("qwen3", rows_apart=True)
    first = Run(cpu_runner(model, **SIZES), 1, overlap=False, **SIZES, most=9)
    expected = first.answers()
    rows = watched(model)
    for overlap in (False, True):
        runner, recordings = gpu_runner(model, **SIZES, most=9, graph_rows=9, deterministic=True)
        made = recordings.replays
        second = Run(runner, 1, overlap=overlap, **SIZES, most=9)
        assert second.answers() == expected
        assert recordings.replays > made
        for name, scores in first.scores.items():
            same_scores(second.scores[name], scores)
    assert set(rows) == {1}


@pytest.mark.parametrize("seed", range(20))
def test_every_row_has_an_item_with_the_keys_that_are_planned_for_it(seed):
    rng = random.Random(seed)
    page, runs, row = rng.choice([4, 16]), [], 0
    for number in range(rng.randint(1, 6)):
        n, start = rng.choice([1, rng.randint(2, 40)]), rng.randint(0, 90)
        pages = tuple(range(100 * number, 100 * number + -(-(start + n) // page)))
        runs.append(QueryRun(row, n, start, pages))
        row += n
    work = row_items(runs)
    check(work, 1000, page)
    planned = plan_items(runs, page, share=False)
    theirs = {
        token: [planned.pages[item[2] + p // page] for p in range(int(work.positions[token]) + 1)]
        for item in planned.items
        for token in planned.rows[item[0] : item[0] + item[1]]
    }
    for token, item in enumerate(work.items.tolist()):
        assert item[:2] == [token, 1]
        assert [int(work.pages[item[2] + p // page]) for p in range(item[4])] == theirs[token]


def test_a_recorded_step_of_one_trunk_has_an_item_for_each_row():
    tables = Tables(64, width=64, spare=8)
    four = [DecodeRow(i, 2050, (*range(32), 100 + i)) for i in range(4)]
    shared, block = decode_block(four, 8, tables, 0, share=False)
    room = layout(8, 0, shared=False)
    at, n = room.offsets[1], room.sizes[1]
    items = block[at : at + n].reshape(-1, 6)
    assert (shared, room.partials, len(block)) == (False, 0, room.offsets[-1])
    assert items[:, 1].tolist() == [1] * 8
    assert items[:4, 3:].tolist() == [[0, 64 * 64, -1]] * 4
