"""The tuner on a GPU: its clock, and every candidate that this card can run being right."""

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_the_clock_tells_long_calls_from_short_ones():
    from ramify.srt.execution.device import open_device
    from ramify.srt.tuning.device_timer import DeviceTimer

    device = open_device("cuda")
    timer = DeviceTimer(device)
    small, large = (torch.zeros(2**n, device=device.torch_device) for n in (20, 28))
    times = [min(timer(lambda x=x: x.add_(1)) for _ in range(5)) for x in (small, large)]
    assert 0 < 10 * times[0] < times[1] < 1


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_a_shape_is_tuned(head_dim):
    from ramify.kernels.triton.tile_table import AttentionShape, TileTable
    from ramify.srt.execution.device import open_device
    from ramify.srt.tuning.device_timer import DeviceTimer
    from ramify.srt.tuning.loads import Decode, Prefill, Steps
    from ramify.srt.tuning.tuner import Plan, tune

    device = open_device("cuda")
    shape = AttentionShape(8, 2, head_dim, 2, 2, 64)
    plan = Plan((Decode(4, 1000),), (Prefill(300, 700), Decode(30, 300, trunk=192)), rounds=3)
    steps = Steps(shape, device, torch.bfloat16, torch.bfloat16)
    with torch.inference_mode():
        tiles, choices = tune(steps, DeviceTimer(device), plan)
    TileTable({shape: tiles})
    wrong = [x for choice in choices for x in choice.dropped if "wrong" in x.reason]
    assert wrong == []
