"""Norms and activation on a GPU against their torch twins on the CPU, between guards."""

import random

import pytest
import torch
from guards import untouched
from place import DEVICE, guarded, here_only, inside, needs_fp8, on_a_gpu, sized

from ramify.kernels.reference import elementwise, quantised

pytestmark = here_only
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SIZES = sized([(1, 576), (33, 4096), (5, 16384), (4097, 64)], [(1, 57), (5, 96)])
MLPS = sized([(1, 1536), (33, 14336), (3, 1001)], [(1, 40), (3, 1101)])


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def close(mine, twin):
    tolerance = TOLERANCE[twin.dtype]
    torch.testing.assert_close(mine.cpu(), twin, atol=tolerance, rtol=tolerance)


def check_norms(tokens, width, dtype):
    from ramify.kernels.triton import norms

    x, residual = torch.randn(tokens, width).to(dtype), torch.randn(tokens, width).to(dtype)
    weight = torch.randn(width).to(dtype)
    mine_residual, memory = guarded(residual)
    mine = norms.add_rms_norm(inside(x), mine_residual, inside(weight), 1e-5)
    twin = elementwise.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(mine_residual.cpu(), residual)
    assert untouched(memory)
    close(mine, twin)
    close(norms.rms_norm(inside(x), inside(weight), 1e-5), elementwise.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "width"), SIZES)
def test_norms(tokens, width, dtype):
    check_norms(tokens, width, dtype)


def check_silu(tokens, width, dtype):
    from ramify.kernels.triton import activation

    gate_up = (torch.randn(tokens, 2 * width) * 4).to(dtype)
    close(activation.silu_mul(inside(gate_up)), elementwise.silu_mul(gate_up))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "width"), MLPS)
def test_silu_mul(tokens, width, dtype):
    check_silu(tokens, width, dtype)


@pytest.mark.parametrize("check", [check_norms, check_silu])
@pytest.mark.parametrize("seed", range(sized(12, 3)))
def test_random_sizes(seed, check):
    draw = random.Random(seed)
    tokens, width = draw.randint(1, sized(400, 5)), draw.randint(1, sized(9000, 300))
    check(tokens, width, draw.choice([*TOLERANCE]))


@needs_fp8
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "width"), sized([(9, 3000), (1, 14336), (70, 1001)], [(2, 60)]))
def test_silu_mul_fp8(tokens, width, dtype):
    from ramify.kernels.triton import activation

    gate_up = torch.randn(tokens, 2 * width).to(dtype)
    value, scale = (part.cpu() for part in activation.silu_mul_fp8(inside(gate_up)))
    their_value, their_scale = quantised.silu_mul_fp8(gate_up)
    torch.testing.assert_close(scale, their_scale, rtol=1e-2, atol=0)
    mine, theirs = value.float() * scale[:, None], their_value.float() * their_scale[:, None]
    torch.testing.assert_close(mine, theirs, rtol=0.14, atol=1e-3)


@needs_fp8
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "width"), sized([(33, 4096), (5, 1100), (1, 7)], [(3, 130)]))
def test_activations_as_fp8(tokens, width, dtype):
    from ramify.kernels.triton import fp8

    x = (torch.randn(tokens, width) * 3).to(dtype)
    x[0] = 0
    for name in ("quantise_rows", "quantise_groups"):
        mine, twin = getattr(fp8, name)(inside(x)), getattr(quantised, name)(x)
        for ours, expected in zip(mine, twin, strict=True):
            assert ours.shape == expected.shape
            assert torch.equal(ours.cpu().float(), expected.float()), name


@on_a_gpu
def test_a_tensor_on_the_cpu_is_refused():
    """By an error, not by reading what an address means elsewhere."""
    from ramify.kernels.triton import activation, norms

    x, weight = torch.randn(4, 64), torch.randn(64)
    with pytest.raises(ValueError, match="cpu tensor"):
        norms.rms_norm(x.to(DEVICE), weight, 1e-5)
    with pytest.raises(ValueError, match="cpu tensor"):
        activation.silu_mul(x)
    torch.cuda.synchronize()
