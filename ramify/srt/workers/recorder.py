"""A core that records: each call goes on to the core it wraps, and into a trace.

loop --> TraceRecorder --> core
              |
              `--> write(call with what came of it)      calls that change what is decided later
"""

from collections.abc import Callable
from typing import Any

import msgspec

from ramify.srt.clock import Clock
from ramify.srt.messages import (
    EngineStats,
    Finished,
    ModelInfo,
    Pin,
    Pinned,
    Rejected,
    ShowTree,
    Submit,
    ToFrontend,
    Tokens,
    TreeShown,
    Unpin,
    unpack_ids,
)
from ramify.srt.workers.engine_loop import Core
from ramify.srt.workers.trace import (
    AbortCall,
    Call,
    FlushCall,
    IdleSteps,
    PinCall,
    StepCall,
    SubmitCall,
    UnpinCall,
)


class ReadClock:
    """A clock that remembers what it said, until that is taken."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: list[float] = []

    def now(self) -> float:
        self._said.append(self._clock.now())
        return self._said[-1]

    def take(self) -> tuple[float, ...]:
        """What it said since the last time this was asked."""
        said, self._said = tuple(self._said), []
        return said


class TraceRecorder:
    """A core that hands each call on to `core`, and what there is to know of it to `write`.

    `clock` is the one that `core` reads.
    """

    def __init__(self, core: Core, clock: ReadClock, write: Callable[[Call], None]) -> None:
        self._core = core
        self._clock = clock
        self._sink = write
        self._idle = IdleSteps(0, 0.0)  # not written yet: more may follow

    @property
    def info(self) -> ModelInfo:
        return self._core.info

    @property
    def idle(self) -> bool:
        return self._core.idle

    def submit(self, message: Submit, now: float) -> Rejected | None:
        rejected = self._core.submit(message, now)
        request = msgspec.structs.asdict(message)
        request["token_ids"] = unpack_ids(message.token_ids)
        request["sampling"] = msgspec.to_builtins(message.sampling, str_keys=True)
        self._write(SubmitCall(now, request, rejected is not None))
        return rejected

    def abort(self, request_id: str, now: float) -> list[ToFrontend]:
        replies = self._core.abort(request_id, now)
        self._write(AbortCall(**_answers(replies), now=now, request_id=request_id))
        return replies

    def flush(self) -> bool:
        done = self._core.flush()
        self._write(FlushCall(done))
        return done

    def inspect(self, *, check: bool) -> tuple[EngineStats, list[str]]:
        return self._core.inspect(check=check)

    def pin(self, message: Pin, now: float) -> Pinned:
        pinned = self._core.pin(message, now)
        ids = unpack_ids(message.token_ids)
        self._write(PinCall(now, ids, message.namespace, message.ttl_s, pinned.tokens))
        return pinned

    def unpin(self, message: Unpin, now: float) -> Pinned:
        pinned = self._core.unpin(message, now)
        ids = unpack_ids(message.token_ids)
        self._write(UnpinCall(now, ids, message.namespace, pinned.tokens))
        return pinned

    def show_tree(self, message: ShowTree) -> TreeShown:
        return self._core.show_tree(message)

    def close(self) -> None:
        self._core.close()

    def step(self) -> list[ToFrontend]:
        idle = self._core.idle
        replies = self._core.step()
        now = self._clock.take()
        if idle and not replies:
            self._idle = IdleSteps(self._idle.n + 1, now[-1])
        else:
            self._write(StepCall(**_answers(replies), now=now))
        return replies

    def _write(self, call: Call) -> None:
        idle, self._idle = self._idle, IdleSteps(0, 0.0)
        if idle.n:
            self._sink(idle)
        self._sink(call)


def _answers(replies: list[ToFrontend]) -> dict[str, Any]:
    tokens: dict[str, list[int]] = {}
    for reply in replies:
        if isinstance(reply, Tokens) and reply.token_ids:
            tokens.setdefault(reply.request_id, []).extend(reply.token_ids)
    ended = [msgspec.structs.asdict(reply) for reply in replies if isinstance(reply, Finished)]
    return {"tokens": tokens, "ended": ended}
