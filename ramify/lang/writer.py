"""What a program may write to: the part that a running state and a trace have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Self

from ramify.lang.ir import Expr, Node, RoleBegin, RoleEnd, ScopeBegin, ScopeEnd, nodes_of


class Writer(ABC):
    """Takes expressions by `+=`, messages by role, and scopes."""

    @abstractmethod
    def submit(self, node: Node) -> None:
        """Append one node."""

    def __iadd__(self, expr: Expr) -> Self:
        for node in nodes_of(expr):
            self.submit(node)
        return self

    def system(self, expr: Expr | None = None) -> AbstractContextManager[None]:
        """Append a message of the system; without `expr`, the block under `with` is its content."""
        return self._message("system", expr)

    def user(self, expr: Expr | None = None) -> AbstractContextManager[None]:
        """Append a message of the user; without `expr`, the block under `with` is its content."""
        return self._message("user", expr)

    def assistant(self, expr: Expr | None = None) -> AbstractContextManager[None]:
        """Append a message of the assistant; without `expr`, the block is its content."""
        return self._message("assistant", expr)

    def var_scope(self, name: str) -> AbstractContextManager[None]:
        """The text that the block under `with` appends becomes the variable `name`."""
        return self._block(ScopeBegin(name), ScopeEnd(name))

    def _message(self, role: str, expr: Expr | None) -> AbstractContextManager[None]:
        if expr is None:
            return self._block(RoleBegin(role), RoleEnd(role))
        for node in (RoleBegin(role), *nodes_of(expr), RoleEnd(role)):
            self.submit(node)
        return nullcontext()

    @contextmanager
    def _block(self, begin: Node, end: Node) -> Iterator[None]:
        """Closed whatever happens inside, so that no message or scope is left open."""
        self.submit(begin)
        try:
            yield
        finally:
            self.submit(end)
