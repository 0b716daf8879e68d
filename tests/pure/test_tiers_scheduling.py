"""Requests over host memory and disk: what waits for files, and what is computed again."""

import random
import sys
from pathlib import Path

import pytest

from ramify.radix_cache.plans import FileRead, FileWrite
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.radix_cache.tiers import TierIndex
from ramify.srt.messages import Finished, Submit, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.scheduler import Scheduler

sys.path.insert(0, str(Path(__file__).parent.parent / "sim"))
from draws import EOS
from simulator import FakeRunner

PAGE = 4


class Engine:
    """Scheduler and fake runner; files end when a test says so."""

    def __init__(self, *, n_pages=16, n_slots=40, disk_pages=0, known=(), **more):
        limits = SchedulerLimits(
            n_pages * PAGE, (EOS,), 64, 4, 100, **{"starvation_bound": 9, **more}
        )
        tiers = TierIndex(PAGE, n_slots, disk_pages, known, 8)
        self.scheduler = Scheduler(limits, PrefixCache(n_pages, PAGE, tiers=tiers))
        self.runner = FakeRunner(n_pages, PAGE, n_slots)
        self.ends, self.plans, self.now = {}, [], 0.0

    def submit(self, request_id, tokens, max_new=4, **more):
        sampling = SamplingParams(max_new_tokens=max_new, ignore_eos=True)
        message = Submit(request_id, pack_ids(tokens), sampling, **more)
        assert self.scheduler.submit(message, self.now) is None

    def step(self):
        self.take(self.scheduler.expire(self.now))
        plan = self.scheduler.plan(self.now)
        if plan is not None:
            self.plans.append(plan)
            self.take(self.scheduler.apply(plan, self.runner.run(plan), self.now))
        assert self.scheduler.violations() == []
        return plan

    def take(self, replies):
        self.ends |= {r.request_id: r for r in replies if isinstance(r, Finished)}

    def end_files(self, ok=True):
        while self.runner.open:
            self.scheduler.file_done(self.runner.end(0, ok))

    def run(self, *request_ids):
        """Step until these have ended."""
        for _ in range(500):
            if all(request_id in self.ends for request_id in request_ids):
                return
            self.step()
        raise AssertionError(f"{request_ids} do not end")

    def chunks(self, request_id):
        return [c for plan in self.plans for c in plan.chunks if c.request_id == request_id]


def ids(seed, n):
    rng = random.Random(seed)
    return [rng.randint(1, 6) for _ in range(n)]


PROMPT = ids("prompt", 24)


@pytest.fixture
def engine():
    """An engine that finds PROMPT on its disk, and nowhere else."""
    before = Engine(disk_pages=50)
    before.submit("r", [*PROMPT, 1])
    before.run("r")
    while (plan := before.scheduler.back_up()) is not None:
        before.runner.carry_out(plan.moves)
        before.end_files()
    return before


def restart(before, **more):
    after = Engine(disk_pages=50, known=before.runner.records.values(), **more)
    after.runner.files = before.runner.files
    return after


def test_a_retracted_request_computes_nothing_again_but_its_last_token():
    engine = Engine(n_pages=12, n_slots=60)
    for k in range(4):
        engine.submit(f"r{k}", ids(k, 9), max_new=30)
    engine.run("r0", "r1", "r2", "r3")
    assert engine.scheduler.stats().retractions > 2
    assert engine.scheduler.stats().tier_losses == 0
    for k in range(4):
        computed = [
            p for c in engine.chunks(f"r{k}") for p in range(c.start, c.start + len(c.tokens))
        ]
        resumed = sum(enter.request_id == f"r{k}" for p in engine.plans for enter in p.enters) - 1
        assert resumed == engine.ends[f"r{k}"].retractions
        assert len(computed) == len(set(computed)) == 9 + 30 - 1
    assert engine.scheduler.stats().host_tokens == 0, (
        "counted as cached once, at the first admission"
    )


def test_a_request_waits_for_its_prefix_and_others_go_on(engine):
    engine = restart(engine)
    engine.submit("long", [*PROMPT, 2, 2])
    engine.submit("other", ids("other", 6))
    plan = engine.step()
    assert [chunk.request_id for chunk in plan.chunks] == ["other"]
    assert sum(isinstance(move, FileRead) for move in plan.moves) == 6
    engine.run("other")
    assert engine.chunks("long") == []
    assert engine.step() is None
    assert engine.scheduler.io_pending
    engine.end_files()
    assert not engine.scheduler.io_pending
    engine.run("long")
    end = engine.ends["long"]
    assert (end.cached_tokens, end.host_tokens, end.disk_tokens) == (24, 0, 24)
    stats = engine.scheduler.stats()
    assert (stats.disk_tokens, stats.host_tokens, stats.host_pages) == (24, 0, 6)
    assert stats.disk_pages >= 6
    assert engine.scheduler.cache.tiers.n_locked == 0


