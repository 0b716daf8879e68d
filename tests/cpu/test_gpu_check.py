"""The check of a GPU without one: what it makes of figures, failures, crashes and hangs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_check
import gpu_goals
import gpu_lines
from gpu_children import Child, watch
from gpu_goals import GOALS, judge
from gpu_lines import Case, Figure
from gpu_report import Report, goal_line, line
from gpu_shapes import LARGE, decode_name, trunk_name, workload_name

BENCHMARKS = Path(gpu_check.__file__).parent
ROOT = BENCHMARKS.parent
WORKER = """
import os, sys, time
sys.path.insert(0, {benchmarks!r})
from pathlib import Path
import gpu_lines
from gpu_lines import Case, Figure

def crash():
    yield Figure("before the crash", 1.0)
    os._exit(9)

def hang():
    time.sleep(60)
    yield

def fail():
    raise ValueError("wrong\\nsize")

def lost():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def right():
    yield Figure("right", 2.5, "us", 0.5)

def gone():
    yield Figure("pid", float(os.getpid()))

cases = [Case(name, globals()[name]) for name in {cases!r}]
gpu_lines.run_cases(cases, Path(sys.argv[1]))
"""


def run(tmp_path, cases, *, silent_s=120.0, seconds=250.0):
    """(lines heard, children not over) of a worker with these cases."""
    script, log = tmp_path / "worker.py", tmp_path / "log"
    script.write_text(WORKER.format(benchmarks=str(BENCHMARKS), cases=cases))
    path = tmp_path / "lines"
    child = Child("worker", [sys.executable, str(script), str(path)], path, silent_s)
    heard = []
    with log.open("wb") as file:
        late = watch([child], seconds, 1, lambda _, said: heard.append(said), file)
    return heard, late


def ends(heard):
    return {said["end"]: (said["outcome"], said["words"]) for said in heard if "end" in said}


def test_one_case_that_fails_crashes_or_hangs_stops_no_other(tmp_path):
    heard, late = run(tmp_path, ["crash", "fail", "hang", "lost", "right"], silent_s=10.0)
    told = ends(heard)
    assert late == []
    assert told["crash"] == ("failed", "died with exit code 9")
    assert told["fail"] == ("failed", "ValueError: wrong")
    assert told["hang"] == ("failed", "stopped after 10 s")
    assert told["lost"][0] == "failed"
    assert told["right"] == ("passed", "")
    figures = {figure.name: figure for figure in gpu_lines.figures_of(heard)}
    assert figures["before the crash"].value == 1.0  # what it had is kept
    assert figures["right"] == Figure("right", 2.5, "us", 0.5)
    assert heard[-1] == {"finished": True}


def test_after_a_lost_context_the_rest_has_a_process_of_its_own(tmp_path):
    heard, _ = run(tmp_path, ["gone", "lost", "right"])
    assert [said["begin"] for said in heard if "begin" in said] == ["gone", "lost", "right"]
    text = (tmp_path / "log").read_text()
    assert "illegal memory access" in text
    assert not gpu_lines.is_broken("CUDA out of memory. Tried to allocate")


def test_a_command_that_does_nothing_is_not_started_for_ever(tmp_path):
    path = tmp_path / "lines"
    child = Child("idle", [sys.executable, "-c", "raise SystemExit(7)"], path, 20.0)
    heard = []
    with (tmp_path / "log").open("wb") as log:
        assert watch([child], 60, 1, lambda _, said: heard.append(said), log) == []
    assert heard == [{"end": "idle", "outcome": "failed", "words": "died with exit code 7"}]


def test_what_is_not_over_in_time_is_named_and_ended(tmp_path):
    began = time.monotonic()
    heard, late = run(tmp_path, ["gone", "hang", "right"], seconds=12.0)
    assert [child.at for child in late] == ["hang"]
    assert time.monotonic() - began < 50  # and not the minute that it would hang
    pid = next(int(figure.value) for figure in gpu_lines.figures_of(heard))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_several_run_at_once(tmp_path):
    """As the files of tests do: each waits for the other, so one by one they would never end."""
    code = (
        "import sys,time,pathlib;mine,other=map(pathlib.Path,sys.argv[1:]);"
        "mine.with_suffix('.here').touch()\n"
        "while not other.with_suffix('.here').exists(): time.sleep(0.05)\n"
        "mine.write_text('{\"finished\": true}\\n')"
    )
    paths = [tmp_path / name for name in "ab"]
    children = [
        Child(p.name, [sys.executable, "-c", code, str(p), str(q)], p, 20.0)
        for p, q in (paths, paths[::-1])
    ]
    with (tmp_path / "log").open("wb") as log:
        assert watch(children, 30, 2, lambda *_: None, log) == []


def test_a_process_may_leave_the_rest_to_the_next(tmp_path):
    path = tmp_path / "lines"
    cases = [Case(name, lambda: ()) for name in "abc"]
    for n, last in ((1, False), (2, False), (3, True)):
        gpu_lines.run_cases(cases, path, most=1)
        lines, _ = gpu_lines.read(path)
        assert [said["begin"] for said in lines if "begin" in said] == list("abc")[:n]
        assert ({"finished": True} in lines) == last


def test_half_a_line_is_read_when_it_is_whole(tmp_path):
    path = tmp_path / "lines"
    path.write_text('{"begin": "a"}\n{"beg')
    lines, at = gpu_lines.read(path)
    assert lines == [{"begin": "a"}]
    path.write_text('{"begin": "a"}\n{"begin": "b"}\n')
    assert gpu_lines.read(path, at)[0] == [{"begin": "b"}]


# --- goals and report ----------------------------------------------------------------------------


def verdicts(*figures):
    return {v.goal.name: v for v in judge({f.name: f for f in figures}, GOALS)}


def test_every_goal_is_there_with_its_number():
    wanted = [(goal.name, goal.wanted) for goal in GOALS]
    assert wanted[:10] == [
        ("correctness: tests that failed", "<= 0"),
        ("8B decode, batch 1: share of the limit", ">= 75 %"),
        ("8B decode, batch 32: share of the limit", ">= 70 %"),
        ("8B decode, batch 256: share of the limit", ">= 60 %"),
        ("8B prefill of 4096: share of the limit", ">= 65 %"),
        ("0.5B decode, batch 1: share of the limit", ">= 35 %"),
        ("device idle, 8B, batch 32", "<= 3 %"),
        ("decode attention: time over FlashInfer's, the worst", "<= 1.05"),
        ("prefill attention of 16384", ">= 400 TFLOP/s"),
        ("shared trunk: plain list's time over ours", ">= 8"),
    ]
    peers = wanted[10:]
    assert len(peers) == 6
    assert all(name.startswith("over transformers, Qwen") and w == ">= 3 x" for name, w in peers)
    assert {v.verdict for v in judge({}, GOALS)} == {"not measured"}


def test_goals_are_met_missed_or_not_measured():
    name = "8B decode, batch 1: share of the limit"
    figure = decode_name(LARGE, 1, 1024)
    for share, expected in ((0.76, "met"), (0.75, "met"), (0.74, "missed")):
        assert verdicts(Figure(figure, 200.0, "tok/s", share))[name].verdict == expected
    assert verdicts(Figure(figure, "does not fit the memory"))[name].verdict == "not measured"
    trunks = [
        Figure(trunk_name(LARGE, "plain list"), 90.0),
        Figure(trunk_name(LARGE, "shared"), 10.0),
    ]
    ours = verdicts(*trunks)["shared trunk: plain list's time over ours"]
    assert (ours.value, ours.verdict) == (9.0, "met")
    assert verdicts(trunks[1])["shared trunk: plain list's time over ours"].value is None


def test_a_goal_of_several_numbers_goes_by_the_worst_and_needs_them_all():
    ours = gpu_goals.attention_name(LARGE, 1, 1024)
    other = gpu_goals.attention_name(LARGE, 32, 4096)
    name = "decode attention: time over FlashInfer's, the worst"

    def beside(figure, ratio):
        return [Figure(figure, ratio), Figure(gpu_goals.theirs(figure, "FlashInfer"), 1.0)]

    some = verdicts(*beside(ours, 0.9))[name]
    assert (some.value, some.verdict) == (0.9, "not measured")
    assert verdicts(*beside(ours, 0.9), *beside(other, 1.2))[name].verdict == "missed"
    whole = [
        figure
        for batch in gpu_goals.BATCHES
        for context in gpu_goals.CONTEXTS
        for figure in beside(gpu_goals.attention_name(LARGE, batch, context), 1.05)
    ]
    assert verdicts(*whole)[name].verdict == "met"


def test_ratios_to_the_peer_are_named_by_workload():
    name = workload_name("Qwen2.5-0.5B", "shared prefix")
    figures = Figure(name, 900.0), Figure(gpu_goals.theirs(name, "transformers"), 300.0)
    assert verdicts(*figures)[f"over transformers, {name}"].verdict == "met"


def test_failed_tests_miss_the_first_goal():
    for failed, expected in ((0, "met"), (1, "missed")):
        told = verdicts(Figure(gpu_goals.FAILED_TESTS, failed))
        assert told["correctness: tests that failed"].verdict == expected


def test_the_page_and_the_json_hold_what_is_known_so_far(tmp_path):
    report = Report({"card": "a card"})
    report.add("attention", Figure("a kernel", 12.34, "us", 0.5))
    report.add("attention", Figure("a kernel", 12.4, "us", 0.51))
    report.problems.append("something failed")
    files = tmp_path / "deep" / "x.json", tmp_path / "x.md"
    report.write(*map(str, files))
    page, data = files[1].read_text(), json.loads(files[0].read_text())
    assert "| a kernel | 12.4 us | 51 % |" in page
    assert "Not finished" in page
    assert "- something failed" in page
    assert data["figures"]["attention"] == [
        {"name": "a kernel", "value": 12.4, "unit": "us", "share": 0.51}
    ]
    assert len(data["goals"]) == len(GOALS)
    report.finished = True
    assert "Not finished" not in report.markdown()
    assert not list(tmp_path.rglob(".*"))


def test_lines_of_the_table():
    assert line(Figure("x", 123456.0, "tok/s", 0.754)).split() == [
        "x",
        "123,456",
        "tok/s",
        "75",
        "%",
    ]
    assert line(Figure("x", "does not fit")).endswith("does not fit")
    assert goal_line(judge({}, GOALS)[0]).split()[-2:] == ["not", "measured"]


# --- the command ---------------------------------------------------------------------------------


def test_the_plan_names_every_part_and_what_it_needs():
    parts = gpu_check.plan()
    assert parts[0].name == "tests"
    assert [p.name for p in parts[1:3]] == ["attention", "engine Llama-3.1-8B"]
    from gpu_parts import PARTS

    assert {p.argument for p in parts if p.script == "gpu_parts.py"} == set(PARTS)
    assert all("torch" not in p.needs for p in parts)  # without it nothing starts
    assert gpu_check.parse(["--only", "tests", "--budget-s", "9"]).budget_s == 9.0


@pytest.fixture
def check(tmp_path):
    files = ["--json", str(tmp_path / "x.json"), "--markdown", str(tmp_path / "x.md")]
    with (tmp_path / "log").open("wb") as log:
        yield gpu_check.Check(gpu_check.parse(files), tmp_path, log)


def test_parts_without_packages_or_time_are_left_out_and_named(check, tmp_path, capsys):
    parts = [
        gpu_check.Part("a", "x.py", 9, 9, ("torch", "no_such_package", "nor_this")),
        gpu_check.Part("b", "x.py", 9, 9, ("torch",)),
    ]
    check.run(parts, time.monotonic() + 1)
    assert check.report.skipped == [
        "a: not installed: no_such_package, nor_this",
        "b: no time was left of the 460 s",
    ]
    assert "b: no time was left" in capsys.readouterr().out
    assert json.loads((tmp_path / "x.json").read_text())["finished"]


def test_figures_and_failures_of_a_part_are_kept(check, tmp_path, monkeypatch):
    """From the process to the page: a part that fails in the middle."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(benchmarks=str(BENCHMARKS), cases=["fail", "crash", "right"])
                      .replace("sys.argv[1]", "sys.argv[2]"))  # fmt: skip
    monkeypatch.setattr(gpu_check, "HERE", tmp_path)
    check.run([gpu_check.Part("some part", script.name, 60, 20, (), "x")], time.monotonic() + 60)
    named = [figure.name for figure in check.report.figures["some part"]]
    assert named == ["before the crash", "right"]
    assert check.report.problems == [
        "fail: ValueError: wrong",
        "crash: died with exit code 9",
    ]
    assert "| right | 2.5 us | 50 % |" in (tmp_path / "x.md").read_text()


