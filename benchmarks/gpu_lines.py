"""What a measuring process tells gpu_check.py: lines of JSON in a file, one as soon as it is known.

    {"begin": NAME}                                    a case, or a test, has begun
    {"figure": NAME, "value": .., "unit": .., "share": ..}
    {"end": NAME, "outcome": "passed" | "failed" | "skipped" | .., "words": ".."}
    {"finished": true}                                 there is no more

A process that dies or hangs is started again on the same file, and skips whatever has begun there.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BROKEN = ("CUDA error", "Triton Error [CUDA]")  # after such an error no call works any more


@dataclass(frozen=True)
class Figure:
    """One number of the table, or a word in its place, and its share of the limit if it has one."""

    name: str
    value: float | str
    unit: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Case:
    """Something to measure, alone: if it fails the others go on."""

    name: str
    run: Callable[[], Iterable[Figure]]


def is_broken(words: str) -> bool:
    """Whether the process that said this must be left: its GPU context is lost."""
    return any(mark in words for mark in BROKEN)


def tell(path: Path, **line: Any) -> None:
    """Add a line, complete even if the process dies right after it."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path, begin: int = 0) -> tuple[list[dict[str, Any]], int]:
    """(lines after byte `begin`, where the next one will begin)."""
    if not path.exists():
        return [], begin
    with path.open("rb") as file:
        file.seek(begin)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], begin + len(whole)


def begun(path: Path) -> set[str]:
    return {line["begin"] for line in read(path)[0] if "begin" in line}


def run_cases(cases: Iterable[Case], path: Path, most: int | None = None) -> None:
    """Run what has not begun yet, or so many of it: the rest is for the next process.

    Leaves the process where an error has broken the GPU context.
    """
    over = begun(path)
    left = [case for case in cases if case.name not in over]
    for case in left[:most]:
        tell(path, begin=case.name)
        try:
            for figure in case.run():
                share = figure.share
                tell(path, figure=figure.name, value=figure.value, unit=figure.unit, share=share)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next case is measured
            traceback.print_exc()
            words = f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0][:300]
            tell(path, end=case.name, outcome="failed", words=words)
            if is_broken(str(error)):
                sys.exit(3)
        else:
            tell(path, end=case.name, outcome="passed", words="")
    if most is None or len(left) <= most:
        tell(path, finished=True)


def figures_of(lines: Iterable[dict[str, Any]]) -> Iterator[Figure]:
    for line in lines:
        if "figure" in line:
            yield Figure(line["figure"], line["value"], line["unit"], line["share"])
