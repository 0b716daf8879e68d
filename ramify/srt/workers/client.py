"""A frontend's view of the engine process: submit and follow requests, abort, ask for its state.

    starting --Ready--> ready --drain--> draining --close--> stopped
        ^                 |
        '----- start -- lost      every open request ends with Unavailable

Each request has its own queue, so a caller that reads slowly delays no other.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from enum import StrEnum

from ramify.srt.clock import Clock, MonotonicClock
from ramify.srt.errors import InvalidRequest, RequestError, Unavailable
from ramify.srt.messages import (
    Abort,
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
    ToFrontend,
    Tokens,
    TreeShown,
    Unpin,
)
from ramify.srt.replies import ReplyAssembler
from ramify.srt.transport import FrontendSocket

Answer = Tokens | Finished | Rejected
CallAnswer = Flushed | Inspected | Pinned | TreeShown


class State(StrEnum):
    """Whether requests are taken: only `READY` takes them."""

    STARTING = "starting"
    READY = "ready"
    LOST = "lost"
    DRAINING = "draining"
    STOPPED = "stopped"


WHY_NOT = {
    State.STARTING: "the model is loading",
    State.LOST: "the engine was lost and is being restarted",
    State.DRAINING: "the server is shutting down",
    State.STOPPED: "the server has shut down",
}


class EngineClient:
    """Talks to the engine at `address`. All methods belong to one asyncio loop."""

    def __init__(self, address: str, clock: Clock | None = None) -> None:
        self.info: ModelInfo | None = None
        self.state = State.STARTING
        self._address = address
        self._clock = clock or MonotonicClock()
        self._socket: FrontendSocket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[ModelInfo] | None = None
        self._requests: dict[str, asyncio.Queue[Answer | RequestError]] = {}
        self._idle = asyncio.Event()  # set while no request is open
        self._idle.set()
        self._calls: dict[int, asyncio.Future[CallAnswer]] = {}
        self._call_ids = itertools.count()

    # --- life ---

    async def start(self) -> ModelInfo:
        """Connect, and wait until the engine says that the model is ready."""
        self._disconnect()
        self.state = State.STARTING
        self._ready = asyncio.get_running_loop().create_future()
        self._socket = FrontendSocket(self._address)
        self._reader = asyncio.create_task(self._read(self._socket))
        await self._socket.send(Hello())
        self.info = await self._ready
        return self.info

    def lost(self, why: str) -> None:
        """The engine process died: end every open request and call with Unavailable(`why`)."""
        if self.state is not State.STOPPED:
            self.state = State.LOST
        self._disconnect()
        for queue in self._requests.values():
            queue.put_nowait(Unavailable(why, code="engine_lost"))
        for call in self._calls.values():
            if not call.done():
                call.set_exception(Unavailable(why, code="engine_lost"))

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait for the open ones. False when some did not end in time."""
        self.state = State.DRAINING
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return not self._requests

    def close(self) -> None:
        """Disconnect for good. Requests that are still open end with Unavailable."""
        self.state = State.STOPPED
        self.lost(WHY_NOT[State.STOPPED])

    def _disconnect(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        if self._socket is not None:
            self._socket.close()
        self._reader = self._socket = None

    # --- requests ---

    @property
    def open_requests(self) -> list[str]:
        """Ids of the requests that have not ended, oldest first."""
        return list(self._requests)

    async def submit(self, submit: Submit) -> AsyncGenerator[Answer, None]:
        """Send a request and give its messages up to its `Finished` or `Rejected`.

        Left early, by `aclose`, an exception or cancellation, it aborts the request. Raises
        Unavailable when the engine takes no requests or is lost, InvalidRequest for an id in use.
        """
        socket = self._connected()
        if submit.request_id in self._requests:
            raise InvalidRequest("rid is in use by a running request", param="rid")
        queue = self._requests[submit.request_id] = asyncio.Queue()
        self._idle.clear()
        over = False
        try:
            await socket.send(submit)
            while not over:
                message = await queue.get()
                over = not isinstance(message, Tokens)
                if isinstance(message, RequestError):
                    raise message
                yield message
        finally:
            del self._requests[submit.request_id]
            if not self._requests:
                self._idle.set()
            if not over and self._socket is socket:
                await socket.send(Abort(submit.request_id))

    async def follow(self, assembler: ReplyAssembler) -> AsyncGenerator[None, None]:
        """Run the assembler's request; gives control back after each message folded in.

        Aborts in the engine what a stop string has ended. Raises what `submit` and `push` raise.
        """
        async with aclosing(self.submit(assembler.submit)) as messages:
            aborted = False
            async for message in messages:
                assembler.push(message, self._clock.now())
                if assembler.wants_abort and not aborted:
                    aborted = True
                    await self.abort(assembler.submit.request_id)
                yield

    async def complete(self, assembler: ReplyAssembler) -> ReplyAssembler:
        """Run the assembler's request to its end."""
        async with aclosing(self.follow(assembler)) as steps:
            async for _ in steps:
                pass
        return assembler

    async def abort(self, request_id: str) -> bool:
        """End a request: whoever follows it gets its `Finished`. False for an unknown id."""
        if request_id not in self._requests or self._socket is None:
            return False
        await self._socket.send(Abort(request_id))
        return True

    # --- calls ---

    async def flush(self) -> bool:
        """Forget every cached prefix. False, and nothing done, while requests run or wait."""
        answer = await self._call(Flush)
        return isinstance(answer, Flushed) and answer.done

    async def inspect(self, *, check: bool = True) -> Inspected:
        """The engine's counters and, with `check`, the broken invariants in words."""
        answer = await self._call(lambda call_id: Inspect(call_id, check))
        assert isinstance(answer, Inspected)
        return answer

    async def pin(self, token_ids: bytes, namespace: str, ttl_s: float) -> Pinned:
        """Keep the computed part of a prefix from eviction for a time."""
        answer = await self._call(lambda call_id: Pin(call_id, token_ids, namespace, ttl_s))
        assert isinstance(answer, Pinned)
        return answer

    async def unpin(self, token_ids: bytes, namespace: str) -> Pinned:
        """Give up the pin of exactly this prefix."""
        answer = await self._call(lambda call_id: Unpin(call_id, token_ids, namespace))
        assert isinstance(answer, Pinned)
        return answer

    async def show_tree(self, limit: int) -> TreeShown:
        """Nodes of the cache's tree, the most recently used first."""
        answer = await self._call(lambda call_id: ShowTree(call_id, limit))
        assert isinstance(answer, TreeShown)
        return answer

    async def _call(
        self, make: Callable[[int], Flush | Inspect | Pin | Unpin | ShowTree]
    ) -> CallAnswer:
        socket = self._connected()
        call_id = next(self._call_ids)
        answer: asyncio.Future[CallAnswer] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = answer
        try:
            await socket.send(make(call_id))
            return await answer
        finally:
            del self._calls[call_id]

    def _connected(self) -> FrontendSocket:
        """The socket. Raises Unavailable unless the engine takes requests."""
        if self.state is not State.READY or self._socket is None:
            raise Unavailable(WHY_NOT[self.state], code=str(self.state))
        return self._socket

    # --- answers ---

    async def _read(self, socket: FrontendSocket) -> None:
        while True:
            for message in await socket.receive():
                self._route(message)

    def _route(self, message: ToFrontend) -> None:
        """Hand a message to whoever waits for it. Nobody waits for those of aborted requests."""
        if isinstance(message, Ready):
            if self._ready is not None and not self._ready.done():
                self.state = State.READY
                self._ready.set_result(message.info)
        elif isinstance(message, CallAnswer):
            call = self._calls.get(message.call_id)
            if call is not None and not call.done():
                call.set_result(message)
        elif message.request_id in self._requests:
            self._requests[message.request_id].put_nowait(message)
