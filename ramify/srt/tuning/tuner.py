"""Measures the tiles of attention for one shape: first what is right, then what is fast.

A candidate whose results differ from the torch twin's, or that the card cannot run, is dropped, and
that is told. The small tile is chosen first; the large one is then measured beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ramify.kernels.reference.attention import paged_attention as twin
from ramify.kernels.triton.attention import attention_in_tiles
from ramify.kernels.triton.launch import TritonError
from ramify.kernels.triton.tile_table import AttentionShape, Tiles, candidates, default_tiles
from ramify.kernels.triton.tiles import Tile
from ramify.srt.errors import RamifyError
from ramify.srt.tuning.choose import Timed, choose, gain, time_in_turn
from ramify.srt.tuning.loads import Attention, Decode, Load, Prefill, Step, Steps

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
Timer = Callable[[Callable[[], object]], float]  # the seconds that a call takes


@dataclass(frozen=True)
class Plan:
    """What is measured: the loads of each launch, and how often. The shortest time counts."""

    small: tuple[Load, ...] = tuple(Decode(b, n) for n in (1024, 4096) for b in (1, 32, 256))
    large: tuple[Load, ...] = (
        Prefill(2048, 2048),
        Prefill(4096, 8192),
        Decode(64, 2176, trunk=2048),
    )
    rounds: int = 20

    def n_timings(self, shape: AttentionShape) -> int:
        """How many calls are timed, if no candidate is dropped."""
        listed = candidates(shape)
        per_round = len(listed.small) * len(self.small) + len(listed.large) * len(self.large)
        return self.rounds * per_round


@dataclass(frozen=True)
class Dropped:
    """A candidate that cannot be used, and why."""

    tile: Tile
    reason: str


@dataclass(frozen=True)
class Choice:
    """What was measured of one launch, `small` or `large`: the first tile is the default."""

    launch: str
    loads: tuple[Load, ...]
    timed: tuple[Timed[Tile], ...]
    best: Timed[Tile]
    dropped: tuple[Dropped, ...]

    @property
    def gain(self) -> float:
        """How much faster the best is than the first that was timed, as a share."""
        return gain(self.timed[0], self.best)


def tune(steps: Steps, timer: Timer, plan: Plan) -> tuple[Tiles, tuple[Choice, ...]]:
    """The best tiles of a shape, and how they were found. `timer` is called for each timing.

    Raises RamifyError if no candidate can be used.
    """
    tiles, choices = default_tiles(steps.shape), []
    ragged = steps.ragged()
    expected = ragged.run(twin)
    for launch in Tiles._fields:
        timed_steps = steps.of(getattr(plan, launch))
        fitting, dropped = [], []
        for tile in getattr(candidates(steps.shape), launch):
            attention = in_tiles(tiles._replace(**{launch: tile}))
            reason = why_not(attention, ragged, expected, timed_steps)
            if reason is None:
                fitting.append((tile, attention))
            else:
                dropped.append(Dropped(tile, reason))
        if not fitting:
            raise RamifyError(f"no {launch} tile of attention can be used: {dropped[0].reason}")
        timed = _timed(fitting, timed_steps, timer, plan.rounds)
        best = choose(timed)
        choices.append(Choice(launch, getattr(plan, launch), tuple(timed), best, tuple(dropped)))
        tiles = tiles._replace(**{launch: best.candidate})
    return tiles, tuple(choices)


def in_tiles(tiles: Tiles) -> Attention:
    """Attention in these tiles, whatever the shape."""
    return partial(attention_in_tiles, lambda _: tiles)


def why_not(
    attention: Attention, ragged: Step, expected: Tensor, steps: Sequence[Step]
) -> str | None:
    """Why a candidate cannot be used, None if it can. Afterwards it is compiled for all steps."""
    near = TOLERANCE[expected.dtype]
    try:
        result = ragged.run(attention)
        for step in steps:
            step.run(attention)
    except TritonError as error:
        return str(error).split("\n", maxsplit=1)[0]
    if not torch.allclose(result.float(), expected.float(), atol=near, rtol=near):
        off = float((result.float() - expected.float()).abs().max())
        return f"its results are wrong, by up to {off:.3g}"
    return None


def _timed(
    fitting: Sequence[tuple[Tile, Attention]], steps: Sequence[Step], timer: Timer, rounds: int
) -> list[Timed[Tile]]:
    def seconds(candidate: tuple[Tile, Attention], step: Step) -> float:
        return timer(lambda: step.run(candidate[1]))

    timed = time_in_turn(fitting, steps, seconds, rounds)
    return [Timed(one.candidate[0], one.seconds) for one in timed]
