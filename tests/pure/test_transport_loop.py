"""The engine loop over a local pair: every Submit is answered exactly once, to its own sender."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from fake_core import EOS, FakeCore, Knobs

from ramify.srt.clock import VirtualClock
from ramify.srt.messages import (
    Abort,
    Finished,
    Flush,
    Flushed,
    Hello,
    Inspect,
    Inspected,
    Pin,
    Pinned,
    Ready,
    Rejected,
    ShowTree,
    Submit,
    Tokens,
    TreeShown,
    Unpin,
    pack_ids,
)
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.workers.engine_loop import run


class Script:
    """A transport that plays one batch of (frontend, message) before each step."""

    def __init__(self, *batches, deaf: tuple[bytes, ...] = ()) -> None:
        self.batches = list(batches)
        self.deaf = deaf
        self.frames: list[tuple[bytes, list]] = []
        self.idle_waits = 0

    def receive(self, timeout_s):
        self.idle_waits += timeout_s > 0
        return self.batches.pop(0) if self.batches else []

    def send(self, frontend_id, messages):
        if frontend_id in self.deaf:
            return False
        self.frames.append((frontend_id, messages))
        return True

    def close(self):
        pass

    def sent_to(self, frontend_id: bytes) -> list:
        return [m for to, messages in self.frames if to == frontend_id for m in messages]


def submit(request_id: str, *ids: int, new: int = 3, **sampling) -> Submit:
    params = SamplingParams(max_new_tokens=new, **sampling)
    return Submit(request_id, pack_ids(ids or (1,)), params)


def play(script: Script, core: FakeCore | None = None, steps: int | None = None) -> FakeCore:
    """Run until the script is over and the core is idle, or for some steps."""
    core = core or FakeCore()
    left = iter(range(10_000 if steps is None else steps))

    def over():
        done = steps is None and not script.batches and core.idle
        return done or next(left, None) is None

    run(core, script, VirtualClock(), over)
    return core


A, B = b"A", b"B"


def test_tokens_then_one_finished_go_to_the_sender():
    script = Script([(A, submit("a", 5)), (B, submit("b", 7, new=1))])
    play(script)
    tokens = [m.token_ids for m in script.sent_to(A) if isinstance(m, Tokens)]
    assert tokens == [[6], [7], [8]]
    assert isinstance(script.sent_to(A)[-1], Finished)
    assert [type(m) for m in script.sent_to(B)] == [Tokens, Finished]


def test_a_step_sends_one_frame_to_each_frontend():
    script = Script([(A, submit(f"a{i}", new=1)) for i in range(5)] + [(B, submit("b", new=1))])
    play(script)
    assert [frontend for frontend, _ in script.frames] == [A, B]


def test_questions_are_answered():
    script = Script([(A, Hello()), (A, Flush(7)), (A, Inspect(8))])
    core = play(script)
    ready, flushed, inspected = script.sent_to(A)
    assert isinstance(ready, Ready)
    assert ready.info == core.info
    assert flushed == Flushed(7, True)
    assert isinstance(inspected, Inspected)
    assert (inspected.call_id, inspected.violations) == (8, [])


IDS = pack_ids([1, 2])


def test_pins_and_the_tree_are_answered():
    calls = [Pin(1, IDS, "", 5.0), ShowTree(2, 10), Unpin(3, IDS, "other"), Unpin(4, IDS, "")]
    script = Script([(A, call) for call in calls])
    play(script)
    pinned, shown, *unpinned = script.sent_to(A)
    assert pinned == Pinned(1, 2)
    assert isinstance(shown, TreeShown)
    assert (shown.call_id, shown.total, shown.nodes[0].token_ids) == (2, 1, [1, 2])
    assert unpinned == [Pinned(3, 0), Pinned(4, 2)]


@pytest.mark.parametrize(
    "bad",
    [
        Pin(1, b"", "", 5.0),
        Pin(1, b"123", "", 5.0),
        Pin(1, pack_ids([1024]), "", 5.0),
        Pin(1, IDS, "", 0.0),
        Pin(1, IDS, "", float("nan")),
        Pin(1, IDS, "", float("inf")),
        Unpin(1, b"12345", ""),
    ],
)
def test_a_pin_that_makes_no_sense_is_refused_whoever_sends_it(bad):
    script = Script([(A, bad), (A, ShowTree(2, 10))])
    core = play(script)
    refused, shown = script.sent_to(A)
    assert refused.tokens == 0
    assert refused.error
    assert (shown.total, core.pinned) == (0, {})


def test_a_flush_is_refused_while_requests_run():
    script = Script([(A, submit("a"))], [(A, Flush(1))])
    play(script)
    assert Flushed(1, False) in script.sent_to(A)


def test_an_abort_ends_the_request_and_unknown_ones_are_ignored():
    script = Script(
        [(A, submit("a", new=100))], [(A, Abort("a")), (A, Abort("a")), (A, Abort("never"))]
    )
    play(script)
    assert [m.reason for m in script.sent_to(A) if isinstance(m, Finished)] == ["abort"]


def test_an_id_in_use_is_rejected_and_the_first_goes_on():
    script = Script([(A, submit("x")), (B, submit("x"))])
    play(script)
    [rejected] = script.sent_to(B)
    assert isinstance(rejected, Rejected)
    assert rejected.param == "rid"
    assert isinstance(script.sent_to(A)[-1], Finished)


def test_an_id_may_be_used_again_after_its_end():
    script = Script([(A, submit("x", new=1))], [], [(A, submit("x", new=1))])
    play(script)
    assert sum(isinstance(m, Finished) for m in script.sent_to(A)) == 2


def test_a_rejection_of_the_core_reaches_the_sender():
    script = Script([(A, submit("a", 13))])
    play(script, FakeCore(Knobs(reject_at=13)))
    assert [m.kind for m in script.sent_to(A)] == ["QueueFull"]


@pytest.mark.parametrize(
    "bad",
    [
        Submit("a", b"", SamplingParams()),
        Submit("a", b"123", SamplingParams()),
        submit("a", 1024),
        submit("a", 2**32 - 1),
        submit("a", temperature=float("nan")),
        submit("a", logit_bias={5000: 1.0}),
        submit("a", stop_token_ids=(-1,)),
    ],
)
def test_what_would_hurt_others_is_rejected_whoever_sends_it(bad):
    """Ids beyond the logits' width would write into another request's row."""
    script = Script([(A, bad), (A, submit("good"))])
    play(script)
    kinds = [m.kind for m in script.sent_to(A) if isinstance(m, Rejected)]
    assert kinds == ["InvalidRequest"]
    assert any(isinstance(m, Finished) and m.request_id == "good" for m in script.sent_to(A))


def test_a_frontend_that_is_gone_is_forgotten_and_its_requests_end():
    script = Script([(A, submit("a", new=1000)), (B, submit("b", new=5))], deaf=(A,))
    core = play(script)
    assert core.aborted == ["a"]
    assert core.steps < 10, "the lost frontend's request does not run on"
    assert isinstance(script.sent_to(B)[-1], Finished)


def test_stopping_answers_what_is_open():
    script = Script([(A, submit("a", new=1000)), (B, submit("b", new=1000))])
    play(script, steps=3)
    for frontend in (A, B):
        assert script.sent_to(frontend)[-1].reason == "abort"


def test_an_idle_engine_waits_and_a_busy_one_does_not():
    script = Script([(A, submit("a", new=5))])
    play(script)
    assert script.idle_waits == 1


def test_an_error_of_the_core_ends_the_loop():
    with pytest.raises(RuntimeError, match="told to fail"):
        play(Script([(A, submit("a", 13))]), FakeCore(Knobs(raise_at=13)))


MESSAGES = st.one_of(
    st.builds(
        submit, st.sampled_from("abcd"), st.sampled_from([1, 13, EOS - 2]), new=st.integers(0, 4)
    ),
    st.builds(Abort, st.sampled_from("abcd")),
    st.builds(Flush, st.integers(0, 3)),
)


@given(st.lists(st.lists(st.tuples(st.sampled_from([A, B]), MESSAGES), max_size=4), max_size=12))
def test_every_submit_is_answered_exactly_once(batches):
    script = Script(*batches)
    play(script, FakeCore(Knobs(reject_at=13)))
    for frontend in (A, B):
        sent = [m for batch in batches for to, m in batch if to == frontend]
        submitted = Counter(m.request_id for m in sent if isinstance(m, Submit))
        answers = script.sent_to(frontend)
        ended = Counter(m.request_id for m in answers if isinstance(m, Finished | Rejected))
        assert ended == submitted
        flushes = [m.call_id for m in sent if isinstance(m, Flush)]
        assert [m.call_id for m in answers if isinstance(m, Flushed)] == flushes
