"""The package as users meet it: light to import, whole, and hidden from nothing by its links."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("lang", "srt", "radix_cache", "kernels", "frontend_api")


def python(*code: str, cwd: Path = ROOT) -> str:
    """What a fresh interpreter prints, started as our processes are."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", "\n".join(code)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["ramify", "ramify.lang"])
def test_importing_is_light_and_loads_no_torch(module):
    code = (
        "import sys, time",
        "began = time.perf_counter()",
        f"import {module}",
        "print(time.perf_counter() - began, 'torch' in sys.modules, 'numpy' in sys.modules)",
    )
    runs = [python(*code).split() for _ in range(5)]
    assert min(float(seconds) for seconds, _, _ in runs) < 0.1
    assert {(torch, numpy) for _, torch, numpy in runs} == {("False", "False")}


def test_the_server_process_loads_no_torch():
    code = (
        "import sys, ramify.frontend_api.serve, ramify.frontend_api.app",
        "print('torch' in sys.modules)",
    )
    assert python(*code) == "False"


def test_every_public_name_can_be_had():
    code = ("import ramify", "print(all(getattr(ramify, n, None) for n in ramify.__all__))")
    assert python(*code) == "True"


def test_an_unknown_name_is_an_attribute_error():
    code = ("import ramify", "print(hasattr(ramify, 'no_such_name'))")
    assert python(*code) == "False"


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_reached_at_the_top_by_a_relative_link(room):
    link = ROOT / room
    assert link.is_symlink()
    assert os.readlink(link) == f"ramify/{room}"
    assert link.resolve() == ROOT / "ramify" / room


def test_started_from_the_root_no_room_hides_another_package():
    """`kernels` is the name of a package that others import: ours must never be found by it."""
    names = (*ROOMS, "tests", "examples")
    code = (
        "from importlib.util import find_spec",
        f"print([n for n in {names!r} if getattr(find_spec(n), 'origin', None)",
        f"       and find_spec(n).origin.startswith({str(ROOT)!r})])",
    )
    assert python(*code) == "[]"


def test_kernels_is_a_docstring_without_a_version():
    tree = ast.parse((ROOT / "ramify/kernels/__init__.py").read_text())
    assert len(tree.body) == 1
    assert isinstance(tree.body[0], ast.Expr)
    assert ast.get_docstring(tree)


def test_data_that_the_code_reads_is_packaged():
    """Sources that are compiled on first use must be in the wheel."""
    listed = (ROOT / "pyproject.toml").read_text()
    needed = {p.suffix for p in (ROOT / "ramify").rglob("*") if p.suffix in (".cpp", ".h")}
    assert all(f"kernels/cpu/*{suffix}" in listed for suffix in needed)
