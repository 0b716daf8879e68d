"""A variable as it comes into being: chunks while they stream in, then one outcome.

    open --push--> open --settle--> Value | Error        settled once, never changed again

Reading waits for the outcome. An Error is raised at the read, with the original exception as the
cause. Producers run on other threads; readers may be threads or coroutines, any number of them.
"""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ramify.lang.chunks import Chunk
from ramify.lang.errors import ProgramError, UnknownVariable


@dataclass(frozen=True, slots=True)
class Value:
    """A result. `meta` is what the backend told about it: a dict, a list of them for n > 1."""

    value: Any = None
    meta: Any = None


@dataclass(frozen=True, slots=True)
class Error:
    """No result: the exception that prevented it."""

    cause: Exception


Outcome = Value | Error


def capture(produce: Callable[[], Value]) -> Outcome:
    """What `produce` returns, or the exception it raises, as a value."""
    try:
        return produce()
    except Exception as error:  # noqa: BLE001 - kept whole, and raised again at the read
        return Error(error)


def unwrap(outcome: Outcome, what: str) -> Any:
    """The value. Raises ProgramError from the original exception; `what` names the thing read."""
    if isinstance(outcome, Value):
        return outcome.value
    if isinstance(outcome.cause, UnknownVariable):
        raise outcome.cause
    raise ProgramError(f"{what} could not be produced: {outcome.cause}") from outcome.cause


@dataclass(eq=False)
class Future:
    """One variable, or the whole text of a state. `name` is for messages."""

    name: str
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _chunks: list[Chunk] = field(default_factory=list, repr=False)
    _outcome: Outcome | None = None
    _watchers: list[Callable[[], None]] = field(default_factory=list, repr=False)

    # --- the producer's side ---

    def push(self, chunk: Chunk) -> None:
        """Add a chunk."""
        with self._lock:
            self._chunks.append(chunk)
            watchers = list(self._watchers)
        for notify in watchers:
            notify()

    def settle(self, outcome: Outcome) -> None:
        """Set the outcome; a second one is ignored. A text that did not stream is one chunk."""
        with self._lock:
            if self._outcome is not None:
                return
            if isinstance(outcome, Value) and isinstance(outcome.value, str) and not self._chunks:
                meta = outcome.meta if isinstance(outcome.meta, dict) else {}
                self._chunks.append(Chunk(outcome.value, meta))
            self._outcome = outcome
            watchers = list(self._watchers)
        for notify in watchers:
            notify()

    # --- the reader's side ---

    @property
    def outcome(self) -> Outcome | None:
        """The outcome, or None while there is none. Does not wait."""
        return self._outcome

    def wait(self) -> Outcome:
        """The outcome, when there is one."""
        ready = threading.Event()
        with self._watched(ready.set):
            while self._outcome is None:
                ready.wait()
                ready.clear()
        return self._outcome

    def result(self) -> Any:
        """The value, when there is one. Raises ProgramError if it could not be produced."""
        return unwrap(self.wait(), repr(self.name))

    def chunks(self) -> Iterator[Chunk]:
        """The chunks from the first on, as they come. Ends with the outcome; raises an Error."""
        ready = threading.Event()
        seen = 0
        with self._watched(ready.set):
            while True:
                ready.clear()
                outcome, new = self._outcome, self._chunks[seen:]
                seen += len(new)
                yield from new
                if outcome is not None:
                    break
                ready.wait()
        unwrap(outcome, repr(self.name))

    async def achunks(self) -> AsyncIterator[Chunk]:
        """`chunks` for coroutines: takes no thread while it waits."""
        import asyncio  # a third of the language's import time, needed only here

        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # the loop has been closed: nobody reads any more
                loop.call_soon_threadsafe(ready.set)

        seen = 0
        with self._watched(notify):
            while True:
                ready.clear()
                outcome, new = self._outcome, self._chunks[seen:]
                seen += len(new)
                for chunk in new:
                    yield chunk
                if outcome is not None:
                    break
                await ready.wait()
        unwrap(outcome, repr(self.name))

    @contextmanager
    def _watched(self, notify: Callable[[], None]) -> Iterator[None]:
        """Call `notify` at every change. A reader clears its flag before it looks, so that a
        change after the look is never missed."""
        with self._lock:
            self._watchers.append(notify)
        try:
            yield
        finally:
            with self._lock:
                self._watchers.remove(notify)
