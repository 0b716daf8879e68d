"""The engine's loop: receive, step, send. The same in the engine process and inside `Engine`.

Invariant: every `Submit` is answered by exactly one `Finished` or `Rejected`, unless its frontend
is gone. `owners` holds the frontend of every request not yet answered:

    Submit --> owners[id] = frontend --> core --> Tokens* --> Finished | Rejected --> del owners[id]
"""

import math
import os
from collections.abc import Callable
from typing import Protocol

from ramify.srt.clock import Clock
from ramify.srt.errors import InvalidRequest
from ramify.srt.messages import (
    Abort,
    EngineStats,
    Finished,
    Flush,
    Flushed,
    Hello,
    Inspect,
    Inspected,
    ModelInfo,
    Pin,
    Pinned,
    Ready,
    Rejected,
    ShowTree,
    Submit,
    ToEngine,
    ToFrontend,
    Tokens,
    TreeShown,
    Unpin,
    rejected,
    unpack_ids,
)
from ramify.srt.transport import EngineEnd

IDLE_WAIT_S = 0.1  # how long an idle engine waits before it looks at `should_stop`


class Core(Protocol):
    """Scheduler and model together: everything of an engine but its loop and its sockets."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def idle(self) -> bool: ...

    def submit(self, message: Submit, now: float) -> Rejected | None: ...

    def abort(self, request_id: str, now: float) -> list[ToFrontend]: ...

    def flush(self) -> bool: ...

    def inspect(self, *, check: bool) -> tuple[EngineStats, list[str]]: ...

    def pin(self, message: Pin, now: float) -> Pinned: ...

    def unpin(self, message: Unpin, now: float) -> Pinned: ...

    def show_tree(self, message: ShowTree) -> TreeShown: ...

    def step(self) -> list[ToFrontend]: ...

    def close(self) -> None: ...


def run(core: Core, socket: EngineEnd, clock: Clock, should_stop: Callable[[], bool]) -> None:
    """Serve until `should_stop`, then abort what is open, so that all of it is answered.

    At last the core is closed, which may take seconds.
    """
    loop = _Loop(core, socket, clock)
    while not should_stop():
        loop.receive(IDLE_WAIT_S if core.idle else 0.0)
        loop.route(core.step())
        loop.send()
    loop.abort_all()
    loop.send()
    core.close()


class _Loop:
    """What the loop remembers: who owns which request, and what goes out after this step."""

    def __init__(self, core: Core, socket: EngineEnd, clock: Clock) -> None:
        self._core = core
        self._socket = socket
        self._clock = clock
        self._owners: dict[str, bytes] = {}
        self._outbox: dict[bytes, list[ToFrontend]] = {}

    def receive(self, timeout_s: float) -> None:
        """Hand everything that has arrived to the core."""
        for frontend, message in self._socket.receive(timeout_s):
            if isinstance(message, Submit):
                self._submit(frontend, message)
            elif isinstance(message, Abort):
                self.route(self._core.abort(message.request_id, self._clock.now()))
            else:
                self._post(frontend, self._answer(message))

    def route(self, messages: list[ToFrontend]) -> None:
        """Queue outputs for the frontend that submitted their request."""
        for message in messages:
            assert isinstance(message, Tokens | Finished | Rejected), message
            over = not isinstance(message, Tokens)
            owner = (self._owners.pop if over else self._owners.get)(message.request_id, None)
            if owner is not None:
                self._post(owner, message)

    def send(self) -> None:
        """Send one frame to each frontend that has answers, and forget those that are gone."""
        outbox, self._outbox = self._outbox, {}
        for frontend, messages in outbox.items():
            if not self._socket.send(frontend, messages):
                self._forget(frontend)

    def abort_all(self) -> None:
        """End every open request."""
        for request_id in list(self._owners):
            self.route(self._core.abort(request_id, self._clock.now()))

    def _submit(self, frontend: bytes, message: Submit) -> None:
        if message.request_id in self._owners:
            what = InvalidRequest("rid is in use by a running request", param="rid")
            self._post(frontend, rejected(message, what))
            return
        try:
            _check(message, self._core.info)
        except InvalidRequest as error:
            self._post(frontend, rejected(message, error))
            return
        refused = self._core.submit(message, self._clock.now())
        if refused is None:
            self._owners[message.request_id] = frontend
        else:
            self._post(frontend, refused)

    def _answer(self, message: ToEngine) -> ToFrontend:
        if isinstance(message, Hello):
            return Ready(self._core.info, os.getpid())
        if isinstance(message, Flush):
            return Flushed(message.call_id, self._core.flush())
        if isinstance(message, Pin | Unpin):
            return self._pin(message)
        if isinstance(message, ShowTree):
            return self._core.show_tree(message)
        assert isinstance(message, Inspect), message
        return Inspected(message.call_id, *self._core.inspect(check=message.check))

    def _pin(self, message: Pin | Unpin) -> Pinned:
        try:
            _check_ids(message.token_ids, self._core.info)
            if isinstance(message, Unpin):
                return self._core.unpin(message, self._clock.now())
            if not 0 < message.ttl_s < math.inf:
                raise InvalidRequest("ttl_s must be more than 0 and finite", param="ttl_s")
        except InvalidRequest as error:
            return Pinned(message.call_id, 0, error.message)
        return self._core.pin(message, self._clock.now())

    def _post(self, frontend: bytes, message: ToFrontend) -> None:
        self._outbox.setdefault(frontend, []).append(message)

    def _forget(self, frontend: bytes) -> None:
        """Nobody reads the answers of a frontend that is gone: end its requests."""
        for request_id in [key for key, owner in self._owners.items() if owner == frontend]:
            del self._owners[request_id]
            self._core.abort(request_id, self._clock.now())


def _check(message: Submit, info: ModelInfo) -> None:
    """Refuse what would hurt other requests. Frontends have checked more, but any process of the
    user's can write to the socket."""
    _check_ids(message.token_ids, info)
    message.sampling.validate(info.vocab_size)


def _check_ids(token_ids: bytes, info: ModelInfo) -> None:
    if not token_ids or len(token_ids) % 4:
        raise InvalidRequest("token_ids must hold 4 bytes for each token", param="input_ids")
    if max(unpack_ids(token_ids)) >= info.vocab_size:
        raise InvalidRequest(f"token ids must be below {info.vocab_size}", param="input_ids")
