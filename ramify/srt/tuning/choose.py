"""Which of several candidates is the fastest, from times alone. Pure: who measures is passed in.

    gain of a candidate = geometric mean over the loads of  (time of the first / its time)  - 1

The first candidate is the default. Another takes its place only for a gain of LEAST_GAIN, as less
may be noise, and only if no load gets slower by more than MOST_LOSS: one choice serves them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Generic, TypeVar

LEAST_GAIN = 0.02
MOST_LOSS = 0.05

Candidate = TypeVar("Candidate")
Load = TypeVar("Load")


@dataclass(frozen=True)
class Timed(Generic[Candidate]):
    """A candidate, and the shortest time of each load, in their order."""

    candidate: Candidate
    seconds: tuple[float, ...]


def time_in_turn(
    candidates: Sequence[Candidate],
    loads: Sequence[Load],
    seconds: Callable[[Candidate, Load], float],
    rounds: int,
) -> list[Timed[Candidate]]:
    """The shortest of `rounds` times of each candidate and load.

    Candidates take turns within a load, so that a clock that slows down slows all of them.
    """
    best = [[float("inf")] * len(loads) for _ in candidates]
    for _ in range(rounds):
        for i, load in enumerate(loads):
            for times, candidate in zip(best, candidates, strict=True):
                times[i] = min(times[i], seconds(candidate, load))
    return [Timed(c, tuple(times)) for c, times in zip(candidates, best, strict=True)]


def gain(default: Timed[Candidate], other: Timed[Candidate]) -> float:
    """How much more work `other` does in a second, as a share: 0.1 is a tenth more."""
    ratios = [a / b for a, b in zip(default.seconds, other.seconds, strict=True)]
    return exp(sum(map(log, ratios)) / len(ratios)) - 1


def choose(timed: Sequence[Timed[Candidate]]) -> Timed[Candidate]:
    """The candidate to use; the first of `timed` unless another is clearly better."""
    default = timed[0]
    fitting = [
        other
        for other in timed[1:]
        if gain(default, other) >= LEAST_GAIN
        and all(
            b <= a * (1 + MOST_LOSS) for a, b in zip(default.seconds, other.seconds, strict=True)
        )
    ]
    return max(fitting, key=lambda other: gain(default, other), default=default)
