"""Grammars are compiled away from the engine's loop, by a process that may hang, burst or crash.

The engine is scripted, so that it does all of this on demand; processes, limits and kills are real.
"""

import contextlib
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from byte_tokenizer import byte_tokenizer
from waiting import is_alive, wait_until

from ramify.srt.clock import VirtualClock
from ramify.srt.constrained.base import GrammarError
from ramify.srt.constrained.child_process import CompileLimits
from ramify.srt.constrained.child_wire import BackendSource
from ramify.srt.constrained.manager import MAX_TEXT, GrammarManager
from ramify.srt.errors import QueueFull, Unavailable
from ramify.srt.grammar import GrammarSpec

HERE = Path(__file__).parent
MIB = 2**20
LIMITS = CompileLimits(timeout_s=1.0, memory_bytes=256 * MIB)
VOCAB_SIZE, END_ID = 1001, 1000


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer()._backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def source(tokenizer_folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)  # for the child
    monkeypatch.syspath_prepend(HERE)  # for this process
    return BackendSource(
        "scripted", str(tokenizer_folder), VOCAB_SIZE, (END_ID,), "scripted_grammars:load"
    )


@pytest.fixture
def make(source):
    """Managers that are closed at the end."""
    made = []

    def start(limits=LIMITS, source=source, **options) -> GrammarManager:
        made.append(GrammarManager(source, limits, **options))
        return made[-1]

    yield start
    for manager in made:
        manager.close()


def spec(text: str) -> GrammarSpec:
    return GrammarSpec("regex", text, param="regex")


def settle(manager: GrammarManager, *tickets, timeout_s: float = 30.0) -> None:
    """Wait as a scheduler that has nothing else to do."""
    ends = time.monotonic() + timeout_s
    while any(ticket.state == "pending" for ticket in tickets):
        assert time.monotonic() < ends, "a ticket was never settled"
        manager.wait(1.0)


def child_of(manager: GrammarManager) -> int | None:
    """Its one child, if there is one."""
    pids = manager.child_pids
    assert len(pids) <= 1
    return pids[0] if pids else None


def compiled(manager: GrammarManager, text: str):
    ticket = manager.request(spec(text))
    settle(manager, ticket)
    return ticket


def gone_within(pid: int, timeout_s: float) -> bool:
    ends = time.monotonic() + timeout_s
    while is_alive(pid) and time.monotonic() < ends:
        time.sleep(0.02)
    return not is_alive(pid)


