"""Who makes way for whom, what ends in time, and how much may wait."""

import sys
from pathlib import Path

import pytest

from ramify.srt.messages import Finished

sys.path.insert(0, str(Path(__file__).parent))
from scheduler_steps import order_of_ends, scheduler, step, submit

# --- priority: making way ------------------------------------------------------------------------


def run_until_first_token(s, request_id):
    while True:
        for message in step(s)[1]:
            if message.request_id == request_id:
                return


def test_a_larger_priority_takes_the_place_of_the_latest_of_the_smallest():
    s = scheduler("priority", running=3)
    for name, priority in (("low0", 0), ("low1", 0), ("mid", 1)):
        s.submit(submit(name, [ord(c) for c in name], max_new=20, priority=priority), 0.0)
    run_until_first_token(s, "mid")
    s.submit(submit("high", [9, 9], max_new=2, priority=2), 0.0)
    step(s)
    assert list(s.running) == ["mid", "low0", "high"]
    assert order_of_ends(s)[0] == "high"
    assert s.stats().retractions == 1


def test_a_larger_priority_takes_the_pages_of_smaller_ones():
    s = scheduler("priority", n_pages=12, running=8)
    s.submit(submit("low", [1] * 30, max_new=16, priority=0), 0.0)
    run_until_first_token(s, "low")
    s.submit(submit("high", [2] * 30, max_new=2, priority=1), 0.0)
    assert order_of_ends(s) == ["high", "low"]
    assert s.violations() == []


def test_an_equal_priority_makes_no_way_and_neither_does_another_policy():
    for policy, priority in (("priority", 0), ("fcfs", 9)):
        s = scheduler(policy)
        s.submit(submit("first", [1], max_new=5), 0.0)
        step(s)
        s.submit(submit("second", [2], max_new=5, priority=priority), 0.0)
        assert order_of_ends(s) == ["first", "second"]
        assert s.stats().retractions == 0


def test_who_was_overtaken_too_often_makes_way_no_more():
    """Otherwise it would go first again at once, and two requests would take turns for ever."""
    s = scheduler("priority", bound=2)
    s.submit(submit("low", [1, 1], max_new=4), 0.0)
    step(s)
    ended = []
    for i in range(6):
        s.submit(submit(f"high{i}", [2, i + 1], max_new=1, priority=1), 0.0)
        ended += [m.request_id for m in step(s)[1] if isinstance(m, Finished)]
    assert ended[:2] == ["high0", "high1"]
    ended += order_of_ends(s)
    assert ended.index("low") == 2
    assert s.stats().retractions <= 2


# --- deadlines and limits ------------------------------------------------------------------------


def test_what_is_past_its_deadline_ends_whether_it_waits_or_runs():
    s = scheduler("fcfs")
    s.submit(submit("runs", range(1, 9), max_new=50, timeout_s=2.0), 10.0)
    s.submit(submit("waits", [3, 4], timeout_s=1.0), 10.0)
    s.submit(submit("patient", [5, 6]), 10.0)
    step(s)
    assert s.expire(10.9) == []
    (ended,) = s.expire(11.0)
    assert (ended.request_id, ended.reason, ended.completion_tokens) == ("waits", "timeout", 0)
    (ended,) = s.expire(12.5)
    assert (ended.request_id, ended.reason, ended.completion_tokens) == ("runs", "timeout", 1)
    assert s.stats().cached_tokens_held == 8  # what it computed stays
    assert order_of_ends(s) == ["patient"]
    assert s.expire(99.0) == []


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_deadline_in_the_past_is_refused(timeout_s):
    rejected = scheduler("fcfs").submit(submit("a", [1], timeout_s=timeout_s), 0.0)
    assert (rejected.kind, rejected.param) == ("InvalidRequest", "timeout_s")


def test_prompt_tokens_that_wait_are_limited():
    s = scheduler("fcfs", max_queued_tokens=10)
    assert s.submit(submit("long", range(1, 21)), 0.0) is None  # nothing else waits
    assert s.submit(submit("a", [1]), 0.0).kind == "QueueFull"
    step(s)
    assert s.submit(submit("b", range(1, 8)), 0.0) is None
    assert s.submit(submit("c", range(1, 5)), 0.0).kind == "QueueFull"
    assert s.submit(submit("d", range(1, 4)), 0.0) is None
    s.abort("b", 0.0)
    assert s.submit(submit("e", range(1, 8)), 0.0) is None
    assert sorted(order_of_ends(s)) == ["d", "e", "long"]


def test_a_finished_request_says_why_its_prompt_was_computed():
    s = scheduler("fcfs")
    for name, namespace in (("first", ""), ("again", ""), ("other", "tenant")):
        s.submit(submit(name, range(1, 20), namespace=namespace), 0.0)
    ends = {}
    while not s.idle:
        ends |= {m.request_id: m.miss_reason for m in step(s)[1] if isinstance(m, Finished)}
    assert ends == {"first": "never seen", "again": None, "other": "namespace"}
