"""Recorded traffic through the real scheduler and cache, without a model.

    ramify serve smollm2 --record-trace TRACE
    python benchmarks/replay_trace.py TRACE [--pool TOKENS ...] [--eviction-policy NAME ...]

`play_again` makes the recorded calls at the recorded times, on a core whose runner answers with the
recorded tokens. What that core gives is recorded too: if the lines are the same, every request was
found in the cache, computed, retracted and ended in the same step and by the same counts.

`play_elsewhere` asks what another cache would have done. The order of service is the scheduler's
own. Calls come in the recorded order, with the recorded steps between them, but none before the
requests are over that were over when it was made: whoever made it may have waited for them.
Requests get just the tokens that they got. So nobody is aborted, late or refused a second time;
who had not got a token by then is left out, and so is who does not fit the pool.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH
from offline_optimum import optimal_hits
from scripted_engine import NEVER, Player, Script, cache, scripts
from traces import Served

from ramify.radix_cache.eviction import POLICIES
from ramify.srt.messages import EngineStats, Finished, Submit, unpack_ids
from ramify.srt.workers.trace import (
    AbortCall,
    Answered,
    Call,
    FlushCall,
    IdleSteps,
    PinCall,
    StepCall,
    SubmitCall,
    Trace,
    encode,
    read,
)

# --- the same again ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """What came of a trace. `differs_at`: number of the first call that gave something else."""

    calls: list[Call]
    stats: EngineStats
    violations: list[str]
    differs_at: int | None

    @property
    def finished(self) -> list[Finished]:
        """Every `Finished`, in the order in which they were given."""
        return [end for call in self.calls if isinstance(call, Answered) for end in call.finished]


def play_again(
    trace: Trace, pool_tokens: int | None = None, eviction_policy: str | None = None
) -> Replay:
    """All calls of a trace, one by one. Another cache shows what the comparison can see."""
    header = trace.header
    same = cache(
        header,
        pool_tokens or header.info.kv_pool_tokens,
        eviction_policy or header.config.eviction_policy,
    )
    player = Player(header, header.limits, same)
    arrivals = iter(scripts(trace.calls))
    for call in trace.calls:
        if isinstance(call, SubmitCall):
            player.submit(next(arrivals), call.now)
        else:
            player.make(call)
    stats, violations = player.core.inspect(check=True)
    return Replay(player.calls, stats, violations, _differs_at(trace.calls, player.calls))


def _differs_at(recorded: Sequence[Call], replayed: Sequence[Call]) -> int | None:
    pairs = enumerate(zip_longest(recorded, replayed))
    return next((n for n, (a, b) in pairs if not a or not b or encode(a) != encode(b)), None)


# --- another cache -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What another cache did. `served` is in order of admission; `left_out` counts the others."""

    served: list[Served]
    left_out: int
    stats: EngineStats

    def share(self, hits: int) -> float:
        """Hits in percent of all prompt tokens."""
        return 100 * hits / max(sum(len(request.prompt) for request in self.served), 1)

    @property
    def hit_rate(self) -> float:
        """Prompt tokens found computed, in percent."""
        return self.share(sum(request.cached for request in self.served))


def play_elsewhere(trace: Trace, pool_tokens: int, eviction_policy: str) -> Outcome:
    """What a cache of this size and policy would have made of the same traffic."""
    header = trace.header
    limits = replace(
        header.limits,
        context_length=min(header.limits.context_length, pool_tokens),
        max_queued_requests=NEVER,
        max_queued_tokens=None,
    )
    player = Player(header, limits, cache(header, pool_tokens, eviction_policy))
    return _Elsewhere(player).run(trace.calls)


class _Elsewhere:
    def __init__(self, player: Player) -> None:
        self._player = player
        self._open: dict[str, Script] = {}
        self._ends: dict[Script, Finished] = {}
        self._left_out = 0

    def run(self, calls: Sequence[Call]) -> Outcome:
        arrivals = iter(scripts(calls))
        for number, call in enumerate(calls):
            if isinstance(call, StepCall):
                self._player.clock.set(*call.now[:1])
                self._step()
            elif not isinstance(call, AbortCall | IdleSteps):
                self._catch_up(number)
                self._make(call, arrivals)
        self._catch_up(NEVER + 1)
        served = [self._served(script) for script in self._player.runner.admitted]
        return Outcome(served, self._left_out, self._player.core.inspect(check=False)[0])

    def _make(self, call: Call, arrivals: Iterator[Script]) -> None:
        if isinstance(call, SubmitCall):
            script = next(arrivals)
            if call.rejected or not self._submit(_as_answered(script), script, call.now):
                self._left_out += 1
        elif not isinstance(call, FlushCall) or call.done:
            self._player.make(call)

    def _submit(self, submit: Submit | None, script: Script, now: float) -> bool:
        if submit is None:
            return False
        shortened = Script(submit, script.output, script.ended_at)
        taken = self._player.submit(shortened, now)
        if taken:
            self._open[submit.request_id] = shortened
        return taken

    def _catch_up(self, number: int) -> None:
        """Until everybody is done who was when call `number` was made."""
        while any(script.ended_at < number for script in self._open.values()):
            self._step()

    def _step(self) -> None:
        if self._player.core.idle:
            return
        for message in self._player.core.step():
            if isinstance(message, Finished):
                self._ends[self._open.pop(message.request_id)] = message

    def _served(self, script: Script) -> Served:
        end = self._ends[script]
        prompt = unpack_ids(script.submit.token_ids)
        return Served(prompt, script.output, end.cached_tokens, end)


