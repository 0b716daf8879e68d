"""Norms and activation in Triton against their torch twins, on ragged rows between NaN."""

import pytest
import torch
from guards import guarded, untouched

from ramify.kernels.reference import elementwise, quantised
from ramify.kernels.triton import activation, norms

# bf16: both sides round at the same places, so they differ by one step of rounding at most.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
EPS = 1e-5


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def random_guarded(*shape, dtype):
    """Random numbers, and the memory around them."""
    return guarded(torch.randn(shape).to(dtype))


def assert_near(mine, twin):
    assert mine.dtype is twin.dtype
    tolerance = TOLERANCE[twin.dtype]
    torch.testing.assert_close(mine, twin, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (3, 24), (2, 1000), (5, 576), (0, 8)])
def test_rms_norm(tokens, width, dtype):
    x, _ = random_guarded(tokens, width, dtype=dtype)
    weight, _ = random_guarded(width, dtype=dtype)
    expected = elementwise.rms_norm(x, weight, EPS)
    assert_near(norms.rms_norm(x, weight, EPS), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (3, 100), (2, 1024)])
def test_add_rms_norm_changes_the_residual_and_nothing_else(tokens, width, dtype):
    x, x_memory = random_guarded(tokens, width, dtype=dtype)
    residual, memory = random_guarded(tokens, width, dtype=dtype)
    weight, _ = random_guarded(width, dtype=dtype)
    theirs, before = residual.clone(), x.clone()
    expected = elementwise.add_rms_norm(x, theirs, weight, EPS)
    assert_near(norms.add_rms_norm(x, residual, weight, EPS), expected)
    assert torch.equal(residual, theirs)
    assert torch.equal(x, before)
    assert untouched(memory)
    assert untouched(x_memory)


def test_the_norm_rounds_before_and_after_the_weight():
    """Rounded once only, some numbers come out another bf16."""
    x, weight = torch.randn(4, 512).bfloat16(), torch.randn(512).bfloat16()
    wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPS)
    once = (wide * weight.float()).bfloat16()
    mine = norms.rms_norm(x, weight, EPS)
    assert torch.equal(mine, elementwise.rms_norm(x, weight, EPS))
    assert not torch.equal(mine, once)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (3, 40), (2, 1025), (0, 8)])
def test_silu_mul(tokens, width, dtype):
    gate_up, _ = random_guarded(tokens, 2 * width, dtype=dtype)
    gate_up *= 8
    assert_near(activation.silu_mul(gate_up), elementwise.silu_mul(gate_up))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (3, 40), (2, 1100)])
def test_silu_mul_fp8_is_silu_mul_then_rows_to_fp8(tokens, width, dtype):
    gate_up, _ = random_guarded(tokens, 2 * width, dtype=dtype)
    gate_up[0] = 0  # a row without a largest number still has a scale
    value, scale = activation.silu_mul_fp8(gate_up)
    their_value, their_scale = quantised.silu_mul_fp8(gate_up)
    torch.testing.assert_close(scale, their_scale, rtol=1e-2, atol=0)
    assert scale[0] == 1
    mine, theirs = value.float() * scale[:, None], their_value.float() * their_scale[:, None]
    torch.testing.assert_close(mine, theirs, rtol=0.14, atol=1e-3)  # one step of e4m3 is 1/8
    assert (mine - theirs).abs().mean() < 1e-3 * theirs.abs().mean() + 1e-6


def test_the_largest_of_a_row_is_the_largest_fp8():
    gate_up = torch.randn(3, 200)
    value, _ = activation.silu_mul_fp8(gate_up)
    assert torch.equal(value.float().abs().amax(1), torch.full((3,), 448.0))


def test_wrong_sizes_are_named():
    x = torch.randn(3, 16)
    with pytest.raises(ValueError, match="weight must be"):
        norms.rms_norm(x, torch.ones(15), EPS)
    with pytest.raises(ValueError, match="residual must be"):
        norms.add_rms_norm(x, x.bfloat16(), torch.ones(16), EPS)
    with pytest.raises(ValueError, match="even number"):
        activation.silu_mul(x[:, :15].contiguous())
