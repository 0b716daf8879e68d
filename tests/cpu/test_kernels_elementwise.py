"""Norms, activation and rotary embedding: C++ against plain torch."""

import sys
from pathlib import Path

import pytest
import torch

from ramify.kernels.dispatch import load_ops

sys.path.insert(0, str(Path(__file__).parents[1] / "triton"))
from guards import guarded, untouched

OPS, REFERENCE = load_ops("cpu"), load_ops("reference")
# bf16: both sides round where the table says, so they differ by one step of rounding at most.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
EPS = 1e-5


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)


def assert_near(mine, oracle):
    assert mine.dtype is oracle.dtype
    tolerance = TOLERANCE[oracle.dtype]
    torch.testing.assert_close(mine, oracle, atol=tolerance, rtol=tolerance)


def random_guarded(*shape, dtype):
    """Random numbers, and the memory around them."""
    return guarded(torch.randn(shape).to(dtype))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [1, 3, 130])
@pytest.mark.parametrize("width", [8, 24, 64, 576, 1000])
def test_rms_norm(tokens, width, dtype):
    x, memory = random_guarded(tokens, width, dtype=dtype)
    weight = torch.randn(width).to(dtype)
    assert_near(OPS.rms_norm(x, weight, EPS), REFERENCE.rms_norm(x, weight, EPS))
    residual, around = random_guarded(tokens, width, dtype=dtype)
    expected = residual.clone()
    normed = OPS.add_rms_norm(x, residual, weight, EPS)
    assert_near(normed, REFERENCE.add_rms_norm(x, expected, weight, EPS))
    assert torch.equal(residual, expected)
    assert untouched(memory)
    assert untouched(around)


def test_rms_norm_rounds_like_hugging_face_models():
    """Normalise in fp32, round, then multiply: in bf16 the other order is visible."""
    x, weight = torch.randn(50, 64).bfloat16(), torch.randn(64).bfloat16()
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    by_hand = weight * normed.bfloat16()
    assert torch.equal(REFERENCE.rms_norm(x, weight, EPS), by_hand)
    agree = (OPS.rms_norm(x, weight, EPS) == by_hand).float().mean()
    assert agree > 0.99


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [1, 2, 70])
@pytest.mark.parametrize("width", [8, 24, 64, 128, 200, 1536])
def test_silu_mul(tokens, width, dtype):
    gate_up, _ = random_guarded(tokens, 2 * width, dtype=dtype)
    gate_up[0, 0], gate_up[0, 1] = 300.0, -300.0  # exp overflows fp32 here
    mine = OPS.silu_mul(gate_up)
    assert_near(mine, REFERENCE.silu_mul(gate_up))
    assert abs(float(mine[0, 1])) < 1e-30


def rope_arguments(tokens, heads, kv_heads, head_dim, dtype, page_size=16):
    qkv, _ = random_guarded(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    pages = -(-2 * tokens // page_size)
    angles = torch.rand(100, head_dim // 2) * 6.3
    return {
        "qkv": qkv,
        "positions": torch.randint(0, 100, (tokens,), dtype=torch.int32),
        "slots": torch.randperm(pages * page_size)[:tokens],
        "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=-1),
        "k_pool": torch.full((pages, kv_heads, page_size, head_dim), torch.nan, dtype=dtype),
        "v_pool": torch.full((pages, kv_heads, page_size, head_dim), torch.nan, dtype=dtype),
        "heads": heads,
    }


HEADS = [(9, 3, 64), (4, 1, 8), (2, 2, 16), (14, 2, 80), (3, 1, 96), (5, 5, 128), (2, 1, 256)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_rope_write_kv(heads, kv_heads, head_dim, norms, tokens, dtype):
    mine = rope_arguments(tokens, heads, kv_heads, head_dim, dtype)
    if norms:
        mine |= {
            "q_norm": torch.randn(head_dim).to(dtype),
            "k_norm": torch.ones(head_dim).to(dtype),
        }
    theirs = mine | {"k_pool": mine["k_pool"].clone(), "v_pool": mine["v_pool"].clone()}
    assert_near(OPS.rope_write_kv(**mine), REFERENCE.rope_write_kv(**theirs))
    for pool in ("k_pool", "v_pool"):
        written = ~theirs[pool].isnan()
        assert torch.equal(~mine[pool].isnan(), written), "a slot that is not ours was written"
        assert_near(mine[pool][written], theirs[pool][written])
        assert written.sum() == tokens * kv_heads * head_dim


def test_rope_takes_int32_slots():
    mine = rope_arguments(5, 4, 2, 16, torch.float32)
    narrow = mine | {"slots": mine["slots"].int(), "k_pool": mine["k_pool"].clone()}
    assert torch.equal(OPS.rope_write_kv(**mine), OPS.rope_write_kv(**narrow))
    assert torch.equal(mine["k_pool"].nan_to_num(9), narrow["k_pool"].nan_to_num(9))


def test_rotation_keeps_scores_relative():
    """q at position a times k at position b depends on a - b only: what rotary embedding is for."""
    frequency = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    angles = torch.arange(100)[:, None] * frequency
    arguments = rope_arguments(2, 1, 1, 64, torch.float32)
    arguments["qkv"][1] = arguments["qkv"][0]
    arguments["cos_sin"] = torch.cat((angles.cos(), angles.sin()), dim=-1)
    scores = []
    for base in (3, 40):
        arguments["positions"] = torch.tensor([base + 7, base], dtype=torch.int32)
        q = OPS.rope_write_kv(**arguments)
        slot = int(arguments["slots"][1])
        scores.append(float(q[0, 0] @ arguments["k_pool"][slot // 16, 0, slot % 16]))
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.parametrize(("name", "value"), [("positions", 100), ("positions", -1), ("slots", 80)])
def test_rope_refuses_what_is_outside_its_tables(name, value):
    arguments = rope_arguments(33, 4, 2, 16, torch.float32)
    arguments[name][-1] = value
    with pytest.raises(ValueError, match="positions must be in"):
        OPS.rope_write_kv(**arguments)
    assert arguments["k_pool"].isnan().all()


def test_wrong_sizes_are_named():
    x = torch.randn(3, 16)
    for ops in (OPS, REFERENCE):
        with pytest.raises(ValueError, match="weight must be"):
            ops.rms_norm(x, torch.ones(15), EPS)
        with pytest.raises(ValueError, match="residual must be"):
            ops.add_rms_norm(x, x.bfloat16(), torch.ones(16), EPS)
        with pytest.raises(ValueError, match="not contiguous"):
            ops.rms_norm(x.t(), torch.ones(3), EPS)
        with pytest.raises(ValueError, match="even number"):
            ops.silu_mul(x[:, :15].contiguous())
        arguments = rope_arguments(3, 4, 2, 16, torch.float32)
        with pytest.raises(ValueError, match="qkv must be 96 wide"):
            ops.rope_write_kv(**arguments | {"heads": 2})


def test_two_threads_give_the_same_bits():
    gate_up, weight = torch.randn(200, 1200), torch.randn(600)
    x = gate_up[:, :600].contiguous()
    alone = OPS.silu_mul(gate_up), OPS.rms_norm(x, weight, EPS)
    torch.set_num_threads(2)
    assert torch.equal(OPS.silu_mul(gate_up), alone[0])
    assert torch.equal(OPS.rms_norm(x, weight, EPS), alone[1])
