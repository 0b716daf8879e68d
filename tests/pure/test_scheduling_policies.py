"""What every queue policy owes its requests, and what sets each apart."""

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.radix_cache import eviction
from ramify.radix_cache.key import as_tokens
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt import config
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.queue_policy import POLICIES
from ramify.srt.scheduling.request import Event, Request
from ramify.srt.scheduling.scheduler import Scheduler
from ramify.srt.scheduling.waiting import LOOKS, WaitingQueue

sys.path.insert(0, str(Path(__file__).parent))
from scheduler_steps import PAGE, order_of_ends, scheduler, step, submit

EVERY_POLICY = pytest.mark.parametrize("policy", POLICIES)


def served(policy, *messages, **options):
    """The order in which requests that arrive together finish, one running at a time."""
    s = scheduler(policy, **options)
    for message in messages:
        assert s.submit(message, 0.0) is None
    return order_of_ends(s)


# --- what all owe --------------------------------------------------------------------------------


def test_the_tables_hold_what_the_configuration_offers():
    assert tuple(POLICIES) == config.SCHEDULE_POLICIES
    assert tuple(eviction.POLICIES) == config.EVICTION_POLICIES


def queue_request(rng, number):
    """Prompts over two tokens with three trunks, so that branches fork and join."""
    trunk = [1, 2] * 8 * rng.randint(0, 5)
    ids = [rng.randint(1, 3), *trunk, *(rng.randint(1, 2) for _ in range(rng.randint(0, 40)))]
    message = submit(
        f"r{number}",
        ids,
        rng.randint(1, 9),
        priority=rng.randint(-1, 2),
        program_id=rng.choice("ab"),
    )
    return Request(message, number, as_tokens(ids), len(ids), rng.randint(1, 9), 0.0)


class World:
    """A queue under arrivals, admissions, departures and retractions, and a count of its own."""

    def __init__(self, policy, bound, seed):
        self.rng = random.Random(seed)
        self.bound = bound
        self.queue = WaitingQueue(POLICIES[policy], bound, PrefixCache(8, PAGE))
        self.waiting, self.ran, self.overtaken = {}, {}, {}
        self.arrivals = 0
        self.trace = []

    def arrive(self):
        self.arrivals += 1
        request = queue_request(self.rng, self.arrivals)
        self.waiting[request.number] = request
        self.overtaken[request.number] = 0
        self.queue.add(request)

    def admit(self):
        request = self.queue.aging.overdue() or self.queue.order.first()
        assert (request is None) == (not self.waiting)
        if request is not None:
            self.queue.admit(request)
            request.cached_tokens = 0
            self.queue.order.charge(request, self.rng.randint(1, 50))
            self.ran[request.number] = self.waiting.pop(request.number)
            self.trace.append(request.number)
            for other in self.waiting:
                self.overtaken[other] += other < request.number

    def leave(self):
        if self.waiting:
            self.queue.remove(self.waiting.pop(self.rng.choice(list(self.waiting))))

    def retract(self):
        if self.ran:
            request = self.ran.pop(self.rng.choice(list(self.ran)))
            self.waiting[request.number] = request
            self.queue.add(request)

    def check(self):
        assert max(self.overtaken.values(), default=0) <= self.bound
        assert sorted(r.number for r in self.queue.values()) == sorted(self.waiting)
        assert self.queue.violations() == []
        for request in self.waiting.values():
            assert self.queue.aging.overtaken(request) == self.overtaken[request.number]

    def run(self, events):
        for event in events:
            getattr(self, event)()
            self.check()
        while self.waiting:
            self.admit()
            self.check()
        return self.trace


EVENTS = st.lists(
    st.sampled_from(["arrive"] * 4 + ["admit"] * 3 + ["leave", "retract"]), max_size=80
)


@EVERY_POLICY
@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(1, 6), st.integers(0, 1000))
def test_nobody_is_lost_or_overtaken_beyond_the_bound_and_the_order_is_reproducible(
    policy, events, bound, seed
):
    """The world counts who overtook whom in the plainest way; the queue must agree at all times."""
    traces = [World(policy, bound, seed).run(events) for _ in range(2)]
    assert traces[0] == traces[1]