def processes_in(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


# --- one grammar ---


def test_a_ticket_is_given_at_once_and_ready_later(make):
    """The loop goes on meanwhile: no call but `wait` may take time."""
    manager = make()
    began = time.monotonic()
    ticket = manager.request(spec("sleep:0.2"))
    assert manager.poll() == []
    assert time.monotonic() - began < 0.1
    assert ticket.state == "pending"
    assert manager.pending == 1
    settle(manager, ticket)
    assert (ticket.state, ticket.grammar.text, ticket.error) == ("ready", "sleep:0.2", None)
    assert manager.pending == 0


def test_a_process_with_many_open_files_compiles_too(make):
    """The child's socket may have a number over those that every way to wait takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            stack.enter_context(open(os.devnull))
        assert compiled(make(), "good").state == "ready"


def test_who_comes_later_finds_it_ready(make, tmp_path):
    log = tmp_path / "log"
    manager = make()
    first = compiled(manager, f"count:{log}")
    again = manager.request(spec(f"count:{log}"))
    assert (again.state, again.grammar) == ("ready", first.grammar)
    assert processes_in(log) == [child_of(manager), os.getpid()]  # tried there, then made here


def test_two_that_ask_for_one_grammar_share_one_compile(make, tmp_path):
    log = tmp_path / "log"
    manager = make()
    tickets = [manager.request(spec(f"count:{log}")) for _ in range(2)]
    settle(manager, *tickets)
    assert tickets[0].grammar is tickets[1].grammar is not None
    assert len(processes_in(log)) == 2


def test_a_refusal_is_not_worked_for_again_for_a_while(make):
    clock = VirtualClock()
    manager = make(clock=clock, refusal_s=60.0)
    first = compiled(manager, "refuse:not that")
    assert isinstance(first.error, GrammarError)
    assert (first.error.code, first.error.message) == ("unsupported_schema", "not that")
    clock.advance(59.0)
    assert manager.request(spec("refuse:not that")).error is first.error
    clock.advance(2.0)
    assert manager.request(spec("refuse:not that")).state == "pending"


def test_a_grammar_may_be_longer_than_what_a_socket_holds(make):
    """A frame that both ends wait for the other to take would be a time-out for honest schemas."""
    assert compiled(make(), "x" * (MAX_TEXT - 1)).state == "ready"


@pytest.mark.parametrize(
    ("text", "code"),
    [("x" * (MAX_TEXT + 1), "grammar_too_large"), ("a\ud800", "invalid_grammar")],
    ids=["too long", "half a character"],
)
def test_what_cannot_be_sent_is_refused_at_once(make, text, code):
    manager = make()
    assert manager.request(spec(text)).error.code == code
    assert child_of(manager) is None


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("sleep:60", "grammar_timeout"),
        ("stuck", "grammar_timeout"),
        ("drag:0.05", "grammar_timeout"),
        (f"allocate:{400 * MIB}", "grammar_too_large"),
        (f"hold:{40 * MIB}", "grammar_too_large"),
        ("abort", "grammar_too_large"),
        ("crash", "grammar_too_large"),
        ("deep", "grammar_too_large"),
        ("bug", "invalid_grammar"),
        (f"panic_in:{os.getpid()}", "invalid_grammar"),
    ],
)
def test_a_grammar_that_breaks_something_harms_only_its_own_request(make, text, code):
    manager = make()
    bad, good = manager.request(spec(text)), manager.request(spec("good"))
    settle(manager, bad, good)
    assert isinstance(bad.error, GrammarError)
    assert bad.error.code == code
    assert bad.error.__traceback__ is None  # it is kept: it must not keep what it came through
    assert good.state == "ready"


def test_the_time_limit_is_each_grammars_own(make):
    """One behind a slow one has the whole limit too: the wait is not counted."""
    manager = make()
    tickets = [manager.request(spec(f"sleep:0.6{i}")) for i in range(3)]
    settle(manager, *tickets)
    assert [ticket.state for ticket in tickets] == ["ready"] * 3


def test_a_child_that_holds_on_to_memory_is_replaced(make):
    """Else one client's grammars would use up what the next one's may have."""
    manager = make()
    assert compiled(manager, "good").state == "ready"
    first = child_of(manager)
    compiled(manager, f"keep:{210 * MIB}")
    assert gone_within(first, 1.0)
    assert compiled(manager, f"allocate:{200 * MIB}").state == "ready"
    assert child_of(manager) not in (None, first)


def test_a_child_that_somebody_kills_is_replaced(make):
    manager = make()
    compiled(manager, "good")
    first = child_of(manager)
    os.kill(first, signal.SIGKILL)
    assert gone_within(first, 1.0)
    assert compiled(manager, "better").state == "ready"


def test_what_grammars_really_hold_fills_the_cache(make):
    """Grammars of the scripted engine say that they hold 1000 bytes."""
    manager = make(cache_bytes=20 * MIB)
    texts = [f"hold:{8 * MIB + i}" for i in range(3)]
    assert [compiled(manager, text).state for text in texts] == ["ready"] * 3
    assert manager.request(spec(texts[2])).state == "ready"
    assert manager.request(spec(texts[0])).state == "pending"  # two fit, and it was the first


def test_those_done_meanwhile_make_room_in_the_queue(make):
    """Whoever asked may have given up, and then nobody polls."""
    manager = make(max_pending=1)
    manager.request(spec("good"))
    time.sleep(0.1)
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        try:
            assert manager.request(spec("better")).state == "pending"
            return
        except QueueFull:
            time.sleep(0.05)
    pytest.fail("the queue stayed full")


def test_too_many_to_compile_are_refused_and_nothing_is_lost(make):
    manager = make(max_pending=2)
    tickets = [manager.request(spec(f"sleep:0.1{i}")) for i in range(2)]
    with pytest.raises(QueueFull, match="2 grammars wait") as caught:
        manager.request(spec("one more"))
    assert (caught.value.status, caught.value.param) == (503, "regex")
    assert manager.request(spec("sleep:0.10")) is tickets[0]  # costs nothing: not refused
    settle(manager, *tickets)
    assert compiled(manager, "one more").state == "ready"


def test_an_engine_that_is_not_installed_is_told_to_the_client(make, source, monkeypatch):
    """Nothing is started for it; other kinds do not need it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    manager = make(source=msgspec.structs.replace(source, name="auto"))
    ticket = manager.request(GrammarSpec("structural_tag", "{}"))
    assert ticket.error.code == "unsupported_schema"
    assert "xgrammar is not installed" in ticket.error.message
    assert child_of(manager) is None


def test_a_slow_engine_holds_up_no_other(make, source):
    """Each engine has a child: tags, whose engine takes seconds to load, leave regexes alone."""
    manager = make(source=msgspec.structs.replace(source, name="auto"))
    slow = manager.request(GrammarSpec("structural_tag", "sleep:0.8"))
    fast = compiled(manager, "good")
    assert (fast.state, slow.state) == ("ready", "pending")
    settle(manager, slow)
    assert slow.state == "ready"
    assert len(manager.child_pids) == 2


def test_an_engine_that_cannot_be_loaded_is_nobodys_grammar(make, source):
    """503, not 400; and asked again the next time, as an operator may have mended it."""
    manager = make(source=msgspec.structs.replace(source, name="another"))
    ticket = compiled(manager, "good")
    assert isinstance(ticket.error, Unavailable)
    assert manager.request(spec("good")).state == "pending"


# --- the child's life ---


def test_nothing_is_started_until_a_grammar_comes(make):
    manager = make()
    assert manager.wait(10.0) == []  # at once: there is nothing to wait for
    assert child_of(manager) is None


def test_warming_up_starts_the_child_early(make, tmp_path):
    manager = make()
    manager.warm_up()
    wait_until(lambda: child_of(manager) is not None)
    early = child_of(manager)
    log = tmp_path / "log"
    assert compiled(manager, f"count:{log}").state == "ready"
    assert processes_in(log)[0] == early


def test_the_child_is_light_and_steps_back(make):
    """It shares a machine with the model: no torch, and it comes second."""
    manager = make()
    compiled(manager, "good")
    pid = child_of(manager)
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(
        19, os.getpriority(os.PRIO_PROCESS, 0) + LIMITS.nice
    )


def states_during(make, text: str, work) -> set[str]:
    """The states that the system tells of the child while it compiles, and this thread works."""
    manager = make()
    compiled(manager, "good")
    stat, ticket = Path(f"/proc/{child_of(manager)}/stat"), manager.request(spec(text))
    seen, ends = set(), time.monotonic() + 0.4
    while time.monotonic() < ends:
        work()
        seen.add(stat.read_text().rsplit(") ", 1)[1][0])
    settle(manager, ticket)
    assert ticket.state == "ready"
    return seen


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("work", "rests"), [(lambda: sum(range(1000)), True), (lambda: time.sleep(0.002), False)]
)
def test_a_long_compile_rests_while_this_process_computes(make, work, rests):
    assert ("T" in states_during(make, "sleep:0.5", work)) == rests