def test_what_is_read_for_one_is_in_host_memory_for_the_next(engine):
    engine = restart(engine, n_pages=12)
    engine.submit("one", [*PROMPT, 2], max_new=1)
    engine.step()
    engine.end_files()
    engine.run("one")
    engine.submit("filler", ids("filler", 40), max_new=8)
    engine.run("filler")
    engine.submit("two", [*PROMPT, 3], max_new=1)
    engine.run("two")
    assert engine.ends["two"].disk_tokens == 24


def test_a_request_that_is_overdue_does_not_wait(engine):
    engine = restart(engine, starvation_bound=1, schedule_policy="priority")
    engine.submit("long", [*PROMPT, 2])
    assert engine.step().chunks == ()
    for k in range(2):
        engine.submit(f"r{k}", ids(k, 6), priority=1)
    engine.run("long")
    assert engine.ends["long"].disk_tokens == 0
    assert engine.ends["long"].miss_reason == "evicted"
    assert engine.runner.open, "it was reading, and went before that ended"
    assert engine.scheduler.cache.tiers.n_locked == 0


@pytest.mark.parametrize("how", ["abort", "timeout"])
def test_who_ends_while_it_waits_leaves_nothing_locked(engine, how):
    engine = restart(engine)
    engine.submit("long", [*PROMPT, 2], timeout_s=1.0 if how == "timeout" else None)
    plan = engine.step()
    assert plan.chunks == ()
    assert engine.scheduler.cache.tiers.n_locked == 6
    engine.now = 2.0
    if how == "abort":
        engine.take(engine.scheduler.abort("long", engine.now))
    engine.step()
    assert engine.ends["long"].reason == how
    assert engine.scheduler.cache.tiers.n_locked == 0
    engine.end_files()
    assert engine.scheduler.violations() == []


def test_files_that_cannot_be_read_are_computed_again(engine):
    engine = restart(engine)
    engine.submit("long", [*PROMPT, 2])
    engine.step()
    engine.end_files(ok=False)
    engine.run("long")
    assert engine.ends["long"].cached_tokens == 0
    assert engine.scheduler.stats().tier_losses == 6


def test_too_few_tokens_are_not_waited_for_and_that_is_the_reason(engine):
    engine = restart(engine)
    engine.submit("short", [*PROMPT[:7], 1, 1, 1])
    plan = engine.step()
    assert [chunk.request_id for chunk in plan.chunks] == ["short"]
    engine.run("short")
    assert engine.ends["short"].miss_reason == "below threshold"


def test_a_step_may_do_nothing_but_move(engine):
    """The flush of an idle engine removes files, though nobody computes."""
    engine = restart(engine)
    assert engine.scheduler.flush()
    plan = engine.step()
    assert (plan.chunks, plan.n_tokens) == ((), 0)
    assert engine.runner.files == {}
    assert engine.step() is None


def test_an_engine_without_a_disk_writes_nothing():
    engine = Engine(n_pages=12)
    for k in range(3):
        engine.submit(f"r{k}", ids(k, 9), max_new=20)
    engine.run("r0", "r1", "r2")
    moves = [move for plan in engine.plans for move in plan.moves]
    assert moves
    assert not any(isinstance(move, FileWrite | FileRead) for move in moves)


def test_a_retracted_request_fetches_what_went_to_disk_while_it_waited_for_room():
    """Nothing was on disk when they came: whatever is read is of a request that resumes."""
    engine = Engine(n_pages=12, n_slots=6, disk_pages=100)
    for k in range(4):
        engine.submit(f"r{k}", ids(k, 9), max_new=30)
    while len(engine.ends) < 4:
        engine.step()
        engine.end_files()
    moves = [move for plan in engine.plans for move in plan.moves]
    assert engine.scheduler.stats().retractions > 0
    assert any(isinstance(move, FileRead) for move in moves)


def test_what_is_in_host_memory_needs_room_on_the_device():
    """Else a request without room would be tried in every step, evicting what others may want."""
    engine = Engine(n_pages=12)
    engine.submit("first", PROMPT, max_new=1)
    engine.run("first")
    engine.submit("filler", ids("filler", 40), max_new=8)
    engine.run("filler")
    engine.submit("small", ids("small", 4), max_new=1)
    engine.run("small")
    engine.submit("running", ids("running", 25), max_new=8)
    engine.step()
    evicted = engine.scheduler.stats().evicted_tokens
    engine.submit("again", [*PROMPT, 1])
    assert engine.step().enters == ()
    assert engine.scheduler.waiting.get("again").hit == 24
    assert engine.scheduler.stats().evicted_tokens == evicted
