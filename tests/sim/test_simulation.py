"""A thousand seeded days of the runtime, and the proof that a day is reproducible."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from simulator import Simulation

BLOCKS = 20
SEEDS = 1000


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_request_is_answered_with_the_tokens_it_gets_alone(block):
    for seed in range(block, SEEDS, BLOCKS):
        try:
            Simulation(seed).run()
        except AssertionError as error:
            raise AssertionError(f"simulation seed {seed}: {error}") from error


def test_the_seeds_cover_what_they_are_meant_to_cover():
    """Retractions, evictions, hits, aborts, full queues: all happen, or the test proves little."""
    retractions = evictions = hits = aborts = rejections = 0
    for seed in range(60):
        simulation = Simulation(seed)
        simulation.run()
        stats = simulation.scheduler.stats()
        retractions += stats.retractions
        evictions += stats.evicted_tokens
        hits += stats.cached_tokens
        aborts += sum(job.aborted for job in simulation.jobs.values())
        rejections += sum(hasattr(job.end, "kind") for job in simulation.jobs.values())
    assert min(retractions, aborts, rejections) > 20
    assert min(evictions, hits) > 1000


def test_the_same_seed_gives_the_same_plans():
    for seed in range(10):
        runs = [Simulation(seed) for _ in range(3)]
        for run in runs:
            run.run()
        assert runs[0].trace == runs[1].trace == runs[2].trace


@pytest.mark.parametrize("fault", ["lost page", "missed copy", "wrong page", "lost lock"])
def test_a_planted_fault_is_caught(fault):
    """The checks can fail: each planted fault is found in many of the runs."""
    caught = 0
    for seed in range(30):
        simulation = Simulation(seed)
        plant(simulation, fault)
        try:
            simulation.run()
        except (AssertionError, TypeError, IndexError):
            caught += 1
    assert caught >= 10


def plant(simulation, fault):
    cache, runner = simulation.scheduler.cache, simulation.runner
    run = runner.run

    def faulty(plan):
        if fault == "lost page" and plan.number == 5 and cache.pages.n_free:
            cache.pages.take()
        if fault == "lost lock" and plan.number % 5 == 0:
            for lease in cache.leases.values():
                if lease.node is not None and lease.node.locks:
                    cache.tree.unlock(lease.node)
        if fault == "missed copy":
            object.__setattr__(plan, "copies", ())
        if fault == "wrong page" and plan.number % 5 == 0:
            chunk = plan.chunks[-1]
            object.__setattr__(chunk, "pages", (*chunk.pages[:-1], chunk.pages[0]))
        return run(plan)

    runner.run = faulty
