"""The nodes of a program: frozen values that know no backend.

expression = text | Node | expression + expression

    Text  Gen  Select  RoleBegin RoleEnd  ScopeBegin ScopeEnd     what a program appends
    Argument  Variable  Fork  Join                                 only inside a trace
    ExprList                                                       a sum, flattened by `nodes_of`

What happens to a node is a visitor: `render.Renderer` writes it down, `step.Step` executes it.
"""

from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeVar

from ramify.lang.choices import ChoicesSamplingMethod
from ramify.lang.options import GenerateOptions

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Visitor(Protocol[T_co]):
    """One method for each kind of node."""

    def text(self, node: "Text") -> T_co: ...
    def gen(self, node: "Gen") -> T_co: ...
    def select(self, node: "Select") -> T_co: ...
    def role_begin(self, node: "RoleBegin") -> T_co: ...
    def role_end(self, node: "RoleEnd") -> T_co: ...
    def scope_begin(self, node: "ScopeBegin") -> T_co: ...
    def scope_end(self, node: "ScopeEnd") -> T_co: ...
    def symbol(self, node: "Symbol") -> T_co: ...
    def fork(self, node: "Fork") -> T_co: ...
    def join(self, node: "Join") -> T_co: ...


class Node:
    """Something that can be appended to a program's state and added to text and other nodes."""

    __slots__ = ()

    def accept(self, visitor: Visitor[T]) -> T:
        """Call the visitor's method for this kind of node."""
        raise NotImplementedError

    def __add__(self, other: "Expr") -> "ExprList":
        return ExprList((*nodes_of(self), *nodes_of(other)))

    def __radd__(self, other: "Expr") -> "ExprList":
        return ExprList((*nodes_of(other), *nodes_of(self)))


Expr = str | Node


@dataclass(frozen=True, slots=True)
class ExprList(Node):
    """Nodes to be appended one after the other. Holds no other list."""

    nodes: tuple[Node, ...]

    def accept(self, visitor: Visitor[T]) -> T:
        """Not a node of its own: raises TypeError. Flatten it with `nodes_of` first."""
        raise TypeError("flatten an ExprList with nodes_of before visiting it")


@dataclass(frozen=True, slots=True)
class Text(Node):
    """Constant text."""

    value: str

    def accept(self, visitor: Visitor[T]) -> T:
        """Call `visitor.text`."""
        return visitor.text(self)


@dataclass(frozen=True, slots=True)
class Gen(Node):
    """Text that the model writes, kept under `name` if there is one."""

    name: str | None
    options: GenerateOptions

    def accept(self, visitor: Visitor[T]) -> T:
        """Call `visitor.gen`."""
        return visitor.gen(self)


@dataclass(frozen=True, slots=True)
class Select(Node):
    """The one of `choices` that the model finds likeliest, by `method`."""

    name: str | None
    choices: tuple[str, ...]
    method: ChoicesSamplingMethod

    def accept(self, visitor: Visitor[T]) -> T:
        """Call `visitor.select`."""
        return visitor.select(self)


@dataclass(frozen=True, slots=True)
class RoleBegin(Node):
    """Opens a message of a chat."""

    role: str

    def accept(self, visitor: Visitor[T]) -> T:
        """Call `visitor.role_begin`."""
        return visitor.role_begin(self)


@dataclass(frozen=True, slots=True)
class RoleEnd(Node):
    """Closes the open message of a chat."""

    role: str

    def accept(self, visitor: Visitor[T]) -> T:
        """Call `visitor.role_end`."""
        return visitor.role_end(self)


@dataclass(frozen=True, slots=True)
class ScopeBegin(Node):
    """The text from here to the matching `ScopeEnd` becomes the variable `name`."""

    name: str

    def accept(self, visitor: Visitor[T]) -> T:
        """Call `visitor.scope_begin`."""
        return visitor.scope_begin(self)


@dataclass(frozen=True, slots=True)
class ScopeEnd(Node):
    """Ends the scope `name`."""

    name: str

    def accept(self, visitor: Visitor[T]) -> T:
        """Call `visitor.scope_end`."""
        return visitor.scope_end(self)


def _unknown() -> NoReturn:
    raise TypeError("the value is not known in a trace: it can only be appended, not looked into")


@dataclass(frozen=True, slots=True, eq=False)
class Symbol(Node):
    """A value that a trace does not know: it can be appended and nothing else.

    Looking into it raises TypeError, so that a trace cannot take a branch or build a text from it
    that the real run would not.
    """

    name: str

    def accept(self, visitor: Visitor[T]) -> T:
        """Call `visitor.symbol`."""
        return visitor.symbol(self)

    def __bool__(self) -> bool:
        return _unknown()

    def __eq__(self, other: object) -> bool:
        return _unknown()

    def __hash__(self) -> int:
        return _unknown()

    def __str__(self) -> str:
        return _unknown()

    def __format__(self, spec: str) -> str:
        return _unknown()


class Argument(Symbol):
    """A parameter of the traced function."""

    __slots__ = ()


class Variable(Symbol):
    """The value of a generation, selection or scope of the traced function."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Fork(Node):
    """The state branches into `size` copies."""

    size: int

    def accept(self, visitor: Visitor[T]) -> T:
        """Call `visitor.fork`."""
        return visitor.fork(self)


@dataclass(frozen=True, slots=True)
class Join(Node):
    """The branches of the last fork come back together."""

    mode: str

    def accept(self, visitor: Visitor[T]) -> T:
        """Call `visitor.join`."""
        return visitor.join(self)


def nodes_of(expression: object) -> tuple[Node, ...]:
    """The nodes of an expression, in order. Raises ValueError for None, TypeError for others."""
    if isinstance(expression, str):
        return (Text(expression),) if expression else ()
    if isinstance(expression, ExprList):
        return expression.nodes
    if isinstance(expression, Node):
        return (expression,)
    if isinstance(expression, list | tuple):
        return tuple(node for item in expression for node in nodes_of(item))
    if expression is None:
        raise ValueError("None cannot be appended: text or an expression is needed")
    raise TypeError(f"text or an expression is needed, got {type(expression).__name__}")
