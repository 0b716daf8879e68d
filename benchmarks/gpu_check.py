"""One NVIDIA GPU checked from end to end: is it right, and how near to the limits does it run?

    make gpu-check            all of it, into build/gpu_check.json, .md and .log
    python benchmarks/gpu_check.py [options]

1. tests       tests/gpu: every kernel against its twin, the engine against transformers
2. attention   kernels by themselves against bytes / BANDWIDTH or operations / FLOPS
   kernels
3. engine ..   random weights of real shapes: decode steps, prompts, requests through the scheduler
4. flashinfer  its attention on the same pools, if it can be imported
5. transformers ..  its continuous batching: the same shapes and requests

Every part is a process of its own with a limit of time, and figures are written as they come. What
fails, hangs or finds no time is named, and stops nothing else. Goals and floors are for one H200.
Exit code: 1 when a test failed, 2 without a GPU or what all of it needs.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from gpu_children import Child, Line, watch
from gpu_goals import FAILED_TESTS
from gpu_lines import Figure, figures_of
from gpu_report import Report, goal_line, line
from gpu_shapes import PEERS, SHAPES

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests" / "gpu"
BUDGET_S = 460.0
C_COMPILER = "a C compiler"

ALWAYS = ("torch", "numpy", "safetensors")
KERNELS = ("triton", C_COMPILER)
ENGINE = (*KERNELS, "msgspec", "jinja2", "tokenizers")


@dataclass(frozen=True)
class Part:
    """A line of the plan: what runs, at most how long, and what must be installed for it."""

    name: str
    script: str  # gpu_parts.py and so on; "" for the tests, a process for each file of them
    seconds: float
    silent_s: float  # longest case
    needs: tuple[str, ...]
    argument: str = ""


def plan() -> list[Part]:
    """Correctness first, then what most goals are about."""
    large, *small = [
        Part(f"engine {name}", "gpu_parts.py", 75, 60, ENGINE, f"engine {name}") for name in SHAPES
    ]
    return [
        Part("tests", "", 170, 60, (*ENGINE, "zmq", "pytest", "transformers")),
        Part("attention", "gpu_parts.py", 75, 40, KERNELS, "attention"),
        large,
        Part("kernels", "gpu_parts.py", 90, 40, KERNELS, "kernels"),
        *reversed(small),
        Part("flashinfer", "gpu_parts.py", 70, 60, (*KERNELS, "flashinfer"), "flashinfer"),
        *(
            Part(f"transformers {name}", "gpu_peer.py", 100, 50, ("transformers",), name)
            for name in PEERS
        ),
    ]


@dataclass
class Check:
    """One run: what is known, and where it is written whenever something is learned."""

    options: argparse.Namespace
    folder: Path
    log: IO[bytes]
    report: Report = field(default_factory=Report)
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def run(self, parts: Sequence[Part], end: float) -> None:
        for part in parts:
            missing = [name for name in part.needs if not installed(name)]
            left = end - time.monotonic()
            if missing:
                self.skip(f"{part.name}: not installed: {', '.join(missing)}")
            elif left < 5:
                self.skip(f"{part.name}: no time was left of the {self.options.budget_s:.0f} s")
            else:
                self.run_part(part, min(part.seconds, left))
        self.report.finished = True
        self.write()

    def skip(self, why: str) -> None:
        self.report.skipped.append(why)
        print(f"  not run: {why}", flush=True)
        self.write()

    def run_part(self, part: Part, seconds: float) -> None:
        print(f"--- {part.name}", flush=True)
        began = time.monotonic()
        children, at_once = [self.child(part)], 1
        if not part.script:
            children, at_once = test_children(part, self.folder, self.options.model), len(cores())

        def hear(child: Child, said: Line) -> None:
            self.hear(part, child, said)

        for child in watch(children, seconds, at_once, hear, self.log):
            self.problem(f"{child.at}: not over after {seconds:.0f} s")
            if not part.script:  # what was not run is not right
                self.counts.setdefault(child.name, Counter())["failed"] += 1
        if not part.script:
            self.count_tests(part)
        self.report.about[f"seconds of {part.name}"] = f"{time.monotonic() - began:.0f}"
        self.write()

    def child(self, part: Part) -> Child:
        path = self.folder / part.name.replace(" ", "_")
        command = [sys.executable, str(HERE / part.script), part.argument, str(path)]
        return Child(part.name, command, path, part.silent_s, environment())

    def hear(self, part: Part, child: Child, said: Line) -> None:
        for figure in figures_of([said]):
            self.figure(part.name, figure)
        if "end" not in said:
            return
        if not part.script:
            self.counts.setdefault(child.name, Counter())[said["outcome"]] += 1
        if said["outcome"] == "failed":
            self.problem(f"{said['end']}: {said['words']}")

    def count_tests(self, part: Part) -> None:
        for name, counts in sorted(self.counts.items()):
            told = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
            self.figure(part.name, Figure(name, told))
        total: Counter[str] = sum(self.counts.values(), Counter())
        if total:
            self.figure(part.name, Figure(FAILED_TESTS, total["failed"]))
            self.figure(part.name, Figure("tests that passed", total["passed"]))

    def figure(self, part: str, figure: Figure) -> None:
        self.report.add(part, figure)
        print(line(figure), flush=True)
        self.write()

    def problem(self, words: str) -> None:
        self.report.problems.append(words)
        print(f"  PROBLEM {words}", flush=True)
        self.write()

    def write(self) -> None:
        self.report.write(self.options.json, self.options.markdown)


def environment() -> dict[str, str]:
    """Of every process: our own modules by path, as nothing is installed; no wait for a network."""
    paths = [str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {"PYTHONPATH": os.pathsep.join(paths), **offline}


def test_children(part: Part, folder: Path, model: str | None) -> list[Child]:
    """A process for each file of tests, all at the same time: mostly they compile."""
    files = sorted(TESTS.glob("test_*.py"))
    return [pytest_child(file, folder / file.stem, part.silent_s, model) for file in files]


def pytest_child(file: Path, path: Path, silent_s: float, model: str | None) -> Child:
    """pytest by a set-up of its own: what CI has beside it need not be installed here."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c"]
    command += [str(TESTS / "alone.ini"), f"--confcutdir={TESTS}", f"--rootdir={HERE.parent}"]
    # the twins compute on the CPU, beside the other files' and the compilers
    env = {**environment(), "RAMIFY_GPU_LINES": str(path), "OMP_NUM_THREADS": "1"}
    if model:
        env["RAMIFY_GPU_MODEL"] = model
    return Child(f"tests/gpu/{file.name}", [*command, str(file)], path, silent_s, env)


