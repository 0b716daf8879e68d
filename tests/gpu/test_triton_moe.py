"""Mixture of experts on a GPU, at the sizes of real layers, against its torch twin."""

import pytest
import torch

from ramify.kernels.reference import moe as twin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


@pytest.mark.parametrize("tokens", [1, 60, 700])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_mlp(tokens, dtype):
    from ramify.kernels.triton import moe

    torch.manual_seed(0)
    n_experts, top, channels, middle = 16, 4, 512, 200
    x = torch.randn(tokens, channels).to(dtype)
    gate_up = (torch.randn(n_experts, 2 * middle, channels) / 20).to(dtype)
    down = (torch.randn(n_experts, channels, middle) / 20).to(dtype)
    logits = torch.randn(tokens, n_experts)
    shares, experts = twin.route_experts(logits, top, True)
    mine_shares, mine_experts = moe.route_experts(logits.cuda(), top, True)
    assert torch.equal(mine_experts.cpu(), experts)
    torch.testing.assert_close(mine_shares.cpu(), shares, rtol=1e-4, atol=1e-6)
    mine = moe.moe_mlp(x.cuda(), gate_up.cuda(), down.cuda(), mine_shares, mine_experts)
    theirs = twin.moe_mlp(x, gate_up, down, shares, experts)
    tolerance = (1e-4 if dtype is torch.float32 else 2e-2) * float(theirs.abs().max())
    torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=tolerance)
