"""Mixture of experts on a GPU, at the sizes of real layers, against its torch twin."""

import random

import pytest
import torch
from place import DEVICE, assert_near, here_only, inside, sized

from ramify.kernels.reference import moe as twin

pytestmark = here_only
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def check(tokens, n_experts, top, channels, middle, dtype, *, renormalise=True):
    from ramify.kernels.triton import moe

    x = torch.randn(tokens, channels).to(dtype)
    gate_up = (torch.randn(n_experts, 2 * middle, channels) / 20).to(dtype)
    down = (torch.randn(n_experts, channels, middle) / 20).to(dtype)
    logits = torch.randn(tokens, n_experts)
    shares, experts = twin.route_experts(logits, top, renormalise)
    mine_shares, mine_experts = moe.route_experts(inside(logits), top, renormalise)
    assert torch.equal(mine_experts.cpu(), experts)
    torch.testing.assert_close(mine_shares.cpu(), shares, rtol=1e-4, atol=1e-6)
    mine = moe.moe_mlp(inside(x), gate_up.to(DEVICE), down.to(DEVICE), mine_shares, mine_experts)
    theirs = twin.moe_mlp(x, gate_up, down, shares, experts)
    assert_near(mine, theirs, 1e-4 if dtype is FP32 else 2e-2)


@pytest.mark.parametrize("tokens", sized([1, 60, 700], [1, 6]))
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_the_mlp(tokens, dtype):
    torch.manual_seed(0)
    check(tokens, *sized((16, 4, 512, 200), (5, 2, 64, 40)), dtype)


@pytest.mark.parametrize("seed", range(sized(10, 2)))
def test_random_sizes(seed):
    torch.manual_seed(seed)
    draw = random.Random(seed)
    n_experts = draw.randint(2, sized(130, 6))
    check(
        draw.randint(1, sized(200, 6)),
        n_experts,
        draw.randint(1, min(n_experts, 8)),
        8 * draw.randint(1, sized(40, 6)),
        8 * draw.randint(1, sized(30, 4)),
        draw.choice([BF16, FP16, FP32]),
        renormalise=draw.random() < 0.5,
    )


@pytest.mark.parametrize("tokens", sized([1, 300], [3]))
def test_all_tokens_with_one_expert(tokens):
    """The most that a block list can be out of balance."""
    from ramify.kernels.triton import moe

    torch.manual_seed(0)
    n_experts, channels, middle = sized((64, 256, 128), (4, 32, 16))
    x = torch.randn(tokens, channels).to(BF16)
    gate_up = (torch.randn(n_experts, 2 * middle, channels) / 20).to(BF16)
    down = (torch.randn(n_experts, channels, middle) / 20).to(BF16)
    shares = torch.ones(tokens, 1)
    experts = torch.full((tokens, 1), n_experts - 1, dtype=torch.int32)
    on_place = [t.to(DEVICE) for t in (x, gate_up, down, shares, experts)]
    assert_near(moe.moe_mlp(*on_place), twin.moe_mlp(x, gate_up, down, shares, experts), 2e-2)
