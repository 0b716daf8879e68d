"""An engine that decides as a real one and computes nothing: its answers are those of a trace."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from ramify.radix_cache.eviction import POLICIES
from ramify.radix_cache.prefix_cache import PrefixCache
from ramify.radix_cache.tiers import TierIndex
from ramify.srt.execution.model_runner import Done
from ramify.srt.messages import Pin, Submit, TokenLogprob, Unpin, pack_ids
from ramify.srt.scheduling.limits import SchedulerLimits
from ramify.srt.scheduling.plan import Chunk, ChunkResult, StepPlan, StepResult
from ramify.srt.scheduling.scheduler import Scheduler
from ramify.srt.workers.engine_core import EngineCore
from ramify.srt.workers.recorder import ReadClock, TraceRecorder
from ramify.srt.workers.trace import (
    AbortCall,
    Answered,
    Call,
    FlushCall,
    Header,
    IdleSteps,
    PinCall,
    StepCall,
    SubmitCall,
    UnpinCall,
)

NEVER = sys.maxsize
CALL_ID = 0  # nobody waits for the answers to calls


@dataclass(eq=False)
class Script:
    """One request and what it was answered. `ended_at`: the number of the call that ended it."""

    submit: Submit
    output: list[int] = field(default_factory=list)
    ended_at: int = NEVER


def scripts(calls: Sequence[Call]) -> list[Script]:
    """One for each submit call. An id may come again after its request has ended."""
    found: list[Script] = []
    by_id: dict[str, Script] = {}
    for number, call in enumerate(calls):
        if isinstance(call, SubmitCall):
            # no grammar is compiled here: what it forced is in the output
            found.append(Script(replace(call.message, grammar=None)))
            if not call.rejected:
                by_id[found[-1].submit.request_id] = found[-1]
        elif isinstance(call, Answered):
            for request_id, tokens in call.tokens.items():
                by_id[request_id].output += tokens
            for end in call.finished:
                by_id[end.request_id].ended_at = number
    return found


class ScriptedRunner:
    """Answers each chunk that samples with the token that its request got at this position."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}  # by request id, the latest of each
        self.admitted: dict[Script, None] = {}  # in order of first admission

    def launch(self, plan: StepPlan) -> Done:
        for enter in plan.enters:
            self.admitted.setdefault(self.scripts[enter.request_id])
        return Done(StepResult(tuple(self._result(chunk) for chunk in plan.chunks)))

    def _result(self, chunk: Chunk) -> ChunkResult:
        scores = tuple(TokenLogprob(0.0, target) for target in chunk.targets)
        return ChunkResult(self._token(chunk) if chunk.samples else None, scores)

    def _token(self, chunk: Chunk) -> TokenLogprob:
        script = self.scripts[chunk.request_id]
        k = chunk.start + len(chunk.tokens) - len(script.submit.token_ids) // 4
        # what overlap computes for a request that ended meanwhile is not in the trace, nor wanted
        return TokenLogprob(None, script.output[k] if k < len(script.output) else 0)


class ScriptedClock:
    """Says the times that it was given, one after the other, and the last one from then on."""

    def __init__(self) -> None:
        self._times: list[float] = [0.0]  # the next one last

    def set(self, *times: float) -> None:
        self._times = list(reversed(times)) or self._times

    def now(self) -> float:
        return self._times.pop() if len(self._times) > 1 else self._times[0]


class Player:
    """Makes calls of a trace on a core without a model. `calls`: what came of them, as a trace."""

    def __init__(self, header: Header, limits: SchedulerLimits, cache: PrefixCache) -> None:
        self.calls: list[Call] = []
        self.runner = ScriptedRunner()
        self.clock = ScriptedClock()
        clock, overlap = ReadClock(self.clock), header.config.overlap
        core = EngineCore(
            Scheduler(limits, cache), self.runner, header.info, clock, overlap=overlap
        )
        self.core = TraceRecorder(core, clock, self.calls.append)

    def submit(self, script: Script, now: float) -> bool:
        """False if it is refused."""
        taken = self.core.submit(script.submit, now) is None
        if taken:
            self.runner.scripts[script.submit.request_id] = script
        return taken

    def make(self, call: Call) -> None:
        """Make any call but a submit, at its time."""
        match call:
            case StepCall():
                self.clock.set(*call.now)
                self.core.step()
            case IdleSteps():
                self.clock.set(call.now)
                for _ in range(call.n):
                    self.core.step()
            case AbortCall():
                self.core.abort(call.request_id, call.now)
            case FlushCall():
                self.core.flush()
            case PinCall():
                ids = pack_ids(call.token_ids)
                self.core.pin(Pin(CALL_ID, ids, call.namespace, call.ttl_s), call.now)
            case UnpinCall():
                ids = pack_ids(call.token_ids)
                self.core.unpin(Unpin(CALL_ID, ids, call.namespace), call.now)


def cache(header: Header, pool_tokens: int, eviction_policy: str) -> PrefixCache:
    """A cache like that of the recorded engine, but for its size and policy, and without a disk."""
    config, tiers = header.config, None
    if header.host_slots:
        most = config.prefetch_min_tokens
        tiers = TierIndex(config.page_size, header.host_slots, prefetch_min_tokens=most)
    return PrefixCache(
        pool_tokens // config.page_size,
        config.page_size,
        policy=POLICIES[eviction_policy],
        reuse=not config.disable_radix_cache,
        pin_share=config.pin_share,
        tiers=tiers,
    )
