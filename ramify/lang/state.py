"""What the user's function gets as `s`, and the branches that `fork` makes of it."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ramify.lang.chat_template import Message
from ramify.lang.chunks import Chunk, Coalescer
from ramify.lang.errors import UnknownVariable
from ramify.lang.executor import Executor
from ramify.lang.future import Future
from ramify.lang.ir import Expr, Node, nodes_of
from ramify.lang.writer import Writer

JOIN_MODES = ("gather_variable", "concate_and_append")


class ProgramState(Writer):
    """The text, messages and variables of one run. Appending returns at once; reading waits."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.ret_value: Any = None

    def __repr__(self) -> str:
        return f"ProgramState({self.executor.transcript.text})"

    def submit(self, node: Node) -> None:
        """Append one node."""
        self.executor.submit(node)

    # --- variables ---

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: str) -> bool:
        return self.executor.has(name)

    def get_var(self, name: str) -> Any:
        """The value of a variable, when it is there.

        Raises UnknownVariable (a KeyError), or ProgramError with the original exception as cause.
        """
        return self.executor.future(name).result()

    def set_var(self, name: str, value: Any) -> None:
        """Set a variable."""
        self.executor.set(name, value)

    def get_meta_info(self, name: str) -> Any:
        """What the backend told about a variable: a dict, for n > 1 a list, else None. Waits.

        Raises ProgramError when the variable could not be produced.
        """
        try:
            future = self.executor.future(name)
            future.result()
        except UnknownVariable:
            return None
        return getattr(future.outcome, "meta", None)

    # --- the whole ---

    def text(self) -> str:
        """The whole text with its markup, when nothing is pending. Raises ProgramError."""
        return self.executor.read().text

    def messages(self) -> list[Message]:
        """The closed messages as `{"role", "content"}`. Waits; raises ProgramError."""
        return list(self.executor.read().conversation.messages)

    def sync(self) -> None:
        """Wait until nothing is pending."""
        self.executor.wait()

    def error(self) -> Exception | None:
        """The exception that ended this state, or None. Waits."""
        self.executor.wait()
        return self.executor.failure

    # --- streams ---

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """The text of the state or of a variable, piece by piece; in one piece without `stream`."""
        if var_name is None and not self.executor.followed:
            yield self.text()
            return
        for chunk in self._stream_of(var_name).chunks():
            if chunk.text:
                yield chunk.text

    async def text_async_iter(
        self, var_name: str | None = None, return_meta_data: bool = False
    ) -> AsyncIterator[Any]:
        """`text_iter` for coroutines.

        With `return_meta_data` and a variable it yields `(text, meta_info)`; log-probabilities of
        chunks without text come with the next text, or in a last pair with the text "".
        """
        if var_name is None and not self.executor.followed:
            import asyncio

            yield await asyncio.to_thread(self.text)
            return
        with_meta = return_meta_data and var_name is not None
        pieces = Coalescer()
        async for chunk in self._stream_of(var_name).achunks():
            piece = pieces.push(chunk)
            if piece is not None:
                yield _pair(piece) if with_meta else piece.text
        last = pieces.finish()
        if last is not None and with_meta:
            yield _pair(last)

    def _stream_of(self, var_name: str | None) -> Future:
        if var_name is None:
            return self.executor.transcript.whole
        return self.executor.future(var_name)

    # --- branches ---

    def fork(
        self, size: int = 1, position_ids_offset: Sequence[int] | None = None
    ) -> "ProgramStateGroup":
        """`size` copies that go on from here on their own. Waits for what is pending.

        `position_ids_offset` is accepted and changes nothing.
        """
        if size < 1:
            raise ValueError(f"fork makes at least one branch, got {size}")
        return ProgramStateGroup([ProgramState(e) for e in self.executor.fork(size)], self)

    @contextmanager
    def copy(self, position_ids_offset: Sequence[int] | None = None) -> Iterator["ProgramState"]:
        """One branch, joined at the end of the block: its new variables become lists of one."""
        group = self.fork(1)
        try:
            yield group[0]
        finally:
            group.join()


class ProgramStateGroup:
    """The branches of a fork."""

    def __init__(self, states: list[ProgramState], src_state: ProgramState) -> None:
        self.states = states
        self.src_state = src_state
        self._start = len(src_state.executor.transcript.text)

    def __getitem__(self, index: int) -> ProgramState:
        return self.states[index]

    def __setitem__(self, index: int, state: ProgramState) -> None:
        """The end of `group[i] += x`. Raises ValueError for any other state."""
        if self.states[index] is not state:
            raise ValueError("a branch cannot be replaced by another state")

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self.states)

    def __len__(self) -> int:
        return len(self.states)

    def __enter__(self) -> "ProgramStateGroup":
        return self

    def __exit__(self, *_: object) -> None:
        self.join()

    def __iadd__(self, other: Expr | Sequence[Expr] | Callable[[int], Expr]) -> "ProgramStateGroup":
        """Append to every branch: an expression, one of a list each, or what a function of the
        branch's index returns. Raises ValueError for bare text, which is likelier a mistake."""
        for state, expr in zip(self.states, self._expressions(other), strict=True):
            state += expr
        return self

    def _expressions(self, other: Any) -> list[Expr]:
        if isinstance(other, str):
            raise ValueError("append text to the branches one by one, or give a list of texts")
        if isinstance(other, Node):
            return [other] * len(self.states)
        if callable(other):
            return [other(index) for index in range(len(self.states))]
        nodes_of(other)  # raises for what is neither an expression nor a list of them
        if len(other) != len(self.states):
            raise ValueError(f"{len(other)} expressions for {len(self.states)} branches")
        return list(other)

    def join(self, mode: str = "gather_variable") -> None:
        """Wait for the branches and bring them back into the state that was forked.

        gather_variable: each variable that is new in the branches becomes the list of its values,
        in the order of the branches. A name that the forked state has by then is never gathered.
        concate_and_append: the text that each branch has appended is appended, in their order.

        A failed branch fails the variables that it was to give, or the text.
        Raises ValueError for another mode.
        """
        if mode not in JOIN_MODES:
            raise ValueError(f"join by one of {', '.join(JOIN_MODES)}, not {mode!r}")
        for state in self.states:
            state.sync()
        if mode == "gather_variable":
            self._gather()
        else:
            self._concatenate()

    def _gather(self) -> None:
        known = self.src_state.executor.variables()
        branches = [state.executor.variables() for state in self.states]
        names = dict.fromkeys(name for branch in branches for name in branch if name not in known)
        for name in names:
            self.src_state.executor.gather(name, [b[name] for b in branches if name in b])

    def _concatenate(self) -> None:
        for state in self.states:
            if (cause := state.error()) is not None:
                self.src_state.executor.fail(cause)
                return
            self.src_state += state.executor.transcript.text[self._start :]


def _pair(chunk: Chunk) -> tuple[str, dict[str, Any]]:
    return chunk.text, chunk.meta
