"""Norms and activation on a GPU against their torch twins on the CPU."""

import pytest
import torch

from ramify.kernels.reference import elementwise, quantised

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "width"), [(1, 576), (33, 4096), (5, 16384), (4097, 64)])
def test_norms(tokens, width, dtype):
    from ramify.kernels.triton import norms

    torch.manual_seed(0)
    x, residual = torch.randn(tokens, width).to(dtype), torch.randn(tokens, width).to(dtype)
    weight = torch.randn(width).to(dtype)
    on_gpu = residual.cuda()
    mine = norms.add_rms_norm(x.cuda(), on_gpu, weight.cuda(), 1e-5)
    twin = elementwise.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(on_gpu.cpu(), residual)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(mine.cpu(), twin, atol=tolerance, rtol=tolerance)
    mine = norms.rms_norm(x.cuda(), weight.cuda(), 1e-5)
    twin = elementwise.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(mine.cpu(), twin, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "width"), [(1, 1536), (33, 14336), (3, 1001)])
def test_silu_mul(tokens, width, dtype):
    from ramify.kernels.triton import activation

    torch.manual_seed(0)
    gate_up = (torch.randn(tokens, 2 * width) * 4).to(dtype)
    tolerance = TOLERANCE[dtype]
    mine, twin = activation.silu_mul(gate_up.cuda()).cpu(), elementwise.silu_mul(gate_up)
    torch.testing.assert_close(mine, twin, atol=tolerance, rtol=tolerance)


def test_silu_mul_fp8():
    from ramify.kernels.triton import activation

    torch.manual_seed(0)
    gate_up = torch.randn(9, 2 * 3000).bfloat16()
    value, scale = (part.cpu() for part in activation.silu_mul_fp8(gate_up.cuda()))
    their_value, their_scale = quantised.silu_mul_fp8(gate_up)
    torch.testing.assert_close(scale, their_scale, rtol=1e-2, atol=0)
    mine, theirs = value.float() * scale[:, None], their_value.float() * their_scale[:, None]
    torch.testing.assert_close(mine, theirs, rtol=0.14, atol=1e-3)
