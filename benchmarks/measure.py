"""How every benchmark here measures: look at the load, take turns, quote ratios.

Two things are compared by running them in turn, A B A B ..., in one run on one machine; the ratio
of the medians is what counts. An absolute time from a shared machine means little.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


def add(name: str, value: float | str) -> None:
    """Print one figure."""
    text = f"{value:,.3g}" if isinstance(value, float) else str(value)
    print(f"  {name:<58} {text}", flush=True)


def add_machine() -> None:
    """Print what the figures depend on. Every benchmark begins with it."""
    add("date", time.strftime("%Y-%m-%d"))
    add("processor", cpu_name())
    add("load before", round(os.getloadavg()[0], 2))


def in_turn(rounds: int, *runs: Callable[[], float]) -> list[float]:
    """The median of what each run returns, the runs taken in turn."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for values, run in zip(taken, runs, strict=True):
            values.append(run())
    return [statistics.median(values) for values in taken]


def cpu_name() -> str:
    """The processor and the number of cores we may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def argument(name: str, default: int) -> int:
    """The value of `--name N` on the command line."""
    flag = f"--{name}"
    return int(sys.argv[sys.argv.index(flag) + 1]) if flag in sys.argv else default
