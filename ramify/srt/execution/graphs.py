"""Recorded work: capture a function once, replay it with other numbers in the same memory.

A recording holds addresses. So what it reads and writes is made before it, and kept as long as it:

    static input --> [ recorded launches ] --> static output
      copy_() before a replay                    read after it, before the next
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Replay = Callable[[], None]


class Graphs(Protocol):
    """Makes recordings."""

    def capture(self, work: Callable[[], None], static: Sequence[Tensor]) -> Replay:
        """A function that does `work` again. `static` are the tensors that it reads and writes.

        `work` runs at least once, with what is in them now.
        """
        ...


class CudaGraphs:
    """CUDA graphs. All share one pool of memory, so no two may be replayed at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], None], static: Sequence[Tensor]) -> Replay:
        """Warm up on a stream of its own, then record: kernels must be compiled before."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may use the driver meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return _Kept(graph.replay, static)


class NoGraphs:
    """Every replay is the work itself: for --disable-cuda-graph, and where there are no graphs."""

    def capture(self, work: Callable[[], None], static: Sequence[Tensor]) -> Replay:
        work()
        return _Kept(work, static)


class _Kept:
    """A replay, and the tensors that must live as long as it."""

    def __init__(self, replay: Replay, static: Sequence[Tensor]) -> None:
        self._replay = replay
        self._static = tuple(static)

    def __call__(self) -> None:
        self._replay()
