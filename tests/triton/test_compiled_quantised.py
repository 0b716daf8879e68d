"""Quantised linears compile without spills; decode splits K over enough programs."""

import pytest
import torch
from compile_only import ARCHITECTURES, recording, table

from ramify.kernels.quantised_linear import FP8, Fp8Blocks, Fp8Rows, Int4Linear
from ramify.kernels.triton import fp8, w4a16

WITH_FP8 = [90, 100]  # the A100 has no e4m3


def int4(width, out, group=128):
    return Int4Linear(
        torch.zeros(width // 8, out, dtype=torch.int32),
        torch.zeros(width // group, out, dtype=torch.bfloat16),
        torch.zeros(width // group, out, dtype=torch.uint8),
        torch.zeros(out, dtype=torch.bfloat16),
    )


def compiled(arch, op, *args):
    with recording(arch) as launches:
        op(*args)
    print("\n" + table(launches))
    assert launches
    assert all(launch.spills == 0 for launch in launches)
    return launches


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("rows", [1, 32, 64])
def test_int4_product(rows, arch):
    launches = compiled(
        arch, w4a16.linear_int4, torch.zeros(rows, 4096).bfloat16(), int4(4096, 4096)
    )
    product = launches[0].grid
    assert launches[1].name == "add_splits_kernel"
    assert 128 <= product[0] * product[1] * product[2] <= 264 + 64


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_int4_to_numbers(arch):
    compiled(arch, w4a16.dequantise_int4, int4(4096, 4096), torch.bfloat16)


@pytest.mark.parametrize("arch", WITH_FP8)
@pytest.mark.parametrize("rows", [1, 64, 300])
def test_fp8_blocks(rows, arch):
    packed = Fp8Blocks(torch.zeros(4096, 4096).to(FP8), torch.ones(32, 32), None)
    launches = compiled(arch, fp8.linear_fp8_blocks, torch.zeros(rows, 4096).bfloat16(), packed)
    assert [launch.name for launch in launches] == ["quantise_groups_kernel", "product_kernel"]
    if arch == 90 and rows > 1:
        assert launches[1].count("QGMMA") > 0


@pytest.mark.parametrize("arch", WITH_FP8)
def test_fp8_rows(arch):
    packed = Fp8Rows(torch.zeros(4096, 4096).to(FP8), torch.ones(4096), None)
    value, scale = torch.zeros(64, 4096).to(FP8), torch.ones(64)
    compiled(arch, fp8.linear_fp8_rows, value, scale, packed, torch.float16)
    compiled(arch, fp8.quantise_rows, torch.zeros(64, 4096).bfloat16())
