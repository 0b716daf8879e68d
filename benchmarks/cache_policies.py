"""Hit rates of the real scheduler and cache on workloads, against the offline optimum.

    python benchmarks/cache_policies.py [--pool TOKENS] [--seeds N]

The runner is a fake one that draws tokens, so a run takes seconds and gives the same numbers on any
machine. Columns, all in percent of the prompt tokens:

    lru, lfu, ...   found computed, with this eviction policy
    same schedule   the best that any eviction could have found in the run of the default, where
                    what runs holds its pages; in brackets how much of it the default found
    alone           the best with the same memory and order of admission, but one request at a time,
                    so that all memory is for the past
    unlimited       the best with all memory that there is, in the same schedule

No policy can find more than "same schedule" in that run. See `offline_optimum.py` for both.
"""

import random
import statistics

from measure import add_machine, argument
from offline_optimum import optimal_hits, scheduled_hits
from traces import WORKLOADS, Run, drive

from ramify.radix_cache.eviction import POLICIES
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.config import EngineConfig
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.scheduler import Scheduler

PAGE = 16
POOLS = (8_192, 16_384, 32_768)  # from much too small to nearly enough for all but the chats
UNLIMITED = 10**9
DEFAULT = EngineConfig().eviction_policy
OPTIMA = ("same schedule", "alone", "unlimited")


def serve(workload: str, seed: int, policy: str, pool_tokens: int) -> Run:
    """One run of a workload, with the engine's default limits."""
    defaults = EngineConfig()
    limits = SchedulerLimits(
        context_length=pool_tokens,
        eos_token_ids=(),
        step_tokens=defaults.chunked_prefill_size,
        max_running_requests=16,
        max_queued_requests=10**6,
        starvation_bound=defaults.starvation_bound,
    )
    cache = PrefixCache(pool_tokens // PAGE, PAGE, policy=POLICIES[policy])
    sessions = WORKLOADS[workload](random.Random(seed))
    return drive(Scheduler(limits, cache), sessions, seed)


def share(hits: int, run: Run) -> float:
    """Hits in percent of all prompt tokens."""
    return 100 * hits / sum(len(request.prompt) for request in run.served)


def hit_rate(run: Run) -> float:
    """What was found, in percent of all prompt tokens."""
    return share(sum(request.cached for request in run.served), run)


def optima(run: Run, pool_tokens: int) -> dict[str, float]:
    """What could have been found."""
    return {
        "same schedule": share(scheduled_hits(run.served, run.holds, pool_tokens), run),
        "alone": share(optimal_hits(run.served, pool_tokens), run),
        "unlimited": share(scheduled_hits(run.served, run.holds, UNLIMITED), run),
    }


def measure(workload: str, seed: int, pool_tokens: int) -> dict[str, float]:
    """One row of the table."""
    runs = {policy: serve(workload, seed, policy, pool_tokens) for policy in POLICIES}
    rates = {policy: hit_rate(run) for policy, run in runs.items()}
    return rates | optima(runs[DEFAULT], pool_tokens)


def table(pool: int, seeds: int) -> dict[str, list[float]]:
    """Print the rows of one pool. Returns how much the default reached of each optimum, by row."""
    print(f"pool of {pool:,} tokens, {seeds} seeds, 16 requests at once; hit rates in %")
    heads = "".join(f"{head:>9s}" for head in POLICIES)
    print(f"{'workload':16s}{heads}" + "".join(f"{head:>15s}" for head in OPTIMA))
    reached: dict[str, list[float]] = {optimum: [] for optimum in OPTIMA}
    for workload in WORKLOADS:
        rows = [measure(workload, seed, pool) for seed in range(seeds)]
        means = {head: statistics.mean(row[head] for row in rows) for head in rows[0]}
        line = "".join(f"{means[policy]:9.1f}" for policy in POLICIES)
        for optimum, of in reached.items():
            line += f"{means[optimum]:8.1f}"
            if means["unlimited"] > 1:  # else there is nothing to find: a ratio of accidents
                of.append(100 * means[DEFAULT] / means[optimum])
                line += f" ({of[-1]:4.1f})"
        print(f"{workload:16s}{line}", flush=True)
    return reached


def main() -> None:
    add_machine()
    pool, seeds = argument("pool", 0), argument("seeds", 4)
    pools = (pool,) if pool else POOLS
    tables = [table(pool, seeds) for pool in pools]
    print(f"where there is something to find, {DEFAULT} finds on average, pool by pool and in all")
    for optimum in OPTIMA:
        means = [statistics.mean(reached[optimum]) for reached in tables]
        by_pool = ", ".join(f"{mean:.1f}" for mean in means)
        print(f"  {by_pool}: {statistics.mean(means):.1f} % of the optimum, {optimum}")


if __name__ == "__main__":
    main()
