"""The reference ops give on a GPU what they give on the CPU: they are the oracle of both."""

import pytest
import torch

from ramify.kernels.dispatch import load_ops
from ramify.kernels.work_list import WorkList, make_work_list

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]

HEADS, KV_HEADS, DIM, PAGE, PAGES = 6, 2, 64, 16, 40


def on_gpu(value):
    """A tensor, or a work list of tensors, on the GPU."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, WorkList):
        fields = {name: on_gpu(item) for name, item in vars(value).items()}
        return WorkList(**fields)
    return value


def close(op, *args):
    """Call `op` on both devices and compare what it returns."""
    ours = op(*[on_gpu(a.clone() if isinstance(a, torch.Tensor) else a) for a in args])
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
