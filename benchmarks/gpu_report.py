"""The figures as lines of a table, as JSON, and as the page that is kept."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_goals import GOALS, Verdict, judge
from gpu_lines import Figure

WIDTH = 66
HOW = (
    "Made by `make gpu-check`. A floor is the larger of the bytes that must be moved over 4.3 TB/s "
    "and the operations over 790 TFLOP/s (fp8: twice that), which is what one H200 reaches; the "
    "share of the limit is the floor over the time. Weights are random, of the shapes named."
)


@dataclass
class Report:
    """All that is known so far. `figures` by part; problems in words, where they came up."""

    about: dict[str, str] = field(default_factory=dict)
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    finished: bool = False

    def add(self, part: str, figure: Figure) -> None:
        rows = self.figures.setdefault(part, [])
        rows[:] = [row for row in rows if row.name != figure.name]
        rows.append(figure)

    @property
    def verdicts(self) -> list[Verdict]:
        named = {figure.name: figure for rows in self.figures.values() for figure in rows}
        return judge(named, GOALS)

    def json(self) -> str:
        whole: dict[str, Any] = asdict(self)
        whole["goals"] = [
            {"goal": v.goal.name, "wanted": v.goal.wanted, "value": v.value, "verdict": v.verdict}
            for v in self.verdicts
        ]
        return json.dumps(whole, indent=1)

    def markdown(self) -> str:
        lines = ["# One GPU, end to end", "", HOW, ""]
        if not self.finished:
            lines += ["**Not finished: what there is so far.**", ""]
        lines += table(("machine", ""), [(name, text) for name, text in self.about.items()])
        goals = [(v.goal.name, v.goal.wanted, shown(v), v.verdict) for v in self.verdicts]
        lines += ["## Goals", "", *table(("goal", "wanted", "measured", ""), goals)]
        for part, figures in self.figures.items():
            rows = [(f.name, *cells(f)) for f in figures]
            lines += [f"## {part}", "", *table(("what", "measured", "share of the limit"), rows)]
        for title, items in (("Problems", self.problems), ("Not run", self.skipped)):
            if items:
                lines += [f"## {title}", "", *(f"- {item}" for item in items), ""]
        return "\n".join(lines)

    def write(self, json_file: str | None, markdown_file: str | None) -> None:
        for name, text in ((json_file, self.json()), (markdown_file, self.markdown())):
            if name:
                path = Path(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                fresh = path.with_name(f".{path.name}.new")
                fresh.write_text(text)
                fresh.replace(path)  # never half a file


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|".join("---" for _ in heads)
    return [f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(r)} |" for r in rows), ""]


def number(x: float) -> str:
    """Three digits that count, in full."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def cells(figure: Figure) -> tuple[str, str]:
    value = figure.value if isinstance(figure.value, str) else number(figure.value)
    share = "" if figure.share is None else f"{100 * figure.share:.0f} %"
    return f"{value} {figure.unit}".strip(), share


def shown(verdict: Verdict) -> str:
    return "-" if verdict.value is None else f"{number(verdict.value)}{verdict.goal.unit}"


def line(figure: Figure) -> str:
    value, share = cells(figure)
    return f"  {figure.name:<{WIDTH}} {value:>16} {share:>6}".rstrip()


def goal_line(v: Verdict) -> str:
    return f"  {v.goal.name:<{WIDTH}} {shown(v):>14} {v.goal.wanted:>14}  {v.verdict}"