def cores() -> set[int]:
    return os.sched_getaffinity(0)


def installed(name: str) -> bool:
    if name == C_COMPILER:  # Triton builds its launchers with it
        return any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang")))
    return importlib.util.find_spec(name) is not None


def about() -> Iterator[tuple[str, str]]:
    """What the figures depend on."""
    yield "date", time.strftime("%Y-%m-%d")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
        yield "card, driver, memory", "; ".join(told.split("\n")).strip("; ")
    yield "processor cores", str(len(cores()))
    yield "Python", platform.python_version()
    for name in ("torch", "triton", "transformers", "flashinfer-python"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def no_gpu() -> str | None:
    """Why nothing can be measured here."""
    absent = [name for name in ALWAYS if not installed(name)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    sys.path.insert(0, str(HERE.parent))
    from ramify.srt.errors import ConfigError
    from ramify.srt.execution.device import open_device

    try:
        open_device("cuda")
    except ConfigError as error:
        return str(error)
    return None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in plan()]
    parser.add_argument("--json", metavar="FILE", help="figures, goals, problems")
    parser.add_argument("--markdown", metavar="FILE", help="the same as a page")
    parser.add_argument("--log", metavar="FILE", help="what the processes printed")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="of time, for all parts")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=", ".join(names))
    parser.add_argument("--skip", nargs="+", choices=names, metavar="PART", default=[])
    parser.add_argument("--model", help="SmolLM2, where it is not in the cache: folder or GGUF")
    return parser.parse_args(arguments)


def main() -> int:
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children end, too
    options = parse()
    why = no_gpu()
    if why is not None:
        print(f"gpu_check: {why}", file=sys.stderr)
        return 2
    parts = [
        p for p in plan() if p.name in (options.only or [p.name]) and p.name not in options.skip
    ]
    wanted = {name: None for part in parts for name in part.needs if not installed(name)}
    if wanted:
        print(f"gpu_check: not installed: {', '.join(wanted)}; what needs them is left out")
    with tempfile.TemporaryDirectory() as folder, open_log(options.log, Path(folder)) as log:
        check = Check(options, Path(folder), log)
        for name, text in about():
            check.report.about[name] = text
            print(f"  {name}: {text}", flush=True)
        check.run(parts, began + options.budget_s)
        print("--- goals")
        for verdict in check.report.verdicts:
            print(goal_line(verdict))
        totals: Counter[str] = sum(check.counts.values(), Counter())
    return 1 if totals["failed"] else 0


def open_log(name: str | None, folder: Path) -> IO[bytes]:
    path = Path(name) if name else folder / "log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


if __name__ == "__main__":
    sys.exit(main())
