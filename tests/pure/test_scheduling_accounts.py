"""Accounts share the engine by tokens served; inside an account nothing is different."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.scheduling.queue_policy import POLICIES
from ramify.srt.scheduling.request import Request, State
from ramify.srt.scheduling.shares import ACCOUNTS_REMEMBERED, Shares
from ramify.srt.scheduling.waiting import WaitingQueue

sys.path.insert(0, str(Path(__file__).parent))
from scheduler_steps import PAGE, order_of_ends, scheduler, step, submit

EVERY_POLICY = pytest.mark.parametrize("policy", POLICIES)
PROMPT, ANSWER = 40, 6  # the longest of each
ANSWERED = 2 * ANSWER - 1  # a token is counted when it is drawn, and when the next one needs it


class Office:
    """A scheduler and what it has computed and generated for each account."""

    def __init__(self, policy, running=1, bound=100):
        self.rng = random.Random(7)
        self.s = scheduler(policy, n_pages=400, running=running, bound=bound)
        self.s.limits = replace(self.s.limits, max_queued_requests=5000)
        self.served = {}
        self.account_of = {}

    def send(self, account, n, trunk=()):
        """`n` requests of all lengths; only those of one `trunk` share anything."""
        for _ in range(n):
            request_id = f"r{len(self.account_of)}"
            self.account_of[request_id] = account
            ids = [self.rng.randint(1, 10**6) for _ in range(self.rng.randint(1, PROMPT))]
            message = submit(
                request_id,
                [*trunk, *ids],
                self.rng.randint(1, ANSWER),
                account=account,
                priority=self.rng.randint(0, 2),
                program_id=self.rng.choice("xyz"),
            )
            assert self.s.submit(message, 0.0) is None
        self.served.setdefault(account, 0)

    def step(self):
        plan, _ = step(self.s)
        for chunk in plan.chunks:
            self.served[self.account_of[chunk.request_id]] += len(chunk.tokens) + chunk.samples

    def waits(self, account):
        return any(r.submit.account == account for r in self.s.waiting.values())

    def widest_gap(self, *accounts):
        """Run while all `accounts` wait: the most that one was served more than another."""
        start, widest, steps = dict(self.served), 0, 0
        while all(map(self.waits, accounts)):
            self.step()
            steps += 1
            since = [self.served[account] - start[account] for account in accounts]
            widest = max(widest, max(since) - min(since))
        assert steps > 5
        return widest


# --- shares --------------------------------------------------------------------------------------


@EVERY_POLICY
@pytest.mark.parametrize("bound", [1, 3, 100])
def test_a_flood_and_a_trickle_get_the_same_tokens_within_one_request(policy, bound):
    """Whatever the policy prefers, and although most of the flood is soon overtaken too often."""
    office = Office(policy, bound=bound)
    office.send("flood", 1000)
    for _ in range(40):
        office.step()
    while office.s.running:
        office.step()
    office.send("trickle", 10)
    assert office.widest_gap("flood", "trickle") <= PROMPT + ANSWERED
    assert sum(r.submit.account == "flood" for r in office.s.waiting.values()) > 900


@EVERY_POLICY
def test_requests_that_run_together_widen_the_gap_by_their_answers_only(policy):
    running = 8
    office = Office(policy, running=running, bound=3)
    office.send("a", 200)
    for _ in range(20):
        office.step()
    office.send("b", 60)
    office.send("c", 60)
    assert office.widest_gap("a", "b", "c") <= PROMPT + running * ANSWERED


@EVERY_POLICY
def test_what_is_cached_is_not_charged(policy):
    """Both get as many tokens computed, so whoever reuses a trunk gets more requests through."""
    office = Office(policy)
    trunk = [10**6 + i for i in range(200)]
    office.send("reuser", 1, trunk)
    while not office.s.idle:
        office.step()
    office.send("reuser", 100, trunk)
    office.send("other", 40)
    assert office.widest_gap("reuser", "other") <= PROMPT + ANSWERED
    stats = office.s.stats()
    assert stats.cached_tokens > 30 * len(trunk)


def test_many_admissions_of_one_step_take_turns():
    """They are counted before anything of them is computed."""
    s = scheduler("fcfs", step_tokens=60, running=60)
    for i in range(20):
        s.submit(submit(f"a{i}", [1 + i], account="a"), 0.0)
    for i in range(10):
        s.submit(submit(f"b{i}", [100 + i] * 2, account="b"), 0.0)
    entered = [enter.request_id[0] for enter in s.plan(0.0).enters]
    assert entered[:9] == list("abaabaaba")


def queue_of(policy="fcfs", bound=100):
    return WaitingQueue(POLICIES[policy], bound, PrefixCache(8, PAGE))


def request(number, account, **more):
    ids = [number] * 5
    return Request(
        submit(f"r{number}", ids, account=account, **more), number, as_tokens(ids), 5, 1, 0.0
    )


def first_of(queue):
    return queue.order.first().submit.account


def test_who_was_idle_starts_beside_those_who_wait():
    queue = queue_of()
    busy = request(1, "busy")
    queue.add(busy)
    queue.order.charge(busy, 1000)
    newcomer = request(2, "newcomer")
    queue.add(newcomer)
    queue.order.charge(newcomer, 1)
    assert first_of(queue) == "busy"
    queue.order.charge(busy, 2)
    assert first_of(queue) == "newcomer"


def test_an_idle_engine_forgives_nothing_to_whoever_comes_back_second():
    """Nobody waits when the newcomer comes: it starts where the last one left off."""
    queue = queue_of()
    busy = request(1, "busy")
    queue.add(busy)
    queue.remove(busy)
    queue.order.charge(busy, 1000)  # it ran meanwhile
    newcomer, again = request(2, "newcomer"), request(3, "busy")
    queue.add(newcomer)
    queue.add(again)
    queue.order.charge(newcomer, 1)
    assert first_of(queue) == "busy"


def test_a_served_account_is_not_lifted_further():
    shares = Shares()
    for name, tokens in (("a", 10), ("b", 70)):
        shares.begin(name)
        shares.charge(name, tokens)
    shares.end("b")
    shares.begin("b")
    assert (shares.counter("a"), shares.counter("b")) == (10, 80)


def test_waiting_for_a_trunk_is_waiting():
    """Parked requests are out of line, yet their account is not lifted when they return."""
    queue = queue_of()
    parked, other, prefill = request(1, "a"), request(2, "b"), request(3, "c")
    prefill.state = State.PREFILL
    queue.add(parked)
    queue.add(other)
    queue.park(parked, prefill, 4)
    assert first_of(queue) == "b"
    queue.order.charge(other, 500)
    prefill.state = State.FINISHED
    queue.begin_step()
    queue.order.charge(parked, 499)
    assert first_of(queue) == "a"


def test_an_advance_is_worked_off():
    """A request aborted in the middle of its prompt costs what was computed, in the end."""
    shares = Shares()
    shares.begin("a")
    shares.advance("a", 100)
    shares.charge("a", 30)
    assert shares.counter("a") == 100
    shares.charge("a", 75)
    assert shares.counter("a") == 105


def test_accounts_that_left_long_ago_are_forgotten_and_those_who_wait_are_not():
    shares = Shares()
    shares.begin("waits")
    shares.charge("waits", 1)
    for i in range(ACCOUNTS_REMEMBERED + 10):
        shares.begin(f"a{i}")
        shares.charge(f"a{i}", 1000 + i)
        shares.end(f"a{i}")
    assert len(shares._idle) == ACCOUNTS_REMEMBERED
    assert shares.counter("a10") == 1011
    assert shares.counter("waits") == 1
    assert shares.counter("a0") == 0
    shares.begin("a0")
    assert shares.counter("a0") == 1


@pytest.mark.parametrize(
    "limits", [{"max_queued_requests": 60}, {"max_queued_tokens": 60}], ids=["requests", "tokens"]
)
def test_a_flood_does_not_shut_the_others_out_of_the_queue(limits):
    """A full queue takes from an account until it has its share; prompts are of one token here."""
    s = scheduler("fcfs")
    s.limits = replace(s.limits, **limits)

    def taken(account, tries=100):
        messages = (submit(f"{account}{i}", [1], account=account) for i in range(tries))
        return [s.submit(message, 0.0) for message in messages].count(None)

    assert [taken(account) for account in ("a", "b", "c", "b", "a")] == [60, 30, 20, 0, 0]
    assert taken("d") == 15


# --- ages ----------------------------------------------------------------------------------------


def test_only_its_own_account_ages_a_request():
    queue = queue_of(bound=2)
    waits = request(1, "a")
    queue.add(waits)
    for number in range(2, 12):
        other = request(number, "b")
        queue.add(other)
        queue.admit(other)
    assert queue.aging.overtaken(waits) == 0
    for number in (12, 13):
        assert queue.aging.overdue() is None
        later = request(number, "a")
        queue.add(later)
        queue.admit(later)
    assert queue.aging.overdue() is waits


def test_an_overdue_request_waits_for_the_turn_of_its_account():
    queue = queue_of(bound=1)
    old, later, other = request(1, "a"), request(2, "a"), request(3, "b")
    for each in (old, later, other):
        queue.add(each)
    queue.admit(later)  # that makes `old` overdue, and its account the one served most
    assert queue.aging.overdue() is None
    assert queue.order.first() is other
    queue.order.charge(other, 100)
    assert queue.aging.overdue() is old


def test_an_overdue_request_goes_although_all_of_its_account_are_parked():
    queue = queue_of(bound=1)
    old, later, prefill = request(1, "a"), request(2, "a"), request(3, "")
    prefill.state = State.PREFILL
    queue.add(old)
    queue.park(old, prefill, 4)
    queue.add(later)
    queue.admit(later)
    assert queue.order.first() is None
    assert queue.aging.overdue() is old
    queue.admit(old)
    assert queue.aging.overdue() is None
    assert queue.violations() == []


# --- inside an account ---------------------------------------------------------------------------


def drained(policy, bound, requests):
    """The numbers of `requests` in the order they go, each served as many tokens as its number."""
    queue = queue_of(policy, bound)
    for submitted, number in requests:
        ids = as_tokens([1 + submitted.priority % 2] * (16 * (1 + number % 5)))
        queue.add(Request(submitted, number, ids, len(ids), 1 + number % 9, 0.0))
    went = []
    while queue:
        going = queue.aging.overdue() or queue.order.first()
        queue.admit(going)
        queue.order.charge(going, going.number)
        went.append(going.number)
        assert queue.violations() == []
    return went


REQUESTS = st.lists(
    st.tuples(st.sampled_from(["", "a", "b"]), st.integers(0, 3), st.sampled_from("xy")),
    max_size=40,
)


@EVERY_POLICY
@settings(max_examples=40, deadline=None)
@given(REQUESTS, st.integers(1, 5))
def test_others_change_nothing_in_the_order_of_an_account(policy, requests, bound):
    """Among themselves its requests go as they would if it were alone, and had no name."""
    mixed = [
        (submit(f"r{n}", [1], account=account, priority=priority, program_id=program), n)
        for n, (account, priority, program) in enumerate(requests, 1)
    ]
    went = drained(policy, bound, mixed)
    assert sorted(went) == [number for _, number in mixed]
    for account in ("", "a", "b"):
        own = [
            (submit(f"r{n}", [1], priority=priority, program_id=program), n)
            for n, (name, priority, program) in enumerate(requests, 1)
            if name == account
        ]
        alone = drained(policy, bound, own)
        assert [number for number in went if number in alone] == alone


@pytest.mark.parametrize("account", ["a", "b"])
def test_a_priority_retracts_requests_of_its_own_account_only(account):
    s = scheduler("priority", n_pages=8, running=4)
    s.submit(submit("humble", range(1, 9), 20, account="a"), 0.0)
    step(s)
    s.submit(submit("proud", range(11, 34), 8, priority=5, account=account), 0.0)
    step(s)
    assert list(s.running) == (["proud"] if account == "a" else ["humble"])


def test_programs_of_two_accounts_with_one_name_are_two():
    s = scheduler("program")
    s.submit(submit("a1", range(1, 30), account="a", program_id="p"), 0.0)
    while not s.idle:
        step(s)
    s.submit(submit("b1", range(31, 33), account="b", program_id="p"), 0.0)
    s.submit(submit("b2", range(41, 43), account="b", program_id="q"), 0.0)
    s.submit(submit("b3", range(51, 53), account="b", program_id="p"), 0.0)
    assert order_of_ends(s) == ["b1", "b2", "b3"]
