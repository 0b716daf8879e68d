"""What the figures have to be on one H200, and whether they are. Nothing here measures anything."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from gpu_lines import Figure
from gpu_shapes import (
    BATCHES,
    CONTEXTS,
    LARGE,
    PEERS,
    PREFILLS,
    SMALL,
    WORKLOADS,
    attention_name,
    attention_prefill_name,
    decode_name,
    idle_name,
    prefill_name,
    theirs,
    trunk_name,
    workload_name,
)

Figures = Mapping[str, Figure]
Read = Callable[[Figures], float | None]
FAILED_TESTS = "tests that failed"
FLASHINFER, TRANSFORMERS = "FlashInfer", "transformers"


@dataclass(frozen=True)
class Goal:
    """A figure that is wanted: `least` or more, or `most` or less, of every number it reads."""

    name: str
    reads: tuple[Read, ...]
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def wanted(self) -> str:
        value, word = (self.most, "<=") if self.least is None else (self.least, ">=")
        return f"{word} {value:g}{self.unit}"


@dataclass(frozen=True)
class Verdict:
    """A goal, the worst of its numbers, and `met`, `missed` or `not measured`."""

    goal: Goal
    value: float | None
    verdict: str


def judge(figures: Figures, goals: Sequence[Goal]) -> list[Verdict]:
    """What came of each goal. One that lacks a number is not met, but may be missed already."""
    return [_judged(figures, goal) for goal in goals]


def _judged(figures: Figures, goal: Goal) -> Verdict:
    values = [read(figures) for read in goal.reads]
    known = [value for value in values if value is not None]
    if not known:
        return Verdict(goal, None, "not measured")
    worst = max(known) if goal.least is None else min(known)
    met = worst <= (goal.most or 0) if goal.least is None else worst >= goal.least
    if met and len(known) < len(values):
        return Verdict(goal, worst, "not measured")  # all of it
    return Verdict(goal, worst, "met" if met else "missed")


def share(name: str) -> Read:
    """The share of the limit, in per cent."""

    def read(figures: Figures) -> float | None:
        figure = figures.get(name)
        return None if figure is None or figure.share is None else 100 * figure.share

    return read


def value(name: str) -> Read:
    def read(figures: Figures) -> float | None:
        figure = figures.get(name)
        return figure.value if figure and isinstance(figure.value, int | float) else None

    return read


def ratio(over: str, under: str) -> Read:
    """One figure over another."""

    def read(figures: Figures) -> float | None:
        a, b = value(over)(figures), value(under)(figures)
        return a / b if a is not None and b else None

    return read


def of_the_limit(name: str, figure: str, least: float) -> Goal:
    return Goal(f"{name}: share of the limit", (share(figure),), " %", least=least)


def beside_flashinfer(name: str) -> Read:
    return ratio(name, theirs(name, FLASHINFER))


GOALS: tuple[Goal, ...] = (
    Goal("correctness: tests that failed", (value(FAILED_TESTS),), "", most=0),
    of_the_limit("8B decode, batch 1", decode_name(LARGE, 1, 1024), 75),
    of_the_limit("8B decode, batch 32", decode_name(LARGE, 32, 1024), 70),
    of_the_limit("8B decode, batch 256", decode_name(LARGE, 256, 1024), 60),
    of_the_limit("8B prefill of 4096", prefill_name(LARGE, 4096), 65),
    of_the_limit("0.5B decode, batch 1", decode_name(SMALL, 1, 1024), 35),
    Goal("device idle, 8B, batch 32", (value(idle_name(LARGE)),), " %", most=3),
    Goal(
        "decode attention: time over FlashInfer's, the worst",
        tuple(beside_flashinfer(attention_name(LARGE, *x)) for x in product(BATCHES, CONTEXTS)),
        "",
        most=1.05,
    ),
    Goal(
        f"prefill attention of {PREFILLS[-1]}",
        (value(f"{attention_prefill_name(LARGE, PREFILLS[-1])}, rate"),),
        " TFLOP/s",
        least=400,
    ),
    Goal(
        "shared trunk: plain list's time over ours",
        (ratio(trunk_name(LARGE, "plain list"), trunk_name(LARGE, "shared")),),
        "",
        least=8,
    ),
    *(
        Goal(
            f"over transformers, {name}",
            (ratio(name, theirs(name, TRANSFORMERS)),),
            " x",
            least=3,
        )
        for name in (workload_name(shape, work) for shape in PEERS for work in WORKLOADS)
    ),
)
