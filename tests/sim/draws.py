"""Caches and limits drawn from a seed: small enough that everything runs out."""

import random

from ramify.radix_cache import eviction
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.radix_cache.tiers import TierIndex
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.queue_policy import POLICIES

EOS = 0
SLOTS_AND_FILES = [(0, 0), (4, 0), (60, 0), (1, 30), (4, 8), (8, 200), (60, 200), (60, 200)]


def random_cache(rng: random.Random, tiers: bool | None = None) -> PrefixCache:
    """A small pool. `tiers`: whether there is something below it, drawn if None."""
    page_size = rng.choice([1, 2, 4, 16])
    below = TierIndex(
        page_size,
        *rng.choice(SLOTS_AND_FILES),
        prefetch_min_tokens=rng.choice([1, 2, 8]),
    )
    return PrefixCache(
        rng.randint(6, 40) * (4 if page_size == 1 else 1),
        page_size,
        policy=rng.choice(list(eviction.POLICIES.values())),
        reuse=rng.random() < 0.9 or bool(tiers),
        pin_share=rng.choice([0.0, 0.25, 0.9]),
        tiers=below if (rng.random() < 0.5 if tiers is None else tiers) else None,
    )


def restarted(cache: PrefixCache, known) -> PrefixCache:
    """The same cache in a new process that finds the files `known`."""
    old, n_pages = cache.tiers, cache.pages.n_pages
    assert old is not None
    tiers = TierIndex(cache.page_size, old.n_slots, old.disk_pages, known, old.prefetch_min_tokens)
    share = cache.pins.max_pages / n_pages
    policy = cache.tree.policy
    return PrefixCache(n_pages, cache.page_size, policy=policy, pin_share=share, tiers=tiers)


def random_limits(rng: random.Random, pool_tokens: int) -> SchedulerLimits:
    """Any policy, and limits that are reached."""
    step_tokens = rng.randint(4, 24)
    return SchedulerLimits(
        context_length=min(pool_tokens, rng.randint(20, 120)),
        eos_token_ids=(EOS,),
        step_tokens=step_tokens,
        max_running_requests=rng.randint(1, min(8, step_tokens)),
        max_queued_requests=rng.randint(8, 40),
        starvation_bound=rng.randint(1, 6),
        schedule_policy=rng.choice(list(POLICIES)),
        mixed_tokens=rng.randint(1, step_tokens) if rng.random() < 0.5 else None,
        max_queued_tokens=rng.randint(20, 400) if rng.random() < 0.3 else None,
    )
