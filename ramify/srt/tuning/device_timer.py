"""How long a call takes on a GPU, by the GPU's own clock."""

from collections.abc import Callable

import torch

from ramify.srt.execution.device import Device

FLUSH_BYTES = 2**28  # more than any card's cache holds
FLUSHES = 4


class DeviceTimer:
    """Times calls between two events. What a call reads is not in the cache before it.

    The cache is flushed several times: while the device is busy with that, the host launches the
    call, so that waiting for launches is not measured.
    """

    def __init__(self, device: Device) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device.torch_device)

    def __call__(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        for _ in range(FLUSHES):
            self._flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
