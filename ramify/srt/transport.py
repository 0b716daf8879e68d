"""Messages between processes over ZMQ `ipc://`, and between threads over queues.

    FrontendSocket (DEALER, asyncio) --- ipc://FOLDER/engine.sock --- EngineSocket (ROUTER)
    a callable     (any thread)      --- a queue and a callback  --- LocalEngineSocket

The folder is private to the user (0700), so only the user's own processes can connect. A frame
that is no message is logged and dropped, a frame over `MAX_FRAME_BYTES` closes its connection:
neither reaches the engine. Nothing here ever blocks on a peer that does not read.
"""

import logging
import queue
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from ramify.srt.errors import InvalidRequest, Unavailable
from ramify.srt.messages import (
    ToEngine,
    ToFrontend,
    decode_to_engine,
    decode_to_frontend,
    encode,
)

MAX_FRAME_BYTES = 64 * 2**20  # one message to the engine: far over the longest prompt
MAX_BACKLOG_FRAMES = 20_000  # frames that wait for a peer before it counts as gone
MAX_DRAINED = 4096  # messages taken between two steps
LAST_WORDS_MS = 500  # how long closing waits for the last answers to leave
MAX_SOCKET_PATH = 100  # the kernel's limit is 107 characters
LOCAL = b"local"

logger = logging.getLogger(__name__)


class EngineEnd(Protocol):
    """What the engine loop needs of a transport."""

    def receive(self, timeout_s: float) -> list[tuple[bytes, ToEngine]]: ...

    def send(self, frontend_id: bytes, messages: list[ToFrontend]) -> bool: ...

    def close(self) -> None: ...


def private_folder() -> Path:
    """A new folder that only this user can enter, short enough to hold a socket's path."""
    folder = tempfile.mkdtemp(prefix="ramify-")
    if len(folder) > MAX_SOCKET_PATH - len("/engine.sock"):
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="ramify-", dir="/tmp")
    return Path(folder)


def engine_address(folder: Path) -> str:
    """The address of the engine whose socket lives in `folder`."""
    return f"ipc://{folder}/engine.sock"


class EngineSocket:
    """The engine's end: one ROUTER that answers each frontend by the id ZMQ gave it."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.SNDHWM, MAX_BACKLOG_FRAMES)
        self._socket.setsockopt(zmq.RCVHWM, MAX_BACKLOG_FRAMES)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a lost frontend is an error, not a drop
        self._socket.setsockopt(zmq.LINGER, LAST_WORDS_MS)
        self._socket.bind(address)

    def receive(self, timeout_s: float) -> list[tuple[bytes, ToEngine]]:
        """Everything that has arrived; waits up to `timeout_s` for the first."""
        received: list[tuple[bytes, ToEngine]] = []
        if not self._socket.poll(round(timeout_s * 1000)):
            return received
        for _ in range(MAX_DRAINED):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            message = _decoded(frames)
            if message is not None:
                received.append((frames[0], message))
        return received

    def send(self, frontend_id: bytes, messages: list[ToFrontend]) -> bool:
        """Send one frame. False when the frontend is gone or has stopped reading."""
        try:
            self._socket.send_multipart([frontend_id, encode(messages)], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def close(self) -> None:
        """Close, giving the last answers a moment to leave."""
        self._socket.close()
        self._context.term()


def _decoded(frames: list[bytes]) -> ToEngine | None:
    """The message in `frames`, or None, logged, when they hold none."""
    if len(frames) != 2:
        logger.warning("dropped a message of %d frames; one is right", len(frames) - 1)
        return None
    try:
        message: ToEngine = decode_to_engine(frames[1])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        logger.warning("dropped a frame of %d bytes that is no message: %s", len(frames[1]), error)
        return None
    return message


class FrontendSocket:
    """A frontend's end, for asyncio."""

    def __init__(self, address: str) -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, MAX_BACKLOG_FRAMES)
        self._socket.setsockopt(zmq.RCVHWM, MAX_BACKLOG_FRAMES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)

    async def send(self, message: ToEngine) -> None:
        """Hand a message to ZMQ; never waits.

        Raises InvalidRequest when it is too large, Unavailable when the engine takes none.
        """
        frame = encode(message)
        if len(frame) > MAX_FRAME_BYTES:
            raise InvalidRequest(
                f"the request takes {len(frame)} bytes, more than {MAX_FRAME_BYTES}",
                code="request_too_large",
            )
        try:
            await self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again as error:
            raise Unavailable("the engine takes no messages now") from error

    async def receive(self) -> list[ToFrontend]:
        """The messages of the next frame that holds some."""
        while True:
            frame = await self._socket.recv()
            try:
                return decode_to_frontend(frame)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                logger.warning("dropped a frame of the engine that is no answer: %s", error)

    def close(self) -> None:
        """Close at once; what has not left is dropped."""
        self._socket.close()
        self._context.term()


class LocalEngineSocket:
    """The engine's end within one process: a queue in, a callback out."""

    def __init__(self, deliver: Callable[[list[ToFrontend]], None]) -> None:
        self._inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._deliver = deliver

    def put(self, message: ToEngine) -> None:
        """Queue a message for the engine, from any thread."""
        self._inbox.put(message)

    def receive(self, timeout_s: float) -> list[tuple[bytes, ToEngine]]:
        """Everything that has arrived; waits up to `timeout_s` for the first."""
        received: list[tuple[bytes, ToEngine]] = []
        while len(received) < MAX_DRAINED:
            try:
                wait = timeout_s > 0 and not received
                message = self._inbox.get(wait, timeout_s if wait else None)
            except queue.Empty:
                break
            received.append((LOCAL, message))
        return received

    def send(self, frontend_id: bytes, messages: list[ToFrontend]) -> bool:
        """Call back with the messages, on the engine's thread. False for an unknown frontend."""
        if frontend_id != LOCAL:
            return False
        self._deliver(messages)
        return True

    def close(self) -> None:
        """Nothing to release."""


def local_pair(
    deliver: Callable[[list[ToFrontend]], None],
) -> tuple[LocalEngineSocket, Callable[[ToEngine], None]]:
    """The engine's end and a thread-safe `send` to it; `deliver` runs on the engine's thread."""
    engine = LocalEngineSocket(deliver)
    return engine, engine.put
