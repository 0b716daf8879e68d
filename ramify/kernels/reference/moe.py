"""A mixture-of-experts MLP in plain torch: which experts a token goes to, and what they make of it.

E   experts     X   experts that a token goes to
"""

import torch
from torch import Tensor

from ramify.kernels.reference.elementwise import silu_mul
from ramify.kernels.shapes import check_dense, check_float


def route_experts(logits: Tensor, top: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The `top` experts of the largest softmax, the lower one first among equals.

    logits [T, E] -> shares [T, X] fp32, experts [T, X] int32: the likeliest first
    """
    check_route(logits, top)
    shares, experts = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    shares, experts = shares[:, :top], experts[:, :top].int()
    if renormalise:
        shares = shares / shares.sum(-1, keepdim=True)
    return shares.contiguous(), experts.contiguous()


def moe_mlp(x: Tensor, gate_up: Tensor, down: Tensor, shares: Tensor, experts: Tensor) -> Tensor:
    """The sum over a token's experts of share * down(silu_mul(gate_up(x))).   [T, C] -> [T, C]

    Each expert's output is rounded to the type of x; the sum is in fp32.
    """
    check_moe(x, gate_up, down, shares, experts)
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for place in range(experts.shape[1]):
        for expert in range(len(gate_up)):
            rows = (experts[:, place] == expert).nonzero().flatten()
            middle = silu_mul(_product(x[rows], gate_up[expert]))
            y[rows] += shares[rows, place, None] * _product(middle, down[expert]).float()
    return y.to(x.dtype)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return (x.float() @ weight.float().T).to(x.dtype)


def check_route(logits: Tensor, top: int) -> None:
    """Raise ValueError unless a token can go to so many of the experts."""
    check_float("logits", logits, 2)
    if not 1 <= top <= logits.shape[1]:
        raise ValueError(f"a token goes to 1 to {logits.shape[1]} experts, got {top}")


def check_moe(x: Tensor, gate_up: Tensor, down: Tensor, shares: Tensor, experts: Tensor) -> None:
    """Raise ValueError unless the sizes and types fit each other."""
    check_float("x", x, 2)
    check_float("gate_up", gate_up, 3)
    if shares.dim() != 2:
        raise ValueError(f"shares must have 2 axes, got {shares.dim()}")
    (tokens, channels), n_experts, middle = x.shape, len(gate_up), gate_up.shape[1] // 2
    check_dense("gate_up", gate_up, x.dtype, n_experts, 2 * middle, channels)
    check_dense("down", down, x.dtype, n_experts, channels, middle)
    check_dense("shares", shares, torch.float32, tokens, shares.shape[1])
    check_dense("experts", experts, torch.int32, tokens, shares.shape[1])
