"""What the cache machinery costs a run in which nothing can be reused.

    python benchmarks/cache_overhead.py [--threads N]

Every call into the prefix cache is timed inside a real run of distinct prompts, and set against the
time of the whole run. The same with reuse off is the bookkeeping that any paged cache has.
"""

import time
from collections.abc import Callable
from typing import Any

from measure import add, add_machine, argument

from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.srt.config import EngineConfig
from ramify.srt.messages import Submit, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.weights.source import prepare
from ramify.srt.workers.building import build_core
from ramify.srt.workers.engine_core import EngineCore

REQUESTS, PROMPT, NEW = 48, 300, 32
METHODS = ("hit_lengths", "acquire", "ensure", "commit", "detach", "release")


class Stopwatch:
    """Adds up the time inside chosen methods of one object."""

    def __init__(self, target: object, methods: tuple[str, ...]) -> None:
        self.seconds = 0.0
        for name in methods:
            setattr(target, name, self._timed(getattr(target, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return call


def run(core: EngineCore) -> float:
    """Seconds to serve REQUESTS distinct prompts."""
    for i in range(REQUESTS):
        ids = [1 + (i * 911 + k * 31 + i * k) % 40_000 for k in range(PROMPT)]
        sampling = SamplingParams(temperature=0.0, max_new_tokens=NEW, ignore_eos=True)
        assert core.submit(Submit(str(i), pack_ids(ids), sampling), time.monotonic()) is None
    began = time.perf_counter()
    while not core.idle:
        core.step()
    return time.perf_counter() - began


def main() -> None:
    add_machine()
    folder = prepare("smollm2")
    for reuse in (True, False):
        config = EngineConfig(
            threads=argument("threads", 2), max_running_requests=16, disable_radix_cache=not reuse
        )
        core = build_core(config, folder)
        run(core)
        core.flush()
        plan = Stopwatch(core.scheduler, ("plan", "apply"))
        cache = Stopwatch(core.scheduler.cache, METHODS)
        assert isinstance(core.scheduler.cache, PrefixCache)
        total = run(core)
        assert core.scheduler.stats().cached_tokens == 0
        with_or_without = "reuse on" if reuse else "reuse off"
        add(f"{with_or_without}: run, s", total)
        add(f"{with_or_without}: in the prefix cache, % of the run", cache.seconds / total * 100)
        add(f"{with_or_without}: in plan and apply, % of the run", plan.seconds / total * 100)


if __name__ == "__main__":
    main()
