"""The mixture-of-experts MLP in plain torch against a loop over tokens, in fp64."""

import pytest
import torch

from ramify.kernels.reference.moe import moe_mlp, route_experts


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("renormalise", [False, True])
def test_a_token_goes_to_its_likeliest_experts(renormalise):
    logits = torch.randn(20, 7)
    shares, experts = route_experts(logits, 3, renormalise)
    assert (shares.dtype, experts.dtype) == (torch.float32, torch.int32)
    for token in range(20):
        probs = logits[token].double().softmax(-1).tolist()
        ranked = sorted(range(7), key=lambda e: -probs[e])[:3]
        assert experts[token].tolist() == ranked
        whole = sum(probs[e] for e in ranked) if renormalise else 1.0
        assert shares[token].tolist() == pytest.approx([probs[e] / whole for e in ranked])


def test_equal_experts_come_lowest_first():
    _, experts = route_experts(torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]]), 4, False)
    assert experts.tolist() == [[1, 2, 4, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mlp_is_a_loop_over_tokens_and_their_experts(dtype):
    n_experts, channels, middle = 5, 16, 24
    x = torch.randn(9, channels).to(dtype)
    gate_up = torch.randn(n_experts, 2 * middle, channels).to(dtype)
    down = torch.randn(n_experts, channels, middle).to(dtype)
    shares, experts = route_experts(torch.randn(9, n_experts), 2, True)
    out = moe_mlp(x, gate_up, down, shares, experts)
    assert out.dtype is dtype
    for token in range(9):
        expected = torch.zeros(channels, dtype=torch.float64)
        for share, expert in zip(shares[token], experts[token], strict=True):
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            inside = gate * torch.sigmoid(gate) * up
            expected += share.double() * (down[expert].double() @ inside)
        tolerance = (1e-5 if dtype is torch.float32 else 2e-2) * float(expected.abs().max())
        torch.testing.assert_close(out[token].double(), expected, rtol=0, atol=tolerance)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="1 to 4 experts"):
        route_experts(torch.randn(2, 4), 5, False)
    x, gate_up, down = torch.randn(2, 8), torch.randn(3, 12, 8), torch.randn(3, 8, 6)
    shares, experts = route_experts(torch.randn(2, 3), 2, False)
    with pytest.raises(ValueError, match="down must be"):
        moe_mlp(x, gate_up, down[:2], shares, experts)
    with pytest.raises(ValueError, match="experts must be"):
        moe_mlp(x, gate_up, down, shares, experts.long())
