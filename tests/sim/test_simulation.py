"""Two thousand seeded days of the runtime, and the proof that a day is reproducible."""

import dataclasses
import random
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from ramify.radix_cache.plans import PageLoad, PageStore
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.messages import Finished, Submit, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.queue_policy import POLICIES

sys.path.insert(0, str(Path(__file__).parent))
from draws import EOS, random_cache
from simulator import MISS_REASONS, Job, Simulation

BLOCKS = 20
SEEDS = 2000


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_request_is_answered_with_the_tokens_it_gets_alone(block):
    for seed in range(block, SEEDS, BLOCKS):
        try:
            Simulation(seed).run()
        except AssertionError as error:
            raise AssertionError(f"simulation seed {seed}: {error}") from error


def test_the_seeds_cover_what_they_are_meant_to_cover():
    """Retractions, evictions, hits, aborts, full queues: all happen, or the test proves little."""
    retractions = evictions = hits = aborts = rejections = timeouts = pinned = stale = overlaps = 0
    several_accounts = jumped = 0
    policies = Counter()
    reasons = Counter()
    came_back = Counter()
    for seed in range(80):
        simulation = Simulation(seed)
        simulation.run()
        stats = simulation.scheduler.stats()
        retractions += stats.retractions
        evictions += stats.evicted_tokens
        hits += stats.cached_tokens
        aborts += sum(job.aborted for job in simulation.jobs.values())
        rejections += sum(hasattr(job.end, "kind") for job in simulation.jobs.values())
        ends = [job.end for job in simulation.jobs.values() if isinstance(job.end, Finished)]
        timeouts += sum(end.reason == "timeout" for end in ends)
        reasons.update(end.miss_reason for end in ends)
        pinned += simulation.pinned
        stale += stats.stale_rows
        overlaps += simulation.overlap
        jumped += stats.jump_forward_tokens
        several_accounts += len(simulation.accounts) > 1
        policies[simulation.limits.schedule_policy] += stats.steps
        came_back["from host memory"] += sum(end.host_tokens for end in ends)
        came_back["from disk"] += sum(end.disk_tokens for end in ends)
        came_back["not"] += simulation.losses
        came_back["files that failed"] += simulation.failed_files
        came_back["steps with nothing but waiting"] += simulation.waits
    assert min(retractions, aborts, rejections, timeouts) > 20
    assert min(evictions, hits, pinned) > 1000
    assert min(came_back.values()) > 25, came_back
    assert min(stale, overlaps, 80 - overlaps) > 20
    assert jumped > 500
    assert 20 < several_accounts < 70
    assert set(policies) == set(POLICIES)
    assert min(policies.values()) > 300
    assert min(reasons[reason] for reason in MISS_REASONS) > 20


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_for_four_times_the_memory_all_get_the_tokens_they_get_alone(policy):
    """64 requests of 128 tokens each, no two alike, over a pool of 2,048: four times too many."""
    limits = SchedulerLimits(2048, (EOS,), 128, 64, 64, 64, schedule_policy=policy)
    simulation = Simulation(0, limits=limits, cache=PrefixCache(128, 16))
    rng = random.Random(policy)
    for i in range(64):
        prompt = [1 + i % 6, *(rng.randint(1, 2) for _ in range(23))]
        sampling = SamplingParams(max_new_tokens=104, ignore_eos=True)
        message = Submit(f"r{i}", pack_ids(prompt), sampling, priority=i % 3, program_id=str(i % 5))
        simulation.submit(Job(message, prompt, i))
    simulation.drain()
    assert all(len(job.tokens) == 104 for job in simulation.jobs.values())
    assert simulation.scheduler.stats().retractions > 0


def test_the_same_seed_gives_the_same_plans():
    for seed in range(10):
        runs = [Simulation(seed, traced=True) for _ in range(3)]
        for run in runs:
            run.run()
        assert runs[0].trace == runs[1].trace == runs[2].trace


FAULTS = [
    "lost page",
    "missed copy",
    "wrong page",
    "lost lock",
    "no aging",
    "no deadlines",
    "old token",
    "stale result",
    "wrong slot",
    "lost store",
    "slot given away",
    "failed read used",
]


OVERLAP_FAULTS = ("old token", "stale result")  # those that need a step in flight
TIER_FAULTS = ("wrong slot", "lost store", "slot given away", "failed read used")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault):
    """The checks can fail: each planted fault is found in many of the runs."""
    caught = 0
    for seed in range(60):
        cache = random_cache(random.Random(seed), tiers=True) if fault in TIER_FAULTS else None
        overlap = True if fault in OVERLAP_FAULTS else None
        simulation = Simulation(seed, cache=cache, overlap=overlap)
        plant(simulation, fault)
        try:
            simulation.run()
        except (AssertionError, TypeError, IndexError, ZeroDivisionError):
            caught += 1
    assert caught >= 15


def apply_all(scheduler, apply, plan, result, now):
    """Take every result for one of the request's present admission."""
    for chunk in plan.chunks:
        if (request := scheduler.running.get(chunk.request_id)) is not None:
            object.__setattr__(chunk, "admission", request.admission)
    return apply(plan, result, now)


def spoilt(fault, moves, n_slots):
    """Moves with a fault of tiers in them."""
    for move in moves:
        if fault == "lost store" and isinstance(move, PageStore):
            continue
        if fault == "wrong slot" and isinstance(move, PageLoad):
            yield PageLoad((move.slot + 1) % n_slots, move.page)
        else:
            yield move


def plant(simulation, fault):
    scheduler, runner = simulation.scheduler, simulation.runner
    cache, run = scheduler.cache, runner.run
    if fault == "no aging":
        scheduler.waiting.aging.overdue = lambda: None
    if fault == "no deadlines":
        scheduler.expire = lambda now: []
    if fault == "failed read used":
        simulation.reliability = 0.5
        end = runner.end
        runner.end = lambda i, ok=True: dataclasses.replace(end(i, ok), ok=True)
    if fault == "stale result":
        scheduler.apply = partial(apply_all, scheduler, scheduler.apply)

    def faulty(plan):
        if fault == "lost page" and plan.number == 5 and cache.pages.n_free:
            cache.pages.take()
        if fault == "lost lock" and plan.number % 5 == 0:
            for lease in cache.leases.values():
                if lease.node is not None and lease.node.locks:
                    cache.tree.unlock(lease.node)
        if fault == "missed copy":
            object.__setattr__(plan, "moves", ())
        if fault in TIER_FAULTS:
            moves = tuple(spoilt(fault, plan.moves, cache.tiers.n_slots))
            object.__setattr__(plan, "moves", moves)
        if fault == "slot given away":
            for page in filter(None, cache.tiers.owners):
                page.writing = False
                cache.tiers.pages.settle(page)
        if fault == "old token":
            runner.rows.update((c.request_id, 1) for c in plan.chunks if c.follows)
        if fault == "wrong page" and plan.number % 5 == 0:
            chunk = plan.chunks[-1]
            object.__setattr__(chunk, "pages", (*chunk.pages[:-1], chunk.pages[0]))
        return run(plan)

    runner.run = faulty