def _as_answered(script: Script) -> Submit | None:
    """The request, so that it ends with the last token that it got. None if it got none."""
    sampling = script.submit.sampling
    if not script.output and sampling.max_new_tokens != 0:
        return None
    sampling = msgspec.structs.replace(
        sampling,
        max_new_tokens=len(script.output),
        min_new_tokens=0,
        ignore_eos=True,
        stop_token_ids=(),
    )
    return msgspec.structs.replace(script.submit, sampling=sampling, timeout_s=None)


# --- the command ---------------------------------------------------------------------------------


def optimum(trace: Trace, outcome: Outcome, pool_tokens: int) -> str:
    """The best hit rate with this memory in this order of service, where that can be said.

    It knows one namespace, no pins, flushes or host memory, and no engine that reuses nothing.
    """
    requests = [call.request for call in trace.calls if isinstance(call, SubmitCall)]
    plain = len({request["namespace"] for request in requests}) == 1
    if not plain or any(isinstance(call, PinCall | FlushCall) for call in trace.calls):
        return "-"
    if trace.header.config.disable_radix_cache or trace.header.host_slots:
        return "-"
    return f"{outcome.share(optimal_hits(outcome.served, pool_tokens)):.1f}"


def print_replay(trace: Trace, replay: Replay) -> None:
    """What was recorded, and whether today's scheduler decides the same."""
    stats, ends = replay.stats, trace.finished
    print(f"{len(ends)} requests answered in {len(trace.calls):,} calls")
    prompt = sum(end.prompt_tokens for end in ends)
    cached = sum(end.cached_tokens for end in ends)
    print(f"{prompt:,} prompt tokens, {cached:,} of them cached", end=" ")
    print(f"({100 * cached / max(prompt, 1):.1f} %); {stats.generated_tokens:,} generated")
    same = "the same in every call"
    other = f"not the same from call {replay.differs_at} on"
    print(f"replayed: {same if replay.differs_at is None else other}")
    if trace.header.config.disk_cache_gb:
        print("recorded with a disk behind the cache; here it has none")
    submits = [call.message for call in trace.calls if isinstance(call, SubmitCall)]
    if any(submit.grammar is not None for submit in submits):
        print("recorded with grammars; here forced tokens are steps of their own")


def print_table(trace: Trace, pools: Sequence[int], policies: Sequence[str]) -> None:
    """Hit rates in percent: a row for each pool, a column for each policy."""
    heads = [*policies, "optimum", "left out"]
    print(f"\n{'pool tokens':>11s}" + "".join(f"{head:>10s}" for head in heads))
    for pool in pools:
        outcomes = [play_elsewhere(trace, pool, policy) for policy in policies]
        cells = [f"{outcome.hit_rate:.1f}" for outcome in outcomes]
        cells += [optimum(trace, outcomes[0], pool), str(outcomes[0].left_out)]
        print(f"{pool:11,}" + "".join(f"{cell:>10s}" for cell in cells), flush=True)


def default_pools(trace: Trace) -> list[int]:
    """From just enough for the longest request, doubled, up to what the engine had."""
    had = trace.header.info.kv_pool_tokens
    lengths = [len(s.submit.token_ids) // 4 + len(s.output) for s in scripts(trace.calls)]
    size = max([2 * trace.header.config.page_size, *lengths])
    pools = []
    while size < had:
        pools.append(size)
        size *= 2
    return [*pools, had]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="What other caches make of recorded traffic.")
    parser.add_argument("trace", help="a file made by --record-trace")
    parser.add_argument("--pool", type=int, nargs="+", metavar="TOKENS", help="sizes of the cache")
    parser.add_argument(
        "--eviction-policy", nargs="+", choices=list(POLICIES), default=list(POLICIES)
    )
    args = parser.parse_args(argv)
    try:
        trace = read(args.trace)
    except (OSError, ValueError) as error:
        print(f"replay_trace: {error}", file=sys.stderr)
        return 1
    page = trace.header.config.page_size
    pools = args.pool or default_pools(trace)
    if min(pools) < 2 * page:
        parser.error(f"--pool must be at least two pages of {page} tokens")
    print_replay(trace, play_again(trace))
    print_table(trace, [-(-size // page) * page for size in pools], args.eviction_policy)
    return 0


if __name__ == "__main__":
    sys.exit(main())
