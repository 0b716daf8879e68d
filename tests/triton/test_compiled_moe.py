"""Mixture of experts compiles without spills, in six launches and the activation's."""

import pytest
import torch
from compile_only import ARCHITECTURES, recording, table

from ramify.kernels.triton import moe

LAUNCHES = ["count", "place", "product", "silu_mul", "product", "weighted_sum"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tokens", [1, 500, 2000])
def test_the_mlp(tokens, arch):
    n_experts, top, channels, middle = 64, 4, 1024, 512
    with recording(arch) as launches:
        moe.moe_mlp(
            torch.zeros(tokens, channels).bfloat16(),
            torch.zeros(n_experts, 2 * middle, channels).bfloat16(),
            torch.zeros(n_experts, channels, middle).bfloat16(),
            torch.zeros(tokens, top),
            torch.zeros(tokens, top, dtype=torch.int32),
        )
    print("\n" + table(launches))
    assert [launch.name.removesuffix("_kernel") for launch in launches] == LAUNCHES
    assert all(launch.spills == 0 for launch in launches)
    if arch == 90 and tokens > 1000:
        assert launches[2].count("HGMMA") > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("n_experts", "top"), [(8, 2), (128, 8), (512, 10)])
def test_routing_is_one_launch(n_experts, top, arch):
    with recording(arch) as launches:
        moe.route_experts(torch.zeros(500, n_experts).bfloat16(), top, True)
    print("\n" + table(launches))
    (launch,) = launches
    assert launch.spills == 0
