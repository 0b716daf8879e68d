"""How long a call takes on a device, without the time that it takes to launch it."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from ramify.srt.execution.device import Device

CACHE = 60 << 20  # bytes of an H200's second-level cache
MOST_COPIES = 64
Call = Callable[[], object]


def copies_of(device: Device, size: int) -> int:
    """How many copies of `size` bytes to go round in, so that none is still in the cache."""
    return min(max(-(-3 * CACHE // max(size, 1)), 1), MOST_COPIES) if device.is_cuda else 1


def wait_for(device: Device) -> None:
    if device.is_cuda:
        torch.cuda.synchronize()


def call_us(device: Device, calls: Sequence[Call], repeats: int = 20) -> tuple[float, str]:
    """(time of one call, its unit): of the calls in turn, recorded and replayed if they can be.

    A call that waits for the host cannot be recorded; then the time has its launches in it, and
    the unit says so.
    """
    turns = max(repeats, len(calls))

    def all_calls() -> None:
        for i in range(turns):
            calls[i % len(calls)]()

    for call in calls[:2]:
        call()
    wait_for(device)
    if not device.is_cuda:
        return elapsed_us(device, all_calls, 1) / turns, "us"
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            all_calls()
    except RuntimeError as error:
        if "captur" not in str(error):
            raise
        torch.cuda.synchronize()
        return elapsed_us(device, all_calls, 5) / turns, "us with launches"
    return elapsed_us(device, graph.replay, 5) / turns, "us"


def elapsed_us(device: Device, work: Callable[[], object], rounds: int) -> float:
    """The median time of `work`, by the device's own clock where it has one."""
    taken = []
    for _ in range(rounds):
        if device.is_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
            begin.record()
            work()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) * 1e3)
        else:
            began = time.perf_counter()
            work()
            taken.append((time.perf_counter() - began) * 1e6)
    return statistics.median(taken)
