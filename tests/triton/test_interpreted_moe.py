"""Mixture of experts in Triton against its torch twin: routing, blocks, products, sum."""

import pytest
import torch
from guards import inside

from ramify.kernels.reference import moe as twin
from ramify.kernels.triton import moe

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(("tokens", "n_experts", "top"), [(1, 4, 1), (5, 6, 6), (600, 60, 4)])
def test_routing(tokens, n_experts, top, renormalise):
    logits = inside(torch.randn(tokens, n_experts) * 2)
    logits[0, :4] = 1.0  # equals
    shares, experts = moe.route_experts(logits, top, renormalise)
    their_shares, their_experts = twin.route_experts(logits, top, renormalise)
    assert torch.equal(experts, their_experts)
    torch.testing.assert_close(shares, their_shares, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("tokens", "n_experts", "top"), [(1, 8, 2), (7, 3, 2), (700, 5, 2)])
def test_assignments_are_sorted_into_blocks_of_one_expert(tokens, n_experts, top):
    """Expert 1 gets nothing, and has no block; each assignment is somewhere once, in order."""
    experts = torch.stack([torch.randperm(n_experts)[:top] for _ in range(tokens)]).int()
    experts[experts == 1] = 0
    size, bm = tokens * top, 16
    ordered, owners = moe.sort_by_expert(experts, n_experts, bm)
    used = int((owners >= 0).sum())
    assert (owners[used:] == -1).all()
    found = {expert: [] for expert in range(n_experts)}
    for expert, block in zip(owners.tolist(), ordered.view(-1, bm).tolist(), strict=True):
        if expert >= 0:
            rows = [a for a in block if a != size]
            assert rows, "a block without a row"
            assert block == rows + [size] * (bm - len(rows)), "spare rows come last"
            found[expert] += rows
    for expert, rows in found.items():
        assert rows == (experts.flatten() == expert).nonzero().flatten().tolist()


def arguments(tokens, n_experts, top, channels, middle, dtype):
    shares, experts = twin.route_experts(torch.randn(tokens, n_experts), top, True)
    return (
        inside(torch.randn(tokens, channels).to(dtype)),
        inside(torch.randn(n_experts, 2 * middle, channels).to(dtype)),
        inside(torch.randn(n_experts, channels, middle).to(dtype)),
        shares,
        experts,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", [(1, 4, 2, 40, 24), (9, 3, 2, 72, 100), (20, 2, 1, 16, 8)])
def test_the_mlp(sizes, dtype):
    args = arguments(*sizes, dtype)
    mine, theirs = moe.moe_mlp(*args), twin.moe_mlp(*args)
    assert mine.dtype is dtype
    tolerance = TOLERANCE[dtype] * float(theirs.abs().max())
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


def test_no_tokens():
    x, gate_up, down, shares, experts = arguments(2, 3, 2, 8, 8, torch.float32)
    assert moe.moe_mlp(x[:0], gate_up, down, shares[:0], experts[:0]).shape == (0, 8)
    assert moe.route_experts(torch.empty(0, 4), 2, True)[0].shape == (0, 2)
