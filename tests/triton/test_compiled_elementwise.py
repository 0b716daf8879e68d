"""Norms and activation compile for every GPU generation, keep to registers, and launch once."""

import pytest
import torch
from compile_only import ARCHITECTURES, recording, table

from ramify.kernels.triton import activation, norms


def only(launches):
    print("\n" + table(launches))
    (launch,) = launches
    assert launch.spills == 0
    return launch


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [576, 4096, 8192, 16384])
def test_norms(width, arch):
    x, weight = torch.zeros(7, width).bfloat16(), torch.ones(width).bfloat16()
    with recording(arch) as launches:
        norms.add_rms_norm(x, x.clone(), weight, 1e-5)
    assert only(launches).grid == (7, 1, 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_silu_mul(arch):
    with recording(arch) as launches:
        activation.silu_mul(torch.zeros(7, 2 * 14336).bfloat16())
    assert only(launches).grid == (7, 14, 1)


@pytest.mark.parametrize("arch", [90, 100])  # the A100 has no e4m3
def test_silu_mul_fp8(arch):
    with recording(arch) as launches:
        activation.silu_mul_fp8(torch.zeros(7, 2 * 14336).bfloat16())
    assert only(launches).grid == (7, 1, 1)
