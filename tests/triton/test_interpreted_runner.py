"""The runner for GPUs over the Triton kernels: the tokens that it has over plain torch."""

import sys
from array import array
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "cpu"))
from test_gpu_runner import gpu_runner, tiny_model

from ramify.kernels.shapes import FP8
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.plan import Chunk, Enter, StepPlan

PAGE, STEPS = 64, 3
ASKED = [
    {"temperature": 0.0},
    {"temperature": 1.0, "sampling_seed": 7},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "sampling_seed": 8},
]


def tokens(backend, stored):
    """Two requests of one trunk and one of their own: their prompts in a step, then decoding."""
    model = tiny_model("qwen3", backend)
    runner, recordings = gpu_runner(model, 8, PAGE, most=3, graph_rows=3, stored=stored)
    before = recordings.replays
    trunk = [1 + 3 * k % 130 for k in range(PAGE)]
    prompts = [[*trunk, 5, 6], [*trunk, 9], [8, 9, 10]]
    tables = [(0, 1), (0, 2), (3,)]
    enters = tuple(
        Enter(f"r{i}", SamplingParams(**ASKED[i]), array("I", ids), array("I"), 3, True)
        for i, ids in enumerate(prompts)
    )
    chunks = (
        chunk(0, 0, prompts[0], tables[0]),
        chunk(2, 0, prompts[2], tables[2]),
    )
    launched = [runner.launch(StepPlan(1, (), enters, (), chunks))]
    launched.append(
        runner.launch(StepPlan(2, (), (), (), (chunk(1, PAGE, prompts[1][PAGE:], tables[1]),)))
    )
    for step in range(STEPS):  # nothing is waited for: every token is the device's own
        rows = [chunk(i, len(prompts[i]) + step, None, tables[i]) for i in range(3)]
        launched.append(runner.launch(StepPlan(3 + step, (), (), (), tuple(rows))))
    assert recordings.replays - before == 2 * (STEPS + 1)
    return [done.token for pending in launched for done in pending.result().chunks]


def chunk(i, start, ids, pages):
    follows = ids is None
    new = array("I", [0] if follows else ids)
    return Chunk(f"r{i}", i, start, new, pages, True, follows=follows)


@pytest.mark.parametrize("stored", [torch.float32, FP8])
def test_the_same_tokens_as_over_plain_torch(stored):
    ours, expected = tokens("triton", stored), tokens("reference", stored)
    assert [t.token_id for t in ours] == [t.token_id for t in expected]
    for mine, twin in zip(ours, expected, strict=True):  # a key that is missed shows here first
        assert mine.logprob == pytest.approx(twin.logprob, abs=1e-4)
        assert mine.top == [(pytest.approx(x, abs=1e-4), token) for x, token in twin.top]
