"""Hit rates of the real scheduler and cache on workloads, against the offline optimum.

    python benchmarks/cache_policies.py [--pool TOKENS] [--seeds N]

The runner is a fake one that draws tokens, so a run takes seconds and gives the same numbers on any
machine. Columns: prompt tokens found computed, as a share of all prompt tokens, for each eviction
policy; the best possible with the same memory in the same order of service (`offline_optimum.py`);
the best possible with unlimited memory; and how much of the optimum the default reaches.
"""

import random
import statistics
from collections.abc import Sequence

from measure import add_machine, argument
from offline_optimum import optimal_hits
from traces import WORKLOADS, Served, drive

from ramify.radix_cache.eviction import POLICIES
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.config import EngineConfig
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.scheduler import Scheduler

PAGE = 16


def serve(workload: str, seed: int, policy: str, pool_tokens: int) -> list[Served]:
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


def share(hits: int, served: Sequence[Served]) -> float:
    """Hits in percent of all prompt tokens."""
    return 100 * hits / sum(len(r.prompt) for r in served)


def main() -> None:
    add_machine()
    pool, seeds = argument("pool", 16_384), argument("seeds", 2)
    print(f"pool of {pool:,} tokens, {seeds} seeds, 16 requests at once; hit rates in %")
    names = list(POLICIES)
    heads = [*names, "optimum", "unlimited", "lru of optimum"]
    print(f"{'workload':18s}" + "".join(f"{name:>15s}" for name in heads))
    ratios = []
    for workload in WORKLOADS:
        rows: dict[str, list[float]] = {head: [] for head in heads}
        for seed in range(seeds):
            for name in names:
                served = serve(workload, seed, name, pool)
                rows[name].append(share(sum(r.cached for r in served), served))
                if name == "lru":
                    optimum = optimal_hits(served, pool)
                    rows["optimum"].append(share(optimum, served))
                    rows["unlimited"].append(share(optimal_hits(served, 10**9), served))
        means = {head: statistics.mean(values) for head, values in rows.items() if values}
        means["lru of optimum"] = 100 * means["lru"] / max(means["optimum"], 1e-9)
        if means["optimum"] > 1:  # else there is nothing to find: a ratio of accidents
            ratios.append(means["lru of optimum"])
        print(f"{workload:18s}" + "".join(f"{means[head]:15.1f}" for head in heads), flush=True)
    average = statistics.mean(ratios)
    print(f"where there is something to find, the default reaches {average:.1f} % of it on average")


if __name__ == "__main__":
    main()