@EVERY_POLICY
@given(st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_an_order_is_a_permutation_of_those_who_wait(policy, n, seed):
    trace = World(policy, 1000, seed).run(["arrive"] * n)
    assert sorted(trace) == list(range(1, n + 1))


@EVERY_POLICY
def test_a_trunk_of_many_requests_is_computed_once(policy):
    """64 requests over one trunk of 2,000 tokens, in every order a policy may take them."""
    s = scheduler(policy, n_pages=1200, step_tokens=256, running=64)
    trunk = [1 + i % 97 for i in range(2000)]
    for i in range(64):
        message = submit(f"r{i}", [*trunk, 200 + i], priority=i % 3, program_id=str(i % 5))
        assert s.submit(message, 0.0) is None
    computed = 0
    while not s.idle:
        computed += step(s)[0].n_tokens
    assert computed == len(trunk) + 64
    assert s.stats().cached_tokens == 63 * len(trunk)


@EVERY_POLICY
def test_a_long_queue_behind_one_trunk_is_parked_and_comes_back(policy):
    """More than one step may look at: nobody is forgotten, and the trunk is still computed once."""
    s = scheduler(policy, n_pages=400, step_tokens=32, running=8)
    trunk = [1 + i % 97 for i in range(300)]
    for i in range(200):
        assert s.submit(submit(f"r{i}", [*trunk, 200 + i]), 0.0) is None
    computed = 0
    while not s.idle:
        computed += step(s)[0].n_tokens
    assert computed == len(trunk) + 200


class CountingCache(PrefixCache):
    """Counts how often the tree is searched for a waiting request."""

    searches = 0

    def hit_lengths(self, *args):
        self.searches += 1
        return super().hit_lengths(*args)


@EVERY_POLICY
def test_the_work_of_a_step_does_not_grow_with_the_queue(policy):
    """All wait for one trunk; each step may look at some and let some back, not at all of them."""
    limits = SchedulerLimits(2048, (0,), 32, 8, 2000, 64, schedule_policy=policy)
    s = Scheduler(limits, CountingCache(512, PAGE))
    for i in range(1000):
        s.submit(submit(f"r{i}", [*([5] * 200), 9 + i]), 0.0)
    searches = 0
    for _ in range(30):
        s.cache.searches = 0
        plan, _ = step(s)
        assert s.cache.searches <= 3 * LOOKS + 4 * len(plan.enters)
        searches += s.cache.searches
    assert searches > 0, "nothing was counted"


@EVERY_POLICY
def test_who_waits_for_a_trunk_may_leave_or_start_at_any_time(policy):
    """Parked, on the way back, or in line: each may be admitted or end from there."""
    queue = WaitingQueue(POLICIES[policy], 1000, PrefixCache(8, PAGE))
    rng = random.Random(1)
    requests = [queue_request(rng, number) for number in range(1, 2 * LOOKS + 11)]
    prefill = requests.pop(0)
    prefill.on(Event.ADMIT)
    for request in requests:
        queue.add(request)
        queue.park(request, prefill, shared=PAGE + request.number % 3)
    queue.remove(requests.pop())  # parked
    queue.admit(requests.pop())
    assert queue.order.first() is None
    prefill.computed = PAGE
    queue.begin_step()
    in_line = [r for r in requests if r.number in queue.order]
    assert {r.shared for r in in_line} == {PAGE}
    prefill.on(Event.RETRACT)
    queue.begin_step()
    back = [r for r in requests if r.number not in queue.order]
    assert 0 < len(back) < len(requests) - len(in_line)
    assert not any(r.blocker for r in requests)
    queue.remove(back[0])
    queue.admit(back[1])
    assert queue.violations() == []
    queue.begin_step()
    assert len(queue.order.numbers()) == len(queue) == len(requests) - 2


# --- what sets them apart ------------------------------------------------------------------------

TRUNK_A, TRUNK_B = [5] * 32, [6] * 32


def test_lpm_notices_a_prefix_that_was_computed_while_the_request_waited():
    s = scheduler("lpm")
    s.submit(submit("first", TRUNK_A, max_new=3), 0.0)
    step(s)
    s.submit(submit("cold", [1, 2, 3]), 0.0)
    s.submit(submit("warm", [*TRUNK_A, 9]), 0.0)  # half of both prompts is computed by now
    s.submit(submit("warmer", [*TRUNK_A, 1, 1, 9]), 0.0)  # in the end, two tokens more of this one
    assert order_of_ends(s) == ["first", "warmer", "warm", "cold"]


def test_fcfs_serves_in_order_of_arrival():
    messages = [submit(f"r{i}", [9 - i], max_new=1 + i % 3, priority=i) for i in range(6)]
    assert served("fcfs", *messages) == [f"r{i}" for i in range(6)]


def test_lof_serves_the_longest_output_first():
    messages = [submit(f"r{n}", [n], max_new=n) for n in (2, 5, 3)]
    assert served("lof", *messages) == ["r5", "r3", "r2"]


def test_random_is_neither_order_of_arrival_nor_different_in_the_next_run():
    messages = [submit(f"r{i}", [i + 1]) for i in range(20)]
    runs = [served("random", *messages) for _ in range(2)]
    assert runs[0] == runs[1] != [f"r{i}" for i in range(20)]


def test_dfs_weight_finishes_the_heaviest_branch_before_the_next():
    """b arrives first, but a is heavier; and a is finished although b is heavier by then."""
    messages = [submit(f"b{i}", [*TRUNK_B, 70 + i]) for i in range(2)]
    messages += [submit(f"a{i}", [*TRUNK_A, 80 + i]) for i in range(3)]
    messages.insert(3, submit("alone", [1, 2, 3]))
    assert served("dfs-weight", *messages) == ["a0", "a1", "a2", "b0", "b1", "alone"]


def test_dfs_weight_never_mixes_branches_of_different_namespaces():
    messages = [
        submit(f"{name}{i}", [*TRUNK_A, i + 1], namespace=name) for i in range(3) for name in "xy"
    ]
    assert [name[0] for name in served("dfs-weight", *messages)] == list("xxxyyy")


def test_priority_serves_the_largest_first_and_the_older_among_equals():
    messages = [submit(f"{p}{i}", [7, i], priority=p) for i in range(2) for p in (0, 5, -1)]
    assert served("priority", *messages) == ["50", "51", "00", "01", "-10", "-11"]


def test_program_serves_first_who_was_served_least():
    """Four requests of one program and two of another: they take turns."""
    messages = [submit(f"big{i}", [1, i + 1], program_id="big") for i in range(4)]
    messages += [submit(f"small{i}", [2, i + 1], program_id="small") for i in range(2)]
    assert served("program", *messages) == ["big0", "small0", "big1", "small1", "big2", "big3"]


def test_program_keeps_the_requests_over_one_trunk_together():
    messages = [
        submit(f"{name}{i}", [*trunk, i + 1], program_id="p")
        for i in range(3)
        for name, trunk in (("a", TRUNK_A), ("b", TRUNK_B))
    ]
    assert served("program", *messages) == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_the_nameless_program_waits_its_turn_like_any_other():
    messages = [submit(f"none{i}", [1, i + 1]) for i in range(3)]
    messages.append(submit("named", [2, 1], program_id="p"))
    assert served("program", *messages) == ["none0", "named", "none1", "none2"]
