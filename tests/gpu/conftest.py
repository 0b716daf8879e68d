"""What make gpu-check is told of each test, as it happens; and what a broken GPU context stops."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("triton", "cpu"))]
sys.path.append(str(HERE.parents[1] / "benchmarks"))

import gpu_lines  # noqa: E402 - found by the paths above

if os.environ.get("RAMIFY_GPU_TESTS") == "interpreted":
    import shim

    shim.repair()

LINES = Path(os.environ["RAMIFY_GPU_LINES"]) if "RAMIFY_GPU_LINES" in os.environ else None
WORDS = 300


def pytest_collection_modifyitems(items):
    """Leave out what an earlier process has begun: it is started again after a crash."""
    if LINES is not None:
        over = gpu_lines.begun(LINES)
        items[:] = [item for item in items if item.nodeid not in over]


def pytest_runtest_logstart(nodeid):
    if LINES is not None:
        gpu_lines.tell(LINES, begin=nodeid)


class Outcomes:
    """One outcome for the three phases of a test: the first that is not `passed`."""

    def __init__(self):
        self.of = {}
        self.broken = False

    def note(self, report):
        outcome, words = self.of.get(report.nodeid, ("passed", ""))
        if outcome == "passed" and report.outcome != "passed":
            outcome, words = report.outcome, self.words(report)
        self.of[report.nodeid] = outcome, words
        self.broken |= report.failed and gpu_lines.is_broken(report.longreprtext)

    def words(self, report):
        if report.skipped:
            return str(report.longrepr[2])[:WORDS]
        crash = getattr(report.longrepr, "reprcrash", None)
        return (crash.message if crash else report.longreprtext)[:WORDS].replace("\n", " ")


OUTCOMES = Outcomes()


def pytest_runtest_logreport(report):
    OUTCOMES.note(report)


def pytest_runtest_logfinish(nodeid):
    if LINES is not None:
        outcome, words = OUTCOMES.of.pop(nodeid, ("failed", "no phase of it was run"))
        gpu_lines.tell(LINES, end=nodeid, outcome=outcome, words=words)
        if OUTCOMES.broken:  # no call works any more: the rest is for a new process
            os._exit(3)


def pytest_sessionfinish(exitstatus):
    if LINES is not None and exitstatus in (0, 1, 5):
        gpu_lines.tell(LINES, finished=True)
