"""The thread that compiles: in the child first, then, what has passed, in this process.

    engine's thread   submit ----> todo ---.                          .---> done
    this thread                             '-> child says yes -> build --'
                                                child says no, or was killed -> the error

What the child has checked and built once is built here by native code, which lets go of the
interpreter's lock. So this thread has no lower priority: it would hold the lock while it waits for
the processor. To load an engine holds it for long: `warm_up` has that done before anybody waits.
"""

import contextlib
import logging
import queue
import threading
from dataclasses import dataclass

from ramify.srt.constrained.base import CompiledGrammar, GrammarBackend, GrammarError
from ramify.srt.constrained.child_process import ChildProcess, CompileLimits
from ramify.srt.constrained.child_wire import BackendSource
from ramify.srt.errors import ConfigError, ModelLoadError, Unavailable
from ramify.srt.grammar import GrammarSpec

Found = CompiledGrammar | GrammarError | Unavailable
JOIN_S = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One grammar to compile."""

    key: bytes
    spec: GrammarSpec


@dataclass(frozen=True)
class Done:
    """What became of a job, and how much memory its grammar holds."""

    key: bytes
    found: Found
    held_bytes: int = 0


class CompileThread:
    """One engine's: takes jobs, puts what was found into `done`. All methods are for one other
    thread."""

    def __init__(
        self, source: BackendSource, limits: CompileLimits, done: queue.SimpleQueue[Done]
    ) -> None:
        self._source = source
        self._limits = limits
        self._todo: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done = done
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # over the next two
        self._child: ChildProcess | None = None
        self._closed = False
        self._backend: GrammarBackend | None = None

    @property
    def child_pid(self) -> int | None:
        """Process id of the child, None when there is none."""
        child = self._child
        return child.pid if child is not None and child.usable else None

    def submit(self, job: Job) -> None:
        """Have a grammar compiled."""
        self._wake(job)

    def warm_up(self) -> None:
        """Start the child and load the engine now."""
        self._wake(None)

    def close(self) -> None:
        """End the child and the thread. Jobs that are not done never will be."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()
        if self._thread is not None:
            self._todo.put(None)
            self._thread.join(JOIN_S)

    def _wake(self, job: Job | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)
            self._thread.start()
        self._todo.put(job)

    # --- on the thread ---

    def _run(self) -> None:
        while not self._closed:
            job = self._todo.get()
            if self._closed:
                break
            if job is None:
                self._load()
            else:
                self._done.put(self._do(job))
        if self._child is not None:
            self._child.end()

    def _load(self) -> None:
        """Have child and engine ready. What fails is said to the first request that needs them."""
        with contextlib.suppress(Unavailable):
            self._ready()

    def _do(self, job: Job) -> Done:
        """Compile one grammar. Never raises: others wait behind it."""
        try:
            child, backend = self._ready()
            prepared, held_bytes = child.try_out(job.spec)
            return Done(job.key, backend.build(prepared), held_bytes)
        except GrammarError as error:  # copied: without the frames that it came through
            return Done(job.key, GrammarError(error.code, error.message))
        except Unavailable as error:
            return Done(job.key, Unavailable(error.message, code=error.code))
        except BaseException:  # a panic of an engine in Rust is no Exception
            logger.exception("a grammar that the child compiled failed here")
            return Done(job.key, GrammarError("invalid_grammar", "the grammar cannot be compiled"))

    def _ready(self) -> tuple[ChildProcess, GrammarBackend]:
        """Child and engine, both loaded. Raises Unavailable when that cannot be.

        A new child takes the place of one that has ended; the engine loads while it does.
        """
        child = self._child
        if child is not None and child.usable and self._backend is not None:
            return child, self._backend
        child = self._new_child()
        try:
            self._backend = self._backend or self._source.open()
        except (ConfigError, ModelLoadError) as error:
            raise Unavailable(f"grammars cannot be compiled: {error}", code="grammar") from error
        child.open()
        return child, self._backend

    def _new_child(self) -> ChildProcess:
        if self._child is not None:
            self._child.end()
        with self._lock:
            if self._closed:
                raise Unavailable("the server is shutting down", code="stopped")
            self._child = ChildProcess(self._source, self._limits)
            return self._child
