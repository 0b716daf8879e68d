"""Deterministic mode on a GPU: the same bits however requests are cached, chunked and batched."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ramify.kernels.dispatch import load_ops
from ramify.srt.engine import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "cpu"))
from test_families import SIZES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]

TRUNK = [1 + k * k % 200 for k in range(700)]
PROMPTS = [[*TRUNK[: 175 * (i % 5)], 7 + i, 31 + i] for i in range(20)]
ASKED = {"temperature": 0.8, "sampling_seed": 3, "max_new_tokens": 24, "ignore_eos": True}
WAYS = [
    {"max_running_requests": 1, "disable_radix_cache": True},
    {"max_running_requests": 16},
    {"chunked_prefill_size": 64, "mixed_prefill_size": 7, "max_running_requests": 32},
    {"cuda_graph_max_bs": 4, "overlap": False},
    {"disable_cuda_graph": True, "max_total_tokens": 2048},
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_row_has_the_same_bits_wherever_it_is_among_how_many(dtype):
    """Which rests on matrix units that treat all rows of a tile alike."""
    ops = load_ops("triton", rows_apart=True)
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(1160, 1100, device="cuda", generator=generator).to(dtype)
    x = torch.randn(500, 1100, device="cuda", generator=generator).to(dtype)
    packed = ops.pack_linear(weight, weight[:, 0].contiguous())
    whole = ops.linear(x, packed)
    for rows in (1, 2, 7, 16, 63, 64, 65, 300):
        assert torch.equal(ops.linear(x[:rows], packed), whole[:rows]), rows
        last = x[-rows:].contiguous()
        assert torch.equal(ops.linear(last, packed), whole[-rows:]), rows
    near = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 1e-5}[dtype]
    expected = torch.nn.functional.linear(x.double(), weight.double(), weight[:, 0].double())
    torch.testing.assert_close(whole.double(), expected, rtol=near, atol=near * 33)


@pytest.mark.parametrize("stored", ["auto", "fp8_e4m3"])
def test_tokens_and_log_probabilities_are_the_same_to_the_bit(tmp_path, stored):
    config = {**SIZES, "architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 1024}
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    seen = []
    for way in WAYS:
        with Engine(
            f"dummy:{tmp_path / 'tiny.json'}",
            device="cuda",
            seed=1,
            deterministic=True,
            kv_cache_dtype=stored,
            **{"max_total_tokens": 16_384, **way},
        ) as engine:
            told = engine.generate(
                input_ids=PROMPTS,
                sampling_params=ASKED,
                return_logprob=True,
            )
        seen.append([reply["meta_info"]["output_token_logprobs"] for reply in told])
    assert all(other == seen[0] for other in seen[1:])
