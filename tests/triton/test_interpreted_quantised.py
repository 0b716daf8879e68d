"""Quantised linears in Triton against their torch twins, at ragged sizes and between NaN."""

import pytest
import torch
from guards import inside

from ramify.kernels.quantised_linear import FP8, Fp8Blocks, Fp8Rows, Int4Linear
from ramify.kernels.reference import quantised as twin
from ramify.kernels.triton import fp8, w4a16

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def assert_near(mine, theirs):
    assert mine.dtype is theirs.dtype
    tolerance = TOLERANCE[theirs.dtype] * float(theirs.abs().max())
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


def int4(width, out, group, dtype, bias=True, order=None):
    groups = width // group
    return Int4Linear(
        torch.randint(-(2**31), 2**31, (width // 8, out)).int(),
        inside(torch.rand(groups, out).to(dtype)),
        torch.randint(0, 16, (groups, out)).to(torch.uint8),
        inside(torch.randn(out).to(dtype)) if bias else None,
        order,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("rows", "width", "out", "group"), [(1, 64, 40, 32), (3, 200, 72, 40), (20, 128, 130, 128)]
)
def test_int4(rows, width, out, group, dtype):
    packed = int4(width, out, group, dtype)
    x = inside(torch.randn(rows, width).to(dtype))
    assert_near(w4a16.linear_int4(x, packed), twin.linear_int4(x, packed))


def test_int4_split_over_many_programs_adds_the_bias_once():
    packed = int4(512, 24, 64, torch.float32)
    x = torch.zeros(2, 512)
    assert torch.equal(w4a16.linear_int4(x, packed), packed.bias.expand(2, -1))
    x = torch.randn(2, 512)
    first = w4a16.linear_int4(x, packed)
    assert_near(first, twin.linear_int4(x, packed))
    assert torch.equal(w4a16.linear_int4(x, packed), first)


def test_int4_inputs_are_moved_to_their_weights():
    packed = int4(64, 16, 32, torch.float32, order=torch.randperm(64))
    x = torch.randn(2, 64)
    assert_near(w4a16.linear_int4(x, packed), twin.linear_int4(x, packed))


@pytest.mark.parametrize("bias", [False, True])
def test_int4_with_many_rows_widens_the_weight(bias):
    packed = int4(72, 136, 24, torch.bfloat16, bias)
    mine = w4a16.dequantise_int4(packed, torch.bfloat16)
    assert torch.equal(mine, twin.dequantise_int4(packed, torch.bfloat16))
    x = torch.randn(w4a16.DEQUANTISE_FROM, 72).bfloat16()
    assert_near(w4a16.linear_int4(x, packed), twin.linear_int4(x, packed))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "width"), [(1, 7), (3, 128), (2, 1100)])
def test_activations_as_fp8(rows, width, dtype):
    x = inside((torch.randn(rows, width) * 3).to(dtype))
    x[0] = 0
    for mine, theirs in ((fp8.quantise_rows, twin.quantise_rows),
                         (fp8.quantise_groups, twin.quantise_groups)):  # fmt: skip
        for ours, expected in zip(mine(x), theirs(x), strict=True):
            assert ours.shape == expected.shape
            assert torch.equal(ours.float(), expected.float())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "width", "out"), [(1, 128, 16), (3, 200, 130), (17, 40, 33)])
def test_fp8_blocks(rows, width, out, dtype):
    weight = inside(torch.randn(out, width).to(FP8))
    scale = torch.rand(-(-out // 128), -(-width // 128)) + 0.5
    packed = Fp8Blocks(weight, scale, torch.randn(out).to(dtype))
    x = inside(torch.randn(rows, width).to(dtype))
    assert_near(fp8.linear_fp8_blocks(x, packed), twin.linear_fp8_blocks(x, packed))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "width", "out"), [(2, 64, 48), (3, 200, 33)])
@pytest.mark.parametrize("bias", [False, True])
def test_fp8_rows(rows, width, out, bias, dtype):
    """bf16 with sides of a multiple of 16 is the vendor's product; the rest is ours."""
    weight, weight_scale = twin.quantise_rows(torch.randn(out, width))
    packed = Fp8Rows(weight, weight_scale, torch.randn(out).to(dtype) if bias else None)
    value, scale = twin.quantise_rows(torch.randn(rows, width).to(dtype))
    mine = fp8.linear_fp8_rows(value, scale, packed, dtype)
    assert_near(mine, twin.linear_fp8_rows(value, scale, packed, dtype))


def test_nothing_in_is_nothing_out():
    packed = int4(64, 16, 32, torch.float32)
    assert w4a16.linear_int4(torch.empty(0, 64), packed).shape == (0, 16)
    blocks = Fp8Blocks(torch.zeros(16, 64).to(FP8), torch.ones(1, 1), None)
    assert fp8.linear_fp8_blocks(torch.empty(0, 64), blocks).shape == (0, 16)
    rows = Fp8Rows(torch.zeros(16, 64).to(FP8), torch.ones(16), None)
    value, scale = fp8.quantise_rows(torch.empty(0, 64))
    assert fp8.linear_fp8_rows(value, scale, rows, torch.bfloat16).shape == (0, 16)
