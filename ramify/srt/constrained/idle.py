"""Keywords of a schema that bind nothing where they stand, for engines that refuse them anywhere.

Schemas are often generated: "uniqueItems": false and "dependencies": {} are in many of them.
"""

from typing import Any

from ramify.srt.constrained.limits import subschemas

ANYTHING: tuple[Any, ...] = ({}, True)
NEED = {"then": "if", "else": "if", "minContains": "contains", "maxContains": "contains"}


def without_idle(root: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, which is changed, without what binds nothing in it."""
    for _, node in subschemas(root):
        for key in [key for key in node if _is_idle(key, node)]:
            del node[key]
    return root


def _is_idle(key: str, node: dict[str, Any]) -> bool:
    value = node[key]
    if key in ("dependencies", "dependentRequired", "dependentSchemas"):
        return bool(value == {})
    if key == "uniqueItems":
        return value is False or (value is True and not _may_be(node, "array"))
    if key == "propertyNames":
        return value in ANYTHING or not _may_be(node, "object")
    if key == "not":
        return value is False
    if key == "if":
        return "then" not in node and "else" not in node
    return key in NEED and NEED[key] not in node


def _may_be(node: dict[str, Any], kind: str) -> bool:
    """Whether the schema's own type allows a kind of value."""
    types = node.get("type", kind)
    return kind in ([types] if isinstance(types, str) else types)
