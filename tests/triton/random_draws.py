"""Draws of every kind, for tests of sampling."""

import torch

from ramify.kernels.drawing import Draws


def random_draws(rows, most):
    """Row i has the filters that the bits of i say; 0 and 8 have none. Top-k is below `most`."""
    i = torch.arange(rows)
    return Draws(
        torch.where(i % 16 == 15, 0.0, torch.rand(rows) * 2 + 0.1),
        torch.where(i & 1 > 0, torch.randint(1, most, (rows,)), -1).int(),
        torch.where(i & 2 > 0, torch.rand(rows).double(), 1.0),
        torch.where(i & 4 > 0, torch.rand(rows) * 0.3, 0.0),
        torch.rand(rows).double(),
    )
