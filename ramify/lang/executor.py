"""Executes the nodes of one state in order, and keeps its variables.

    submit --> lane --> Step --> Value | Error --> the variable's Future
                                    |
                                    '--> the first Error ends the state: later nodes do not run,
                                         and their variables are Errors with the same cause

A variable is registered when its node is submitted, so a read right after finds it and waits.
Of a stream run there are two sides: the program, which runs in its own thread, and the caller, who
may ask for a variable that the program has not come to yet. Only the caller waits for those.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from ramify.lang.backends.base import Backend
from ramify.lang.conversation import Conversation
from ramify.lang.errors import UnknownVariable, original
from ramify.lang.future import Error, Future, Outcome, Value, capture, unwrap
from ramify.lang.ir import Gen, Node, ScopeEnd, Select
from ramify.lang.lane import Lane
from ramify.lang.options import GenerateOptions
from ramify.lang.step import Step, Transcript

SLOW = (Gen, Select)  # these wait for a model; the others run in the caller when nothing waits


class Executor:
    """One state's text, variables and error. `defaults` are complete options."""

    def __init__(
        self,
        backend: Backend,
        defaults: GenerateOptions,
        *,
        stream: bool = False,
        use_thread: bool = True,
        transcript: Transcript | None = None,
    ) -> None:
        self.backend = backend
        self.stream = stream
        self.followed = False  # whether the whole text can be read as a stream
        self._defaults = defaults
        self._use_thread = use_thread
        self._lane = Lane(use_thread=use_thread)
        self._transcript = transcript or Transcript(Conversation(backend.chat_template))
        self._lock = threading.Lock()
        self._variables: dict[str, Future] = {}
        self._awaited: dict[str, Future] = {}  # asked for by the caller of a stream run
        self._failure: Exception | None = None
        self._program: int | None = None  # the thread of a stream run's program, while it runs
        self._ended = threading.Event()
        self._ended.set()

    # --- nodes ---

    def submit(self, node: Node) -> None:
        """Queue a node. What it produces can be read at once, by waiting."""
        name = node.name if isinstance(node, Gen | Select | ScopeEnd) else None
        future = None if name is None else self._register(name)
        job = partial(self._execute, node, future)
        self._lane.submit(job, quick=not isinstance(node, SLOW))

    def _execute(self, node: Node, future: Future | None) -> None:
        step = Step(self.backend, self._defaults, self._transcript, self.stream, future)
        outcome = self._guarded(lambda: node.accept(step))
        if future is not None:
            future.settle(outcome)

    def _guarded(self, act: Callable[[], Value]) -> Outcome:
        """What `act` gives, unless the state has failed; a new Error is the state's failure."""
        if self._failure is not None:
            return Error(self._failure)
        outcome = capture(act)
        if isinstance(outcome, Error):
            self._failure = outcome.cause
        return outcome

    def _register(self, name: str) -> Future:
        with self._lock:
            future = self._awaited.pop(name, None) or Future(name)
            self._variables[name] = future
            return future

    # --- variables ---

    def set(self, name: str, value: Any) -> None:
        """Set a variable from outside of the text."""
        self._register(name).settle(Value(value))

    def gather(self, name: str, futures: list[Future]) -> None:
        """Set a variable to the list of the values of settled futures, or to their first Error."""
        outcomes = [future.wait() for future in futures]
        errors = [outcome for outcome in outcomes if isinstance(outcome, Error)]
        values = [outcome.value for outcome in outcomes if isinstance(outcome, Value)]
        self._register(name).settle(errors[0] if errors else Value(values))

    def has(self, name: str) -> bool:
        """Whether the variable has a value now."""
        future = self._variables.get(name)
        return future is not None and isinstance(future.outcome, Value)

    def future(self, name: str) -> Future:
        """The variable. Raises UnknownVariable if there is none and none can come.

        In a state that has failed it is an Error: the program may not have come to it.
        """
        with self._lock:
            future = self._variables.get(name)
            if future is None and self._caller_waits():
                future = self._awaited.setdefault(name, Future(name))
        if future is None:
            if self._failure is None:
                raise UnknownVariable(name)
            future = Future(name)
            future.settle(Error(self._failure))
        return future

    def variables(self) -> dict[str, Future]:
        """The variables so far, oldest first."""
        with self._lock:
            return dict(self._variables)

    # --- the whole ---

    @property
    def failure(self) -> Exception | None:
        """What has ended the state, if anything has."""
        return self._failure

    @property
    def transcript(self) -> Transcript:
        """The text as it is now, which may still grow."""
        return self._transcript

    def wait(self) -> None:
        """Return when nothing is pending; a stream run's caller also waits for the program."""
        if self._caller_waits():
            self._ended.wait()
        self._lane.wait()

    def read(self) -> Transcript:
        """The finished transcript. Raises ProgramError when the state has failed."""
        self.wait()
        if self._failure is not None:
            unwrap(Error(self._failure), "the text")
        return self._transcript

    def fail(self, cause: Exception) -> None:
        """End the state by an exception from outside, if nothing has ended it before."""
        self._lane.wait()
        self._failure = self._failure or cause

    def fork(self, size: int) -> list["Executor"]:
        """Copies that go on from here, when everything pending is done.

        With several of them the text is computed first, once, so that they find it in the cache.
        """
        self._lane.wait()
        text = self._transcript.text
        if size > 1 and text:
            self._guarded(partial(self._commit, text))
        return [self._copy() for _ in range(size)]

    def _commit(self, text: str) -> Value:
        self.backend.commit(text)
        return Value()

    def _copy(self) -> "Executor":
        twin = Executor(
            self.backend,
            self._defaults,
            stream=self.stream,
            use_thread=self._use_thread,
            transcript=self._transcript.copy(),
        )
        twin._variables = self.variables()
        twin._failure = self._failure
        return twin

    # --- a stream run ---

    def begin(self) -> None:
        """The program starts, and will run in a thread that calls `run_as_program`."""
        self.followed = True
        self._ended.clear()

    def run_as_program(self, call: Callable[[], Value]) -> None:
        """Run the program here; its end, good or bad, ends all streams."""
        self._program = threading.get_ident()
        outcome = capture(call)
        self._lane.wait()
        if isinstance(outcome, Error):
            self.fail(original(outcome.cause))
        with self._lock:
            self._ended.set()
            awaited, self._awaited = self._awaited, {}
        for name, future in awaited.items():
            future.settle(Error(self._failure or UnknownVariable(name)))
        done = Value(self._transcript.text) if self._failure is None else Error(self._failure)
        self._transcript.whole.settle(done)

    def _caller_waits(self) -> bool:
        return not self._ended.is_set() and threading.get_ident() != self._program
