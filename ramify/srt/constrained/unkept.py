"""What xgrammar and outlines would take and then not keep: found on the text, as they do not say.

They ignore keywords that they do not know, and a part of those that they do. So schemas may hold
what is listed here as kept, and what binds nothing; any other keyword is named.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from ramify.srt.constrained.base import GrammarError
from ramify.srt.constrained.limits import invalid, subschemas


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEPT = _names(
    "type properties required additionalProperties items prefixItems minItems maxItems enum const "
    "anyOf $ref $defs definitions minimum maximum exclusiveMinimum exclusiveMaximum minLength "
    "maxLength pattern"
)
BIND_NOTHING = _names(
    "$schema $id $comment $anchor title description default examples example deprecated readOnly "
    "writeOnly contentEncoding contentMediaType contentSchema"
)
NEED_A_TYPE = _names(
    "minimum maximum exclusiveMinimum exclusiveMaximum minLength maxLength pattern minItems "
    "maxItems"
)
# Known to some draft of JSON schema; what is known to none binds nothing either.
KNOWN = _names(
    "allOf oneOf not if then else dependentSchemas dependentRequired dependencies contains "
    "minContains maxContains uniqueItems additionalItems unevaluatedItems patternProperties "
    "propertyNames minProperties maxProperties unevaluatedProperties multipleOf format divisibleBy "
    "disallow extends $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor"
)
# An escape or a set, to be left alone; or what matters outside of them.
_REGEX = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[.^$]", re.DOTALL)


def unenforced(
    schema: dict[str, Any], strict: bool, engine: str, without: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """The keywords of a schema that would be let go, each once.

    `without` are those that this engine lacks beside the common ones. Raises GrammarError naming
    them all if nothing may be let go.
    """
    found: dict[str, None] = {}
    for _, node in subschemas(schema):
        found |= dict.fromkeys(_let_go(node))
        found |= dict.fromkeys(key for key in node if key in without)
    if found and strict:
        raise GrammarError("unsupported_schema", f"{engine} cannot enforce: {', '.join(found)}")
    return tuple(found)


def _let_go(node: dict[str, Any]) -> Iterator[str]:
    yield from (key for key in node if key in KNOWN)
    if not isinstance(node.get("type"), str):
        yield from (f"{key} without one type" for key in node if key in NEED_A_TYPE)
    if "pattern" in node:
        yield from _let_go_of_pattern(node["pattern"], node)
    names = node.get("properties", {})
    if set(node.get("required", [])) - set(names):
        yield "required without a property"
    if any(json.dumps(name, ensure_ascii=False)[1:-1] != name for name in names):
        yield "property names that JSON escapes"
    if not re.match("#(/|$)", node.get("$ref", "#")):
        yield "$ref to an anchor"
    for key, beside in (("$ref", ()), ("anyOf", ()), ("enum", ("type",)), ("const", ("type",))):
        if key in node and node.keys() & KEPT - {key, "$defs", "definitions", *beside}:
            yield f"keywords beside {key}"
    values = [*node.get("enum", []), *([node["const"]] if "const" in node else [])]
    if "type" in node and not all(_fits(value, node["type"]) for value in values):
        yield "enum or const of another type"


def _let_go_of_pattern(pattern: str, node: dict[str, Any]) -> Iterator[str]:
    if "minLength" in node or "maxLength" in node:
        yield "pattern with minLength or maxLength"
    if not (pattern.startswith("^") and pattern.endswith("$")):
        yield "pattern that is not anchored by ^ and $"
    if "(?" in pattern.replace("(?:", ""):
        yield "pattern with look-around"


def _fits(value: Any, types: str | list[str]) -> bool:
    """Whether a value is of one of the types."""
    kinds = {
        dict: ("object",),
        list: ("array",),
        str: ("string",),
        bool: ("boolean",),
        int: ("integer", "number"),
        float: ("number",),
    }.get(type(value), ("null",))
    return any(kind in kinds for kind in ([types] if isinstance(types, str) else types))


def dots_on_one_line(regex: str) -> str:
    """A regex whose dots match no newline, for an engine whose dots do."""
    return _REGEX.sub(lambda found: r"[^\n]" if found[0] == "." else found[0], regex)


def without_anchors(regex: str) -> str:
    """A regex less the ^ and $ at its ends, where they change nothing.

    Raises GrammarError for one elsewhere: it would be dropped too, and there it means something.
    """
    at = [found.start() for found in _REGEX.finditer(regex) if found[0] in "^$"]
    if not at:
        return regex
    start, end = regex[0] == "^", at[-1] == len(regex) - 1 and regex[-1] == "$"
    wrong = at[start : len(at) - end]
    if wrong or "|" in regex:
        place = wrong[0] if wrong else at[0]
        raise invalid(f"position {place}: ^ and $ may only stand around a regex without |")
    return regex[start : len(regex) - end]
