"""Grammars for requests: compiled off the engine's loop, once each, and remembered.

request(spec) -> Ticket      in the cache: ready or failed at once
                             being compiled for another: that one's ticket
                             new: pending, in the compile thread's queue
poll() or wait()             folds in what has been compiled; tickets become ready or failed
"""

import contextlib
import queue
from typing import Literal

import msgspec

from ramify.srt.clock import Clock, MonotonicClock
from ramify.srt.constrained.base import CompiledGrammar, GrammarError
from ramify.srt.constrained.cache import GrammarCache, cache_key
from ramify.srt.constrained.child_process import CompileLimits
from ramify.srt.constrained.child_wire import BackendSource
from ramify.srt.constrained.choose import check_installed, engine_of
from ramify.srt.constrained.compile_thread import CompileThread, Done, Found, Job
from ramify.srt.errors import ConfigError, QueueFull, Unavailable
from ramify.srt.grammar import GrammarSpec

MAX_TEXT = 2**20  # characters: a last bound, well over what is let in by kind
MAX_PENDING = 128
CACHE_BYTES = 256 * 2**20
CACHE_ENTRIES = 1024
REFUSAL_S = 60.0


class Ticket:
    """A request's wait. The manager sets `grammar` or `error`, once; several may share it."""

    def __init__(self) -> None:
        self.grammar: CompiledGrammar | None = None
        self.error: GrammarError | Unavailable | None = None

    @property
    def state(self) -> Literal["pending", "ready", "failed"]:
        """Whether the grammar is there, or will never be."""
        if self.grammar is not None:
            return "ready"
        return "pending" if self.error is None else "failed"

    def _settle(self, found: Found) -> None:
        if isinstance(found, GrammarError | Unavailable):
            self.error = found
        else:
            self.grammar = found


class GrammarManager:
    """All grammars of one engine. For the engine's thread only; no method but `wait` blocks."""

    def __init__(
        self,
        source: BackendSource,
        limits: CompileLimits | None = None,
        *,
        max_pending: int = MAX_PENDING,
        cache_bytes: int = CACHE_BYTES,
        cache_entries: int = CACHE_ENTRIES,
        refusal_s: float = REFUSAL_S,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or MonotonicClock()
        self._source = source
        self._limits = limits or CompileLimits()
        self._threads: dict[str, CompileThread] = {}  # by engine: each has a child of its own
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._cache = GrammarCache(cache_bytes, cache_entries, refusal_s)
        self._max_pending = max_pending
        self._pending: dict[bytes, Ticket] = {}
        self._closed = False

    @property
    def pending(self) -> int:
        """How many grammars are being compiled or wait for it."""
        return len(self._pending)

    @property
    def child_pids(self) -> list[int]:
        """Process ids of the children that compile; none before the first grammar."""
        pids = (thread.child_pid for thread in self._threads.values())
        return [pid for pid in pids if pid is not None]

    def request(self, spec: GrammarSpec) -> Ticket:
        """A ticket for a grammar, at once. Raises QueueFull when too many are to be compiled.

        What is wrong with the grammar is the ticket's error, never an exception.
        """
        try:
            key = self._key(spec)
        except GrammarError as error:
            return _settled(GrammarError(error.code, error.message))
        known = self._cache.get(key, self._clock.now())
        if known is not None:
            return _settled(known)
        if key in self._pending:
            return self._pending[key]
        return self._start(key, spec)

    def poll(self) -> list[Ticket]:
        """Fold in what has been compiled. Returns the tickets that this settled."""
        settled = []
        with contextlib.suppress(queue.Empty):
            while True:
                settled.append(self._fold(self._done.get_nowait()))
        return settled

    def wait(self, timeout_s: float) -> list[Ticket]:
        """`poll`, after something has been compiled or `timeout_s` has passed."""
        if not self._pending:
            return []
        try:
            first = self._fold(self._done.get(timeout=timeout_s))
        except queue.Empty:
            return []
        return [first, *self.poll()]

    def warm_up(self) -> None:
        """Load the usual engine here and in its child, for the first request to find them ready.

        Loading holds the interpreter's lock for a fraction of a second: not for a loop that serves.
        """
        self._thread(engine_of(self._source.name, "json_schema")).warm_up()

    def close(self) -> None:
        """End the children. Pending tickets fail."""
        self._closed = True
        for thread in self._threads.values():
            thread.close()
        for ticket in self._pending.values():
            ticket._settle(_stopped())
        self._pending.clear()

    def _key(self, spec: GrammarSpec) -> bytes:
        if len(spec.text) > MAX_TEXT:
            raise GrammarError("grammar_too_large", f"a grammar has at most {MAX_TEXT} characters")
        return cache_key(spec)

    def _start(self, key: bytes, spec: GrammarSpec) -> Ticket:
        if self._closed:
            return _settled(_stopped())
        if len(self._pending) >= self._max_pending:
            self.poll()  # nobody may have asked since some were done
        if len(self._pending) >= self._max_pending:
            raise QueueFull(
                f"{self._max_pending} grammars wait to be compiled; try again later",
                param=spec.param or None,
                code="grammar_queue_full",
            )
        try:
            thread = self._thread(engine_of(self._source.name, spec.kind))
        except ConfigError as error:
            return _settled(GrammarError("unsupported_schema", str(error)))
        ticket = self._pending[key] = Ticket()
        thread.submit(Job(key, spec))
        return ticket

    def _thread(self, engine: str) -> CompileThread:
        """An engine's thread. Raises ConfigError when the engine is not installed."""
        if engine not in self._threads:
            check_installed(engine)
            source = msgspec.structs.replace(self._source, name=engine)
            self._threads[engine] = CompileThread(source, self._limits, self._done)
        return self._threads[engine]

    def _fold(self, done: Done) -> Ticket:
        ticket = self._pending.pop(done.key)
        ticket._settle(done.found)
        if not isinstance(done.found, Unavailable):  # no fault of the grammar: try it again
            self._cache.put(done.key, done.found, self._clock.now(), done.held_bytes)
        return ticket


def _settled(found: Found) -> Ticket:
    ticket = Ticket()
    ticket._settle(found)
    return ticket


def _stopped() -> Unavailable:
    return Unavailable("the server is shutting down", code="stopped")