@pytest.fixture
def some_tests(tmp_path, monkeypatch):
    """A function that puts tests into a folder beside what is beside those of tests/gpu."""
    folder, real = tmp_path / "tests", ROOT / "tests" / "gpu"
    folder.mkdir()
    conftest = (real / "conftest.py").read_text()
    (folder / "conftest.py").write_text(conftest.replace("HERE.parents[1]", f"Path({str(ROOT)!r})"))
    (folder / "alone.ini").write_text((real / "alone.ini").read_text())
    monkeypatch.setattr(gpu_check, "TESTS", folder)
    return lambda text: (folder / "test_a.py").write_text(text)


def run_tests(check, seconds):
    check.run([gpu_check.Part("tests", "", seconds, 250, ())], time.monotonic() + 280)
    return {figure.name: figure.value for figure in check.report.figures["tests"]}


def test_tests_are_counted_one_by_one(check, some_tests):
    some_tests(
        "import os, pytest\n"
        "lost = []\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_lost(): lost.append(1); raise RuntimeError('CUDA error: launch failure')\n"
        "def test_next(): assert not lost, 'the process of a lost context goes on'\n"
        "def test_dead(): os._exit(11)\n"
        "@pytest.mark.skip(reason='why not')\n"
        "def test_not(): pass\n"
        "@pytest.fixture\n"
        "def gone(): yield; raise ValueError('torn down')\n"
        "def test_end(gone): pass\n"
        "def test_last(): pass\n"
    )
    told = run_tests(check, 270)
    assert told["tests/gpu/test_a.py"] == "4 failed, 3 passed, 1 skipped"
    assert (told[gpu_goals.FAILED_TESTS], told["tests that passed"]) == (4, 3)
    problems = [text.rpartition("::")[2] for text in check.report.problems]
    assert problems == [
        "test_bad: assert 1 == 2",
        "test_lost: RuntimeError: CUDA error: launch failure",
        "test_dead: died with exit code 11",
        "test_end: ValueError: torn down",
    ]


def test_a_file_of_tests_that_is_not_over_in_time_has_failed(check, some_tests):
    some_tests("import time\ndef test_slow(): time.sleep(60)\n")
    assert run_tests(check, 5)[gpu_goals.FAILED_TESTS] == 1
    [problem] = check.report.problems
    assert problem.endswith(": not over after 5 s")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU here")
def test_without_a_gpu_it_says_so_in_one_line():
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (BENCHMARKS, ROOT)))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("gpu_check: device cuda: no NVIDIA GPU can be used here")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU here")
def test_make_needs_no_installation(tmp_path):
    """From a bare checkout, by any Python that has the packages: its own paths are enough."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = ["make", "-s", "gpu-check", f"PYTHON={sys.executable}", f"OUT={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert "gpu_check: device cuda: no NVIDIA GPU can be used here" in done.stderr
    assert "No module" not in done.stderr
