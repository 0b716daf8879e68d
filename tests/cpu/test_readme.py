"""The README is true: its program runs, its commands exist, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def run(program, folder):
    """What one of the README's programs prints."""
    (folder / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-P", "program.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.model
def test_the_programs_run_and_print_what_they_promise(tmp_path):
    first, constrained = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    reused = re.search(r"found (\d+) tokens computed already", run(first, tmp_path))
    assert reused is not None
    assert int(reused.group(1)) > 30
    printed = run(constrained, tmp_path)
    assert re.search(r"name='.*' guild='(thieves|mages|bakers)' level=-?\d+", printed)
    assert int(re.search(r"(\d+) tokens were forced", printed).group(1)) > 5


@pytest.mark.parametrize(
    "verb", sorted(set(re.findall(r"ramify (serve|chat|generate|models)", README)))
)
def test_every_command_it_names_exists(verb):
    ramify = Path(sys.executable).with_name("ramify")
    done = subprocess.run([ramify, verb, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert f"ramify {verb}" in done.stdout


def test_every_make_verb_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for verb in re.findall(r"make (\w[\w-]*)", README):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb


@pytest.mark.parametrize("page", ["README.md", "docs/ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_link_leads_to_a_file(page):
    text = (ROOT / page).read_text()
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in t]
    assert all(((ROOT / page).parent / target).exists() for target in targets)


def test_every_file_that_the_architecture_names_exists():
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    names = re.findall(r"`((?:srt|lang|frontend_api|radix_cache|kernels|tests)/[\w./]+)`", text)
    assert len(names) > 20
    for name in names:
        base = ROOT if name.startswith("tests") else ROOT / "ramify"
        assert (base / name).exists() or (base / f"{name}.py").exists(), name
