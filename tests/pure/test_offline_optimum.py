"""The yardstick of the cache benchmarks is itself held to what can be counted by hand."""

import itertools
import random
import sys
from array import array
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from offline_optimum import optimal_hits, scheduled_hits
from traces import WORKLOADS, Hold, Served, drive

from ramify.radix_cache.eviction import POLICIES
from ramify.radix_cache.key import common_prefix
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.scheduler import Scheduler


def served(*pairs):
    return [Served(list(prompt), list(output)) for prompt, output in pairs]


def prefixes(ids):
    """A token is what it is by all that comes before it."""
    return frozenset(tuple(ids[: n + 1]) for n in range(len(ids)))


def choices(held, kept, capacity):
    """All that may stay of `held`, `kept` among it: a token never without those before it."""
    loose = sorted(held - kept)
    for n in range(min(len(loose), capacity - len(kept)) + 1):
        for some in itertools.combinations(loose, n):
            stays = kept | set(some)
            if all(len(token) == 1 or token[:-1] in stays for token in some):
                yield stays


def by_trying_all(steps, capacity):
    """The most hits that any choice of what is given up leads to.

    A step is (what is looked for, what is in memory then, what of it must stay, slots beside it).
    """
    states = {frozenset(): 0}  # what may be held: the hits up to there
    for wanted, news, pinned, own in steps:
        after = {}
        for held, hits in states.items():
            found = hits + len(held & wanted)
            for stays in choices(held | news, pinned, capacity - own):
                after[stays] = max(after.get(stays, 0), found)
        states = after
    return max(states.values())


def one_by_one(requests):
    for request in requests:
        computed = prefixes(request.prompt + request.output[:-1])
        yield prefixes(request.prompt[:-1]), computed, frozenset(), 0


def side_by_side(requests, holds):
    lengths = {}
    for number, n_tokens in holds:
        wanted = prefixes([] if number in lengths else requests[number].prompt[:-1])
        sequence = requests[number].prompt + requests[number].output
        ended = prefixes(sequence[: lengths[number]] if not n_tokens else [])
        lengths[number] = n_tokens
        running = {n: length for n, length in lengths.items() if length}
        pinned = frozenset().union(*(prefixes(requests[n].prompt) for n in running))
        own = sum(length - len(requests[n].prompt) for n, length in running.items())
        yield wanted, ended | pinned, pinned, own


SMALL = {"multi-turn chat": 20, "few-shot": 6, "agent forks": 12, "unrelated": 40}


def some_requests(rng, n):
    letters = [rng.randint(0, 1) for _ in range(40)]
    return served(
        *(
            (letters[: rng.randint(1, 2)] + [rng.randint(0, 1)] * rng.randint(0, 2), [7, 8, 9][:k])
            for k in (rng.randint(1, 3) for _ in range(n))
        )
    )


def some_schedule(rng, requests):
    """Random overlaps: admissions in order, ends and retractions as they come."""
    holds, lengths, done, admitted = [], {}, set(), 0
    while len(done) < len(requests):
        number = rng.choice([n for n in range(min(admitted + 1, len(requests))) if n not in done])
        request = requests[number]
        full = len(request.prompt) + len(request.output) - 1
        n = lengths.get(number, 0)
        if not n:
            resumed = len(request.prompt) + rng.randint(0, len(request.output) - 1)
            lengths[number] = resumed if number < admitted else len(request.prompt)
            admitted = max(admitted, number + 1)
        elif n < full and rng.random() < 0.7:
            lengths[number] = n + 1
        else:
            lengths[number] = 0
            done |= {number} if n == full else set()
        holds.append(Hold(number, lengths[number]))
    return holds


@pytest.mark.parametrize("seed", range(150))
def test_it_is_the_best_of_all_choices_one_by_one(seed):
    rng = random.Random(seed)
    requests = some_requests(rng, rng.randint(3, 6))
    for capacity in range(1, 7):
        assert optimal_hits(requests, capacity) == by_trying_all(one_by_one(requests), capacity)


@pytest.mark.parametrize("seed", range(150))
def test_it_is_the_best_of_all_choices_in_a_schedule(seed):
    rng = random.Random(seed)
    requests = some_requests(rng, rng.randint(3, 5))
    holds = some_schedule(rng, requests)
    steps = list(side_by_side(requests, holds))
    least = max(len(pinned) + own for _, _, pinned, own in steps)  # what cannot go
    for capacity in range(least, least + 3):
        assert scheduled_hits(requests, holds, capacity) == by_trying_all(steps, capacity)


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
    """a b b b a: keeping b and computing a again saves two prompts, the other way round one.

    The last token of a prompt is always computed. So one more of the other prompt has its place.
    """
    a, b = (list(range(10, 20)), []), (list(range(30, 40)), [])
    assert optimal_hits(served(a, b, b, b, a), 10) == 2 * 9 + 1
    assert optimal_hits(served(a, b, b, b, a), 20) == 3 * 9


def test_what_could_not_be_found_is_not_taken_for_needed_soon():
    """The second prompt's end is never used again, so the trunk of the third has its place."""
    requests = served(([0, 0, 0], []), ([1, 1, 1, 11, 11], []), ([1, 1, 1], []))
    assert optimal_hits(requests, 4) == 2


def test_in_a_schedule_what_runs_keeps_its_place():
    """a, then b and c side by side, then a again. Only alone in memory can a be kept."""
    requests = served(([1] * 5, []), ([2] * 5, []), ([3] * 5, []), ([1] * 5, []))
    holds = [Hold(0, 5), Hold(0, 0), Hold(1, 5), Hold(2, 5), Hold(1, 0), Hold(2, 0), Hold(3, 5)]
    assert optimal_hits(requests, 10) == 4
    assert scheduled_hits(requests, holds, 10) == 0
    assert scheduled_hits(requests, holds, 13) == 3
    growing = [*holds[:4], Hold(2, 7), *holds[4:]]  # what it generates is in the way too
    assert scheduled_hits(requests, growing, 13) == 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("pool_pages", [200, 400])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_real_run_beats_the_optimum_of_its_schedule(workload, pool_pages, policy):
    """Small pools: in some of these runs requests are retracted."""
    limits = SchedulerLimits(8192, (), 256, 16, 10**6, 64)
    cache = PrefixCache(pool_pages, 16, policy=POLICIES[policy])
    sessions = WORKLOADS[workload](random.Random(1), SMALL[workload])
    run = drive(Scheduler(limits, cache), sessions, seed=1)
    assert all(request.end is not None for request in run.served)
    best = scheduled_hits(run.served, run.holds, pool_pages * 16)
    unlimited = scheduled_hits(run.served, run.holds, 10**9)
    assert sum(request.cached for request in run.served) <= best <= unlimited
