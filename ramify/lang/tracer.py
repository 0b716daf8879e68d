"""Runs a program's function on symbols, to know what it would append without a model. Pure.

A trace cannot look into symbols: a function that does so ends the trace with a TypeError. To find
the constant text that all runs begin with, `trace_prefix` stops at the first node that is not
constant, so the function's further code does not run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from ramify.lang.errors import UnknownVariable
from ramify.lang.future import Value, capture
from ramify.lang.ir import (
    Fork,
    Gen,
    Join,
    Node,
    RoleBegin,
    RoleEnd,
    ScopeBegin,
    ScopeEnd,
    Select,
    Text,
    Variable,
)
from ramify.lang.render import render
from ramify.lang.writer import Writer

# The trace that runs in this context: functions called meanwhile are traced into it, not run.
current_trace: ContextVar["TracerProgramState | None"] = ContextVar("current_trace", default=None)
CONSTANT = (Text, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd)


class StopTracing(BaseException):
    """The prefix is complete. Not an Exception, so that a program's own handlers let it pass."""


class TracerProgramState(Writer):
    """Takes what a program appends and keeps it as nodes."""

    def __init__(self, *, only_prefix: bool = False) -> None:
        self.nodes: list[Node] = []
        self.variables: dict[str, Any] = {}
        self.child_states: list[TracerProgramState] = []
        self.ret_value: Any = None
        self._only_prefix = only_prefix
        self._stopped = False

    def submit(self, node: Node) -> None:
        """Keep a node. Unnamed generations are called gen_<k>, selections select_<k>."""
        if self._only_prefix:
            self._submit_prefix(node)
            return
        self.nodes.append(node)
        if isinstance(node, Gen | Select):
            kind = "gen" if isinstance(node, Gen) else "select"
            name = node.name or f"{kind}_{len(self.variables)}"
            self.variables[name] = Variable(name)
        elif isinstance(node, ScopeEnd):
            self.variables[node.name] = Variable(node.name)

    def _submit_prefix(self, node: Node) -> None:
        if self._stopped:  # the `finally` of open blocks closes them on the way out
            return
        if not isinstance(node, CONSTANT):
            self._stopped = True
            raise StopTracing
        self.nodes.append(node)

    def flatten_nodes(self) -> list[Node]:
        """The nodes of this state, then those of its branches and of functions called in it."""
        return self.nodes + [node for child in self.child_states for node in child.flatten_nodes()]

    def listing(self) -> str:
        """The nodes of this state as text, one a line."""
        return render(self.nodes)

    # --- what a program may call ---

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: str) -> bool:
        return name in self.variables

    def get_var(self, name: str) -> Any:
        """The variable as a symbol, or what `set_var` gave it. Raises UnknownVariable."""
        if name not in self.variables:
            raise UnknownVariable(name)
        return self.variables[name]

    def set_var(self, name: str, value: Any) -> None:
        """Keep a value under a name."""
        self.variables[name] = value

    def get_meta_info(self, name: str) -> Any:
        """A symbol."""
        return Variable(f"{name}.meta_info")

    def text(self) -> Any:
        """A symbol."""
        return Variable("text")

    def messages(self) -> Any:
        """A symbol."""
        return Variable("messages")

    def sync(self) -> None:
        """Nothing to wait for."""

    def error(self) -> None:
        """Always None."""

    def fork(self, size: int = 1, position_ids_offset: list[int] | None = None) -> "TracerGroup":
        """Branches, as child states that know the variables so far."""
        self.submit(Fork(size))
        return TracerGroup(self, [self._child() for _ in range(size)])

    @contextmanager
    def copy(self, position_ids_offset: list[int] | None = None) -> Iterator["TracerProgramState"]:
        """One branch, joined at the end of the block."""
        group = self.fork(1)
        try:
            yield group[0]
        finally:
            group.join()

    def _child(self) -> "TracerProgramState":
        child = TracerProgramState(only_prefix=self._only_prefix)
        child.variables = dict(self.variables)
        self.child_states.append(child)
        return child


class TracerGroup:
    """The branches of a traced fork."""

    def __init__(self, parent: TracerProgramState, states: list[TracerProgramState]) -> None:
        self.states = states
        self._parent = parent

    def __getitem__(self, index: int) -> TracerProgramState:
        return self.states[index]

    def __setitem__(self, index: int, state: TracerProgramState) -> None:
        """`group[i] += x` ends in this assignment; there is nothing to do."""

    def __iter__(self) -> Iterator[TracerProgramState]:
        return iter(self.states)

    def __len__(self) -> int:
        return len(self.states)

    def __iadd__(self, other: Any) -> "TracerGroup":
        for index, state in enumerate(self.states):
            if callable(other):
                state += other(index)
            else:
                state += other[index] if isinstance(other, list | tuple) else other
        return self

    def __enter__(self) -> "TracerGroup":
        return self

    def __exit__(self, *_: object) -> None:
        self.join()

    def join(self, mode: str = "gather_variable") -> None:
        """Variables that are new in the branches become lists of symbols in the parent."""
        self._parent.submit(Join(mode))
        known = dict(self._parent.variables)
        for state in self.states if mode == "gather_variable" else ():
            for name, value in state.variables.items():
                if name not in known:
                    self._parent.variables.setdefault(name, []).append(value)


def trace_call(
    call: Callable[[TracerProgramState], Any], *, only_prefix: bool = False
) -> TracerProgramState:
    """Trace `call`, which gets the state as its argument; inside another trace, as its child."""
    outer = current_trace.get()
    state = outer._child() if outer else TracerProgramState(only_prefix=only_prefix)
    token = current_trace.set(state)
    try:
        state.ret_value = call(state)
    finally:
        current_trace.reset(token)
    return state


def trace_prefix(call: Callable[[TracerProgramState], Any]) -> list[Node]:
    """The constant nodes that every run of `call` begins with.

    Whatever the function does to symbols only ends the prefix: a hint must not fail a program.
    """
    state = TracerProgramState(only_prefix=True)

    def run() -> Value:
        token = current_trace.set(state)
        try:
            return Value(call(state))
        finally:
            current_trace.reset(token)

    with suppress(StopTracing):
        capture(run)
    return state.nodes