def test_closing_ends_the_child_and_what_waits_for_it(make):
    manager = make(limits=CompileLimits(timeout_s=60.0))
    compiled(manager, "good")
    stuck, waiting = manager.request(spec("stuck")), manager.request(spec("never"))
    pid = child_of(manager)
    time.sleep(0.1)
    began = time.monotonic()
    manager.close()
    assert time.monotonic() - began < 1.0
    assert isinstance(stuck.error, Unavailable)
    assert isinstance(waiting.error, Unavailable)
    assert isinstance(manager.request(spec("late")).error, Unavailable)
    assert gone_within(pid, 1.0)
    assert "grammars" not in [thread.name for thread in threading.enumerate()]


PARENT = """
import sys, time
from ramify.srt.constrained.child_process import CompileLimits
from ramify.srt.constrained.child_wire import BackendSource
from ramify.srt.constrained.manager import GrammarManager
from ramify.srt.grammar import GrammarSpec

source = BackendSource("scripted", sys.argv[1], 1001, (1000,), "scripted_grammars:load")
manager = GrammarManager(source, CompileLimits(timeout_s=1.0))
ticket = manager.request(GrammarSpec("regex", "good"))
while ticket.state == "pending":
    manager.wait(1.0)
manager.request(GrammarSpec("regex", sys.argv[2]))
print(*manager.child_pids, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("busy_with", "resting"), [("good", False), ("stuck", False), ("stuck", True)]
)
def test_no_child_outlives_a_parent_that_is_killed(source, busy_with, resting):
    """Idle it sees the socket's end; in an engine that never returns, or while it is made to rest,
    only the system can end it."""
    parent = subprocess.Popen(
        (sys.executable, "-P", "-c", PARENT, source.folder, busy_with), stdout=subprocess.PIPE
    )
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    time.sleep(0.2)
    if resting:
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.communicate()
    assert gone_within(pid, 5.0)
