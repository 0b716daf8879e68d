"""What a scheduler counts, and what it tells of itself."""

from collections.abc import Mapping
from dataclasses import dataclass

from ramify.radix_cache import invariants
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.messages import EngineStats
from ramify.srt.scheduling.request import Request
from ramify.srt.scheduling.waiting import WaitingQueue


@dataclass(slots=True)
class Counters:
    """Since the start."""

    arrivals: int = 0
    admissions: int = 0
    steps: int = 0
    retractions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    host_tokens: int = 0
    disk_tokens: int = 0
    generated_tokens: int = 0
    jumped_tokens: int = 0
    stale_rows: int = 0

    def count_first_admission(self, request: Request) -> None:
        """The request's prompt, and where what was found of it was."""
        self.prompt_tokens += request.prompt_length
        self.cached_tokens += request.cached_tokens
        self.host_tokens += request.host_tokens
        self.disk_tokens += request.disk_tokens


def stats(
    counters: Counters, running: Mapping[str, Request], waiting: WaitingQueue, cache: PrefixCache
) -> EngineStats:
    """Gauges of now and counters since the start."""
    pages, tiers = cache.pages, cache.tiers
    return EngineStats(
        running=len(running),
        waiting=len(waiting),
        pages_total=pages.n_pages,
        pages_free=pages.n_free,
        pages_evictable=pages.n_evictable,
        cached_tokens_held=cache.tree.n_tokens,
        steps=counters.steps,
        prompt_tokens=counters.prompt_tokens,
        cached_tokens=counters.cached_tokens,
        generated_tokens=counters.generated_tokens,
        retractions=counters.retractions,
        evicted_tokens=cache.tree.evicted_tokens,
        host_tokens=counters.host_tokens,
        disk_tokens=counters.disk_tokens,
        host_pages=tiers.host_pages if tiers else 0,
        disk_pages=len(tiers.pages.disk) if tiers else 0,
        tier_losses=tiers.losses if tiers else 0,
        jump_forward_tokens=counters.jumped_tokens,
        stale_rows=counters.stale_rows,
    )


def violations(
    running: Mapping[str, Request], waiting: WaitingQueue, cache: PrefixCache
) -> list[str]:
    """Broken invariants of the cache and of the requests' hold on it, in words."""
    found = [*invariants.check(cache), *waiting.violations()]
    if [id(r.lease) for r in running.values()] != list(cache.leases):
        found.append(f"{len(cache.leases)} leases for {len(running)} requests")
    found += [f"{r.id} waits and holds pages" for r in waiting.values() if r.lease]
    return found
