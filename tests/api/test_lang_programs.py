"""Programs over the real `Engine` and the real server, with a fake model: ids reach the engine."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from byte_tokenizer import byte_tokenizer
from fake_core import FakeCore

import ramify.lang as rl
from ramify.srt.engine import Engine


@rl.function
def program(s, word):
    s += word + rl.gen("first", max_tokens=2)
    forks = s.fork(2)
    forks += lambda i: str(i) + rl.gen("branch", max_tokens=1)
    forks.join()


class Recording(FakeCore):
    """Keeps what was submitted."""

    def __init__(self):
        super().__init__()
        self.submits = []

    def submit(self, message, now):
        self.submits.append(message)
        return super().submit(message, now)


def test_the_engine_is_told_what_belongs_together():
    core = Recording()
    with Engine.over(core, byte_tokenizer()) as engine:
        states = program.run_batch([("a",), ("k",)], backend=engine)
    assert [state["first"] for state in states] == ["bc", "lm"]
    ids = [submit.program_id for submit in core.submits]
    assert len(ids) == 2 * 4, "a generation, the trunk of the branches, and two branches each"
    assert sorted(ids.count(program_id) for program_id in set(ids)) == [4, 4]


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_takes_programs(server, stream):
    with rl.RuntimeEndpoint(server.url) as backend:
        state = program.run("a", backend=backend, stream=stream)
        state.sync()
        assert state["first"] == "bc"
        assert state["branch"] == ["1", "2"]
