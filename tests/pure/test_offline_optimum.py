"""The yardstick of the cache benchmarks is itself held to what can be counted by hand."""

import random
import sys
from array import array
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from offline_optimum import optimal_hits
from traces import WORKLOADS, Served, drive

from ramify.radix_cache.key import common_prefix
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.scheduler import Scheduler


def served(*pairs):
    return [Served(list(prompt), list(output)) for prompt, output in pairs]


def test_with_memory_for_all_every_earlier_sequence_is_found():
    rng = random.Random(3)
    requests = served(
        *(([rng.randint(0, 1) for _ in range(rng.randint(1, 12))], [7, 8]) for _ in range(60))
    )
    hits, seen = 0, []
    for request in requests:
        prompt = array("I", request.prompt)
        found = max((common_prefix(prompt, 0, old, 0, len(prompt) - 1) for old in seen), default=0)
        hits += found
        seen.append(array("I", request.prompt + request.output[:-1]))
    assert optimal_hits(requests, 10**6) == hits


def test_with_memory_for_one_the_sooner_used_is_kept():
    """a b b b a: keeping b and computing a again saves two prompts, the other way round one."""
    a, b = (list(range(10, 20)), []), (list(range(30, 40)), [])
    assert optimal_hits(served(a, b, b, b, a), 10) == 2 * 9
    assert optimal_hits(served(a, b, b, b, a), 20) == 3 * 9


@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_real_run_beats_the_optimum_with_unlimited_memory(workload):
    limits = SchedulerLimits(8192, (), 256, 16, 10**6, 64)
    run = drive(
        Scheduler(limits, PrefixCache(512, 16)), WORKLOADS[workload](random.Random(1)), seed=1
    )
    assert all(request.end is not None for request in run)
    assert sum(request.cached for request in run) <= optimal_hits(run, 10**9)
