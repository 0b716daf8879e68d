"""Attention by FlashInfer on a real GPU: random ragged steps against the reference."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "triton"))
sys.path.insert(0, str(Path(__file__).parent))
from place import there
from steps import make_step

from ramify.kernels.attention_options import PLAIN, AttentionOptions
from ramify.kernels.dispatch import load_ops
from ramify.kernels.reference.attention import paged_attention as reference
from ramify.kernels.shapes import FP8
from ramify.srt.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
    pytest.mark.skipif(
        importlib.util.find_spec("flashinfer") is None, reason="flashinfer is not installed"
    ),
    pytest.mark.timeout(900),  # it compiles a library for each shape
    # other people's warnings are not ours to mend
    pytest.mark.filterwarnings("default"),
]
NEAR = 3e-2  # partial results are rounded before they are merged


@pytest.fixture(scope="module")
def ops():
    return load_ops("flashinfer")


def assert_same(step, ops, options=PLAIN, near=NEAR):
    mine, oracle = step.run(ops.paged_attention, options), step.run(reference, options)
    torch.testing.assert_close(mine.float(), oracle.float(), atol=near, rtol=near)


def drawn(seed, *, share=True):
    draw = random.Random(seed)
    page, trunk = draw.choice([16, 64]), draw.choice([0, 0, 4]) if share else 0
    kinds = [(trunk * page + draw.randint(1, 900), 1) for _ in range(draw.randint(1, 12))]
    chunks = draw.choices(range(1, 700), k=draw.randint(0, 3))
    kinds += [(trunk * page + length, draw.randint(1, length)) for length in chunks]
    kv_heads, group = draw.choice([1, 2, 8]), draw.choice([1, 3, 4, 8])
    splits = draw.choice([1, 1, 16, 40]) if share else 1
    step = make_step(
        kinds, kv_heads * group, kv_heads, draw.choice([64, 128]), torch.bfloat16,
        page=page, trunk=trunk, splits=splits, seed=seed)  # fmt: skip
    return there(step)


def test_there_is_a_backend_of_that_name(ops):
    assert ops.backend == "flashinfer"
    assert ops.silu_mul is load_ops("triton").silu_mul


@pytest.mark.parametrize("seed", range(30))
def test_random_steps(seed, ops):
    assert_same(drawn(seed), ops)


@pytest.mark.parametrize("seed", range(30, 36))
def test_a_soft_cap(seed, ops):
    assert_same(drawn(seed), ops, AttentionOptions(soft_cap=20.0))


@pytest.mark.parametrize("seed", range(36, 42))
def test_a_window(seed, ops):
    options = AttentionOptions(window=random.Random(seed).randint(1, 400))
    assert_same(drawn(seed, share=False), ops, options)


def test_fp8_pools(ops):
    options = AttentionOptions(k_scale=0.5, v_scale=2.0)
    step = make_step(
        [(900, 1), (300, 1), (500, 200)], 8, 2, 128, torch.bfloat16, page=64, stored=FP8
    )
    assert_same(there(step), ops, options, near=6e-2)


def test_steps_that_are_planned_before_the_ones_before_have_run(ops):
    """Plans travel through memory that later plans overwrite: sooner than the GPU gets to them."""
    steps = [drawn(seed) for seed in range(8)]
    expected = [step.run(reference) for step in steps]
    for step in steps:
        step.run(ops.paged_attention)  # compiles
    torch.cuda.synchronize()
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(30):
        busy = busy @ busy / 64
    found = [step.run(ops.paged_attention) for step in steps]
    for ours, oracle in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), oracle.float(), atol=NEAR, rtol=NEAR)


def test_an_engine_scores_as_with_triton(tmp_path):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 512,
        "vocab_size": 211,
        "max_position_embeddings": 1024,
    }
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    trunk = [1 + k * k % 200 for k in range(150)]
    prompts = [[*trunk, *range(1 + i, 40 + 5 * i)] for i in range(6)]
    scores = []
    for backend in ("triton", "flashinfer"):
        with Engine(
            f"dummy:{tmp_path / 'tiny.json'}",
            device="cuda",
            attention_backend=backend,
            max_total_tokens=8192,
            seed=1,
        ) as engine:
            replies = engine.generate(
                input_ids=prompts,
                sampling_params={"temperature": 0.0, "max_new_tokens": 16, "ignore_eos": True},
                return_logprob=True,
                logprob_start_len=0,
            )
            assert engine.server_info()["violations"] == []
        assert all(len(reply["output_ids"]) == 16 for reply in replies)
        told = [item for reply in replies for item in reply["meta_info"]["input_token_logprobs"]]
        scores.append([item[0] for item in told if item[0] is not None])
    assert scores[1] == pytest.approx(scores[0], abs=0.1)
