"""What a GPU's runner computes before the first request: every kind of step, and no trace left.

That nothing is compiled after them is in `tests/triton/test_compiled_warm_up.py`.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_gpu_runner import Run, gpu_runner, tiny_model

from ramify.srt.execution.warm_up import warm_up_steps

SIZES = {"n_pages": 40, "page_size": 16}


@pytest.mark.parametrize("graph_rows", [0, 9])
@pytest.mark.parametrize("deterministic", [False, True])
def test_tokens_are_those_without_it_and_nothing_else_is_written(graph_rows, deterministic):
    model = tiny_model("qwen3")
    told = []
    for warm in (False, True):
        torch.manual_seed(0)
        runner, _ = gpu_runner(
            model, **SIZES, most=9, graph_rows=graph_rows, deterministic=deterministic
        )
        if warm:
            kept = runner._pool.keys, runner._pool.values, runner._state.words
            before = [tensor.clone() for tensor in kept]
            runner.warm_up(48)
            for was, now in zip(before[:2], kept[:2], strict=True):
                assert torch.equal(was[:, :-1], now[:, :-1])
                assert not torch.equal(was[:, -1], now[:, -1])  # the spare page
            assert torch.equal(before[2], kept[2])
        run = Run(runner, 1, overlap=True, **SIZES, most=9)
        told.append((run.answers(), run.scores))
    assert told[0] == told[1]


def test_attention_sees_every_kind_of_work():
    model = tiny_model("qwen3")
    seen, attention = [], model.ops.paged_attention

    def noted(q, k_pool, v_pool, work, scale):
        seen.append((len(q), len(work.items), work.max_rows, work.n_partials > 0))
        return attention(q, k_pool, v_pool, work, scale)

    model.ops.paged_attention = noted
    runner, _ = gpu_runner(model, 40, 64, most=9, graph_rows=0)
    runner.warm_up(200)
    assert seen[:: len(model.layers)] == [
        (1, 1, 1, False),
        (1, 2, 1, True),
        (24, 1, 24, False),
        (200, 3, 200, True),
    ]


@pytest.mark.parametrize("step_tokens", [1, 2, 7, 100, 4096])
@pytest.mark.parametrize("longest", [2, 60, 64, 65, 300, 100_000])
@pytest.mark.parametrize("page", [16, 64])
def test_steps_are_as_large_as_they_may_be_and_no_larger(step_tokens, longest, page):
    steps = list(warm_up_steps(step_tokens, longest, page, 77))
    sizes = [sum(len(chunk.tokens) for chunk in step) for step in steps]
    assert (sizes[0], max(sizes), sizes[-1]) == (1, step_tokens, step_tokens)
    for chunk in (chunk for step in steps for chunk in step):
        end = chunk.start + len(chunk.tokens)
        assert 0 <= chunk.start < end <= longest
        assert chunk.pages == (77,) * -(-end // page)
    if longest > 1024:
        assert steps[1][0].start == 1023
    if step_tokens >= 100 and longest >= 300:
        assert len(steps[-1]) >= 2
        assert all(chunk.start >= 64 for chunk in steps[-1])  # behind a trunk in common
