"""The reference ops give on a GPU what they give on the CPU: they are the oracle of both."""

import pytest
import torch
from place import DEVICE, here_only, there

from ramify.kernels.dispatch import load_ops
from ramify.kernels.drawing import Draws
from ramify.kernels.work_list import make_work_list

pytestmark = here_only

HEADS, KV_HEADS, DIM, PAGE, PAGES = 6, 2, 64, 16, 40


def close(op, *args):
    """Call `op` on both devices and compare what it returns."""
    ours = op(*[there(a.clone() if isinstance(a, torch.Tensor) else a) for a in args])
    expected = op(*args)
    torch.testing.assert_close(ours.cpu(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_elementwise_ops(dtype):
    ops = load_ops("reference")
    x, weight = torch.randn(33, 96).to(dtype), torch.randn(96).to(dtype)
    close(ops.rms_norm, x, weight, 1e-5)
    close(ops.add_rms_norm, x, torch.randn(33, 96).to(dtype), weight, 1e-5)
    close(ops.silu_mul, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_paged_attention(dtype):
    ops = load_ops("reference")
    pools = [torch.randn(PAGES, KV_HEADS, PAGE, DIM).to(dtype) for _ in range(2)]
    pages = torch.randperm(PAGES).tolist()
    positions = [100, 101, 102, 300]  # a chunk of three rows, and one decode row of another request
    items = [(0, 3, 0, 0, 103, -1), (3, 1, 10, 0, 301, -1)]
    work = make_work_list(items, [0, 1, 2, 3], positions, pages)
    close(ops.paged_attention, torch.randn(4, HEADS, DIM).to(dtype), *pools, work, DIM**-0.5)


def test_drawing():
    """Temperature 0, and filters: the tokens of the CPU, up to a boundary that is rounded away."""
    torch.manual_seed(0)
    rows = 16
    i = torch.arange(rows)
    draws = Draws(
        torch.where(i % 4 == 3, 0.0, 0.9),
        torch.where(i & 1 > 0, 20, -1).int(),
        torch.where(i & 2 > 0, 0.8, 1.0).double(),
        torch.where(i & 4 > 0, 0.1, 0.0),
        torch.rand(rows).double(),
    )
    logits, sample = torch.randn(rows, 2000) * 3, load_ops("reference").sample
    ours = sample(logits.to(DEVICE), there(draws)).cpu()
    assert (ours != sample(logits, draws)).sum() <= 1
