"""Quantised linears on a GPU, at the sizes of real layers, against their torch twins."""

import pytest
import torch

from ramify.kernels.quantised_linear import FP8, Fp8Blocks, Fp8Rows, Int4Linear
from ramify.kernels.reference import quantised as twin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]
needs_fp8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
    reason="this GPU has no e4m3",
)


def on_gpu(record):
    fields = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in vars(record).items()}
    return type(record)(**fields)


def assert_near(mine, theirs, tolerance=2e-2):
    limit = tolerance * float(theirs.abs().max())
    torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=limit)


@pytest.mark.parametrize("rows", [1, 5, 33, 200, 600])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_int4(rows, dtype):
    from ramify.kernels.triton.w4a16 import linear_int4

    torch.manual_seed(0)
    width, out, group = 2048, 1000, 128
    packed = Int4Linear(
        torch.randint(-(2**31), 2**31, (width // 8, out)).int(),
        torch.rand(width // group, out).to(dtype),
        torch.randint(0, 16, (width // group, out)).to(torch.uint8),
        torch.randn(out).to(dtype),
    )
    x = torch.randn(rows, width).to(dtype)
    assert_near(linear_int4(x.cuda(), on_gpu(packed)), twin.linear_int4(x, packed))


@needs_fp8
@pytest.mark.parametrize("rows", [1, 33, 300])
def test_fp8_blocks(rows):
    from ramify.kernels.triton.fp8 import linear_fp8_blocks

    torch.manual_seed(0)
    packed = Fp8Blocks(torch.randn(1000, 1100).to(FP8), torch.rand(8, 9) + 0.5, None)
    x = torch.randn(rows, 1100).bfloat16()
    assert_near(linear_fp8_blocks(x.cuda(), on_gpu(packed)), twin.linear_fp8_blocks(x, packed))


@needs_fp8
@pytest.mark.parametrize(("rows", "width", "out"), [(1, 1024, 512), (33, 1100, 500)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp8_rows(rows, width, out, dtype):
    from ramify.kernels.triton.fp8 import linear_fp8_rows

    torch.manual_seed(0)
    weight, scale = twin.quantise_rows(torch.randn(out, width))
    packed = Fp8Rows(weight, scale, torch.randn(out).to(dtype))
    value, its_scale = twin.quantise_rows(torch.randn(rows, width))
    mine = linear_fp8_rows(value.cuda(), its_scale.cuda(), on_gpu(packed), dtype)
    assert_near(mine, twin.linear_fp8_rows(value, its_scale, packed, dtype))
