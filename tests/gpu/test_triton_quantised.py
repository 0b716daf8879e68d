"""Quantised linears on a GPU, at the sizes of real layers, against their torch twins."""

import random

import pytest
import torch
from place import assert_near, here_only, inside, needs_fp8, sized, there

from ramify.kernels.quantised_linear import FP8, Fp8Blocks, Fp8Rows, Int4Linear
from ramify.kernels.reference import quantised as twin

pytestmark = here_only
BF16, FP16 = torch.bfloat16, torch.float16
NEAR = 2e-2


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def check_int4(rows, width, out, group, dtype, *, bias=True, order=None):
    from ramify.kernels.triton.w4a16 import linear_int4

    packed = Int4Linear(
        torch.randint(-(2**31), 2**31, (width // 8, out)).int(),
        torch.rand(width // group, out).to(dtype),
        torch.randint(0, 16, (width // group, out)).to(torch.uint8),
        torch.randn(out).to(dtype) if bias else None,
        order,
    )
    x = torch.randn(rows, width).to(dtype)
    assert_near(linear_int4(inside(x), there(packed)), twin.linear_int4(x, packed), NEAR)


@pytest.mark.parametrize("rows", sized([1, 5, 33, 200, 600], [1, 5]))
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_int4(rows, dtype):
    check_int4(rows, *sized((2048, 1000, 128), (128, 40, 32)), dtype)


def test_int4_with_its_inputs_in_another_order():
    width = sized(1024, 64)
    check_int4(7, width, 136, 32, BF16, bias=False, order=torch.randperm(width))


@pytest.mark.parametrize("seed", range(sized(12, 2)))
def test_int4_of_random_sizes(seed):
    draw = random.Random(seed)
    group = draw.choice([32, 64, 128])
    check_int4(
        draw.randint(1, sized(300, 5)),
        group * draw.randint(1, sized(20, 2)),
        8 * draw.randint(1, sized(200, 5)),
        group,
        draw.choice([BF16, FP16]),
        bias=draw.random() < 0.5,
    )


def check_blocks(rows, width, out, dtype, *, bias=False):
    from ramify.kernels.triton.fp8 import linear_fp8_blocks

    scale = torch.rand(-(-out // 128), -(-width // 128)) + 0.5
    some = torch.randn(out).to(dtype) if bias else None
    packed = Fp8Blocks(torch.randn(out, width).to(FP8), scale, some)
    x = torch.randn(rows, width).to(dtype)
    mine = linear_fp8_blocks(inside(x), there(packed))
    assert_near(mine, twin.linear_fp8_blocks(x, packed), NEAR)


@needs_fp8
@pytest.mark.parametrize("rows", sized([1, 33, 300], [1, 5]))
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_fp8_blocks(rows, dtype):
    check_blocks(rows, *sized((1100, 1000), (200, 130)), dtype)


@needs_fp8
@pytest.mark.parametrize("seed", range(sized(10, 2)))
def test_fp8_blocks_of_random_sizes(seed):
    draw = random.Random(seed)
    check_blocks(
        draw.randint(1, sized(300, 4)),
        draw.randint(1, sized(2000, 200)),
        draw.randint(1, sized(1500, 60)),
        draw.choice([BF16, FP16]),
        bias=draw.random() < 0.5,
    )


def check_rows(rows, width, out, dtype, *, bias=True):
    """bf16 with sides of a multiple of 16 is the vendor's product; the rest is ours."""
    from ramify.kernels.triton.fp8 import linear_fp8_rows

    weight, scale = twin.quantise_rows(torch.randn(out, width))
    packed = Fp8Rows(weight, scale, torch.randn(out).to(dtype) if bias else None)
    value, its_scale = twin.quantise_rows(torch.randn(rows, width))
    mine = linear_fp8_rows(inside(value), inside(its_scale), there(packed), dtype)
    assert_near(mine, twin.linear_fp8_rows(value, its_scale, packed, dtype), NEAR)


@needs_fp8
@pytest.mark.parametrize(
    ("rows", "width", "out"), sized([(1, 1024, 512), (33, 1100, 500)], [(2, 64, 48), (3, 200, 33)])
)
@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("bias", [False, True])
def test_fp8_rows(rows, width, out, dtype, bias):
    check_rows(rows, width, out, dtype, bias=bias)


@needs_fp8
@pytest.mark.parametrize("seed", range(sized(10, 2)))
def test_fp8_rows_of_random_sizes(seed):
    draw = random.Random(seed)
    multiple = draw.choice([1, 16])  # of both sides
    check_rows(
        draw.randint(1, sized(300, 4)),
        multiple * draw.randint(1, sized(100, 10)),
        multiple * draw.randint(1, sized(100, 8)),
        draw.choice([BF16, FP16]),
    )
