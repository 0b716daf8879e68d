"""Adjusting and drawing compile for every GPU generation, in two launches each, without spills."""

import pytest
import torch
from compile_only import ARCHITECTURES, recording, table

from ramify.kernels.drawing import Adjustments, Draws
from ramify.kernels.triton import logits as logits_ops
from ramify.kernels.triton.sampling import sample

ROWS = 3


def adjustments(width, rows, biases):
    return Adjustments(
        torch.zeros(rows, dtype=torch.int64),
        *(torch.zeros(rows, dtype=torch.int32) for _ in range(2)),
        *(torch.ones(rows) for _ in range(3)),
        torch.zeros(4, width, dtype=torch.int32),
        torch.zeros(2, -(-width // 32), dtype=torch.int32),
        *(torch.zeros(biases, dtype=torch.int64) for _ in range(2)),
        torch.zeros(biases),
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [32000, 151936])
def test_sample_is_two_launches(width, arch):
    draws = Draws(
        torch.ones(ROWS),
        torch.ones(ROWS, dtype=torch.int32),
        torch.ones(ROWS, dtype=torch.float64),
        torch.zeros(ROWS),
        torch.zeros(ROWS, dtype=torch.float64),
    )
    with recording(arch) as launches:
        sample(torch.zeros(ROWS, width), draws)
    print("\n" + table(launches))
    assert [launch.grid for launch in launches] == [(ROWS, -(-width // 2048), 1), (ROWS, 1, 1)]
    assert all(launch.spills == 0 for launch in launches)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adjust_is_two_launches_at_most(dtype, arch):
    logits = torch.zeros(ROWS, 32000, dtype=dtype)
    with recording(arch) as launches:
        logits_ops.adjust_logits(logits, adjustments(32000, 2, 300))
        logits_ops.mask_logits(logits, torch.zeros(2).long(), torch.zeros(2, 1000).int())
    print("\n" + table(launches))
    names = [(launch.name, launch.grid) for launch in launches]
    assert names == [
        ("adjust_kernel", (2, 8, 1)),
        ("bias_kernel", (2, 1, 1)),
        ("mask_kernel", (2, 8, 1)),
    ]
    assert all(launch.spills == 0 for launch in launches)


def test_nothing_to_adjust_is_no_launch():
    with recording() as launches:
        logits_ops.adjust_logits(torch.zeros(ROWS, 32000), adjustments(32000, 0, 0))
    assert launches == []
