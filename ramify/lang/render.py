"""A trace as text, one node a line: for people and for tests. Pure."""

from collections.abc import Iterable

from ramify.lang import ir


class Renderer:
    """Visitor that gives the line of a node."""

    def text(self, node: ir.Text) -> str:
        """The constant, quoted."""
        return f"text {node.value!r}"

    def gen(self, node: ir.Gen) -> str:
        """The name and the options that were said."""
        options = (f"{name}={value!r}" for name, value in node.options.given().items())
        return " ".join(["gen", node.name or "-", *options])

    def select(self, node: ir.Select) -> str:
        """The name and the choices."""
        return f"select {node.name or '-'} {list(node.choices)!r}"

    def role_begin(self, node: ir.RoleBegin) -> str:
        """The role."""
        return f"begin {node.role}"

    def role_end(self, node: ir.RoleEnd) -> str:
        """The role."""
        return f"end {node.role}"

    def scope_begin(self, node: ir.ScopeBegin) -> str:
        """The name."""
        return f"scope {node.name}"

    def scope_end(self, node: ir.ScopeEnd) -> str:
        """The name."""
        return f"end scope {node.name}"

    def symbol(self, node: ir.Symbol) -> str:
        """The kind and the name."""
        return f"{type(node).__name__.lower()} {node.name}"

    def fork(self, node: ir.Fork) -> str:
        """The number of branches."""
        return f"fork {node.size}"

    def join(self, node: ir.Join) -> str:
        """The mode."""
        return f"join {node.mode}"


def render(nodes: Iterable[ir.Node]) -> str:
    """The listing of some nodes."""
    renderer = Renderer()
    return "\n".join(node.accept(renderer) for node in nodes)
