"""Deterministic mode: not one bit of a row depends on what else is cached, chunked or batched.

Steps and whole runs over the Triton kernels, with products that sum a row alike wherever it is in
its tile, as matrix units do. What is compared is exact.
"""

import sys
from array import array
from pathlib import Path

import pytest
import torch
from shim import dot_by_rows
from steps import TOLERANCE
from triton.runtime.interpreter import InterpreterBuilder

sys.path.insert(0, str(Path(__file__).parents[1] / "cpu"))
from test_gpu_runner import gpu_runner, tiny_model

from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.triton.attention import paged_attention
from ramify.srt.attention.row_items import row_items
from ramify.srt.attention.work_list import QueryRun
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.plan import Chunk, Enter, StepPlan

PAGE, LENGTH = 16, 80
TABLE, OTHER = (1, 2, 3, 4, 5), (1, 6)  # they begin alike


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_by_rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [3, 20])
def test_attention_of_a_row_is_the_same_in_every_step(group, dtype):
    """The last row of LENGTH, decoded, or at the end of a chunk of 7 or 64, others beside it."""
    pools = [torch.randn(7, 1, PAGE, 32).to(dtype) for _ in range(2)]
    rows = torch.randn(LENGTH, group, 32).to(dtype)
    others = torch.randn(9, group, 32).to(dtype)
    seen = []
    for n, before in ((1, 0), (1, 9), (7, 0), (64, 4)):
        runs = [QueryRun(before, n, LENGTH - n, TABLE)]
        if before:
            runs.insert(0, QueryRun(0, before, 20, OTHER))
        q = torch.cat((others[:before], rows[-n:]))
        work = row_items(runs)
        out = paged_attention(q, *pools, work, 0.3)
        seen.append(out[-1])
        if n == 64:
            near = TOLERANCE[dtype]
            oracle = reference(q, *pools, work, 0.3)
            torch.testing.assert_close(out.float(), oracle.float(), atol=near, rtol=near)
    assert all(torch.equal(seen[0], other) for other in seen[1:])


CACHED = 64  # keys of a trunk that both requests of a run begin with, on page 0
OWN, BESIDE = [1 + 3 * k for k in range(9)], [7, 8]
STEPS = 3


def answers(cuts, *, beside, graph_rows):
    """(token, log-probability, likeliest) of every step after the prompt, which comes in chunks."""
    torch.manual_seed(0)  # what is on the page
    model = tiny_model("qwen3", "triton", rows_apart=True)
    runner, _ = gpu_runner(model, 4, CACHED, most=3, graph_rows=graph_rows, deterministic=True)
    asked = SamplingParams(temperature=1.0, sampling_seed=7)
    enters = tuple(Enter(name, asked, array("I"), array("I"), 3, True) for name in "ab")
    runner.launch(StepPlan(1, (), enters, (), ()))
    launched, start = [], 0
    for end in (*cuts, len(OWN)):
        chunks = [chunk("a", start, OWN[start:end], end == len(OWN))]
        if beside and start == 0:
            chunks.insert(0, chunk("b", 0, BESIDE, True))
        launched.append(runner.launch(StepPlan(2, (), (), (), tuple(chunks))))
        start = end
    for step in range(STEPS):
        chunks = [chunk("a", len(OWN) + step, None, True)]
        if beside:
            chunks.insert(0, chunk("b", len(BESIDE) + step, None, True))
        launched.append(runner.launch(StepPlan(3, (), (), (), tuple(chunks))))
    told = [pending.result().chunks[-1].token for pending in launched]
    return [(t.token_id, t.logprob, t.top) for t in told if t is not None]


def chunk(name, start, ids, samples):
    tokens = array("I", [0] if ids is None else ids)
    pages = (0, 1 if name == "a" else 2)
    return Chunk(name, ord(name), CACHED + start, tokens, pages, samples, follows=ids is None)


def test_a_run_is_the_same_however_it_is_chunked_and_batched():
    """In fp32, which shows every bit of a sum."""
    expected = answers((), beside=False, graph_rows=0)
    assert len(expected) == STEPS + 1
    assert answers((1, 8), beside=False, graph_rows=3) == expected
    assert answers((7,), beside=True, graph_rows=3) == expected
    assert answers((), beside=True, graph_rows=0) == expected
