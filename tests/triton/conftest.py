"""Triton kernels without a GPU: two suites, each in a process of its own.

    test_interpreted_*.py   values: kernels run in Triton's interpreter, repaired by `shim`
    test_compiled_*.py      code: kernels are compiled for GPUs by `compile_only`, and not run

Triton decides when it is imported whether it interprets, so neither suite can share a process with
the other, nor with the rest of the tests. Here pytest collects the names of their tests; the first
one of a suite to run starts a child pytest with all of that suite, and each reports what the child
found. `pytest tests/triton/test_interpreted_x.py::test_y` works as anywhere, and with -s the child
prints what it has to say.
"""

import ast
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent
IN_CHILD = "RAMIFY_TRITON_SUITE"
SETTINGS = {
    "interpreted": {"TRITON_INTERPRET": "1"},
    "compiled": {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"},
}
TIMEOUT_S = 1500

sys.path.insert(0, str(HERE))
if os.environ.get(IN_CHILD) == "interpreted":
    import shim

    shim.repair()
elif os.environ.get(IN_CHILD) == "compiled":
    import compile_only

    compile_only.install()


def pytest_pycollect_makemodule(module_path, parent):
    """A file of a suite is collected without importing it, unless this is the suite's process."""
    suite = module_path.name.removeprefix("test_").partition("_")[0]
    if suite in SETTINGS and IN_CHILD not in os.environ and module_path.parent == HERE:
        return SuiteFile.from_parent(parent, path=module_path)
    return None


class SuiteFile(pytest.File):
    def collect(self):
        for node in ast.parse(self.path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield SuiteTest.from_parent(self, name=node.name, line=node.lineno)


class ChildFailed(Exception):
    """What a test printed in the suite's process."""


RESULTS = pytest.StashKey[dict]()


class SuiteTest(pytest.Item):
    """One test function, with all its cases, of a suite."""

    def __init__(self, *, line, **kwargs):
        super().__init__(**kwargs)
        self.line = line
        self.suite = self.path.name.removeprefix("test_").partition("_")[0]
        self.add_marker(pytest.mark.timeout(TIMEOUT_S + 60))

    def runtest(self):
        if importlib.util.find_spec("triton") is None:
            pytest.skip("triton is not installed")
        done = self.session.stash.setdefault(RESULTS, {})
        if self.suite not in done:
            done[self.suite] = run_suite(self.suite, self.session)
        cases, output = done[self.suite]
        mine = cases[self.path.stem, self.name]
        if not mine:
            raise ChildFailed(f"the suite's process did not report this test:\n{output[-4000:]}")
        failed = [text for kind, text in mine if kind in ("failure", "error")]
        if failed:
            raise ChildFailed(f"{len(failed)} of {len(mine)} cases failed:\n" + "\n".join(failed))
        if all(kind == "skipped" for kind, _ in mine):
            pytest.skip(mine[0][1])

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, ChildFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, self.line - 1, self.name


def run_suite(suite, session):
    """({(file, test): [(outcome, text) of each case]}, output) of a child with these tests."""
    tests = [item for item in session.items if isinstance(item, SuiteTest) and item.suite == suite]
    aloud = session.config.getoption("capture") == "no"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["--junit-xml", str(report), *(["-s"] if aloud else [])]
        child = subprocess.run(
            [*command, *(f"{item.path}::{item.name}" for item in tests)],
            cwd=session.config.rootpath,
            env=os.environ | SETTINGS[suite] | {IN_CHILD: suite},
            stdout=None if aloud else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
        return outcomes(report), child.stdout or ""


def outcomes(report):
    cases = defaultdict(list)
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            where = case.get("classname").rpartition(".")[2], case.get("name").partition("[")[0]
            bad = next((c for c in case if c.tag in ("failure", "error", "skipped")), None)
            text = "" if bad is None else bad.get("message", "")
            if bad is not None and bad.tag != "skipped":
                text = f"--- {case.get('name')}\n{bad.text}"
            cases[where].append(("passed" if bad is None else bad.tag, text))
    return cases
