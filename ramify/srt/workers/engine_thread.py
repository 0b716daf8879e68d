"""The engine's loop on a thread of this process, and a mailbox for each request it serves.

    any thread: open(mailbox, messages) --queue--> engine thread: engine_loop
                mailbox(answer)         <----------- deliver

An exception in the loop reaches every open mailbox, and every later `open` raises it.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence

from ramify.srt.clock import Clock
from ramify.srt.errors import InvalidRequest, Unavailable
from ramify.srt.messages import (
    Abort,
    Finished,
    Flush,
    Flushed,
    Inspect,
    Inspected,
    Pin,
    Pinned,
    Rejected,
    ShowTree,
    Submit,
    ToFrontend,
    Tokens,
    TreeShown,
    Unpin,
)
from ramify.srt.transport import local_pair
from ramify.srt.workers import engine_loop

Call = Flush | Inspect | Pin | Unpin | ShowTree
Answer = Tokens | Finished | Rejected | Flushed | Inspected | Pinned | TreeShown
Mailbox = Callable[[Answer | Unavailable], None]  # called on the engine's thread; must not raise

JOIN_S = 30.0  # how long `close` waits for the step that runs

logger = logging.getLogger(__name__)


class EngineThread:
    """Runs the loop over `core` until `close`."""

    def __init__(self, core: engine_loop.Core, clock: Clock) -> None:
        self._core = core
        self._clock = clock
        self._lock = threading.Lock()  # over _mailboxes and _over
        self._mailboxes: dict[str | int, Mailbox] = {}  # by request id or call id
        self._over: str | None = None  # why nothing more is served
        self._stop = threading.Event()
        self._socket, self._send = local_pair(self._deliver)
        self._thread = threading.Thread(target=self._run, name="ramify-engine", daemon=True)
        self._thread.start()

    def open(self, mailbox: Mailbox, messages: Sequence[Submit | Call]) -> None:
        """Send messages whose answers go to `mailbox`.

        Raises Unavailable when the engine has ended, InvalidRequest for an id in use.
        """
        keys = [_key(message) for message in messages]
        with self._lock:
            if self._over is not None:
                raise Unavailable(self._over, code="engine_lost")
            if len(set(keys)) < len(keys) or any(key in self._mailboxes for key in keys):
                raise InvalidRequest("rid is in use by a running request", param="rid")
            self._mailboxes.update(dict.fromkeys(keys, mailbox))
        for message in messages:
            self._send(message)

    def abort(self, request_ids: Iterable[str]) -> None:
        """End requests; their mailboxes get a `Finished`. Unknown ids are ignored."""
        for request_id in request_ids:
            self._send(Abort(request_id))

    def close(self) -> None:
        """Abort what is open and end the thread after the step that runs."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        over = "the engine has been shut down"
        try:
            engine_loop.run(self._core, self._socket, self._clock, self._stop.is_set)
        except Exception as error:
            logger.exception("the engine failed")
            over = f"the engine failed: {type(error).__name__}: {error}"
        finally:
            with self._lock:
                self._over = over
                waiting, self._mailboxes = self._mailboxes, {}
            for mailbox in waiting.values():
                mailbox(Unavailable(over, code="engine_lost"))

    def _deliver(self, messages: list[ToFrontend]) -> None:
        for message in messages:
            assert isinstance(message, Answer), message
            with self._lock:
                take = self._mailboxes.get if isinstance(message, Tokens) else self._mailboxes.pop
                mailbox = take(_key(message), None)
            if mailbox is not None:
                mailbox(message)


def _key(message: Submit | Call | Answer) -> str | int:
    if isinstance(message, Submit | Tokens | Finished | Rejected):
        return message.request_id
    return message.call_id
