"""What a grammar may ask for, checked on its text before any engine sees it.

Pure: the frontend calls `check` before a request crosses to the engine. Every engine has inputs
that it hangs or dies on; most are larger, deeper or more repeated than any honest grammar.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from ramify.srt.grammar import GrammarError, GrammarSpec, Kind

REGEX_BYTES = 8 * 1024
PATTERN_BYTES = 2 * 1024
SCHEMA_BYTES = 256 * 1024
SCHEMA_DEPTH = 64
SCHEMA_NODES = 20_000
ENUM_ENTRIES = 10_000
ENUM_BYTES = 128 * 1024
CHOICES = 1024
CHOICE_BYTES = 4 * 1024
GRAMMAR_BYTES = 64 * 1024
BRACKETS = 200
REPEAT = 1_000_000  # of one bounded repeat; engines that count by copying have their own limit

TYPES = ("null", "boolean", "object", "array", "number", "integer", "string")
# What holds schemas by name, a list of schemas, or one schema; the rest is data, not schemas.
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
ONE = (
    "items",
    "additionalItems",
    "unevaluatedItems",
    "contains",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
)


def check(spec: GrammarSpec) -> Any:
    """What the text holds: the value of a kind that is JSON, else itself. Raises GrammarError for
    one that is malformed or asks for too much."""
    if "\0" in spec.text:
        raise invalid("NUL characters are not allowed")
    try:
        spec.text.encode()
    except UnicodeEncodeError as error:
        raise invalid("lone surrogates are not allowed") from error
    return _CHECKS[spec.kind](spec.text)


def invalid(message: str) -> GrammarError:
    return GrammarError("invalid_grammar", message)


def too_large(message: str) -> GrammarError:
    return GrammarError("grammar_too_large", message)


def _at_most(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise too_large(f"{what}: {found}, at most {limit} are allowed")


def check_regex(text: str, name: str = "regex", limit: int = REGEX_BYTES) -> str:
    """The text itself. Raises GrammarError for its length, brackets or repeats; its syntax is the
    engine's to judge."""
    _at_most(f"bytes in the {name}", len(text.encode()), limit)
    _at_most(f"nested brackets in the {name}", bracket_depth(text), BRACKETS)
    for bounds in re.findall(r"\{(\d+)(?:,(\d*))?\}", text):
        for bound in filter(None, bounds):
            if len(bound) > 7 or int(bound) > REPEAT:
                raise too_large(f"a repeat in the {name} is over {REPEAT}")
    return text


def bracket_depth(text: str) -> int:
    """The deepest nesting of ( [ {, escapes left out."""
    depth = deepest = 0
    for character in re.sub(r"\\.", "", text, flags=re.DOTALL):
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(depth - 1, 0)
    return deepest


def _check_grammar(text: str) -> str:
    if not text.strip():
        raise invalid("the grammar is empty")
    _at_most("bytes in the grammar", len(text.encode()), GRAMMAR_BYTES)
    _at_most("nested brackets in the grammar", bracket_depth(text), BRACKETS)
    return text


def _check_lark(text: str) -> str:
    _check_grammar(text)
    plain = re.sub(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*', " ", text)
    if "<" in plain:
        raise invalid(f"special tokens <...> are not allowed ({_line(plain, '<')})")
    return text


def _line(text: str, needle: str) -> str:
    return f"line {text[: text.index(needle)].count(chr(10)) + 1}"


def choices(text: str) -> list[str]:
    """The strings of a `choice`. Raises GrammarError."""
    found = parse_json(text, "the choices", CHOICES * CHOICE_BYTES)
    if not isinstance(found, list) or not all(isinstance(choice, str) for choice in found):
        raise invalid("choices are a list of strings")
    if not found:
        raise invalid("there is no choice")
    _at_most("choices", len(found), CHOICES)
    seen: dict[str, int] = {}
    for i, choice in enumerate(found):
        if not choice:
            raise invalid(f"choice {i} is empty")
        if choice in seen:
            raise invalid(f"choices {seen[choice]} and {i} are equal")
        seen[choice] = i
        _at_most(f"bytes in choice {i}", len(choice.encode("utf-8", "replace")), CHOICE_BYTES)
        if any("\ud800" <= character <= "\udfff" or character == "\0" for character in choice):
            raise invalid(f"choice {i} is not text: it has a lone surrogate or a NUL")
    return found


def schema(text: str) -> dict[str, Any]:
    """A JSON schema, every limit checked; `true` is any value. Raises GrammarError."""
    found = parse_json(text, "the schema", SCHEMA_BYTES)
    if found is False:
        raise invalid("the schema false allows nothing")
    if found is not True and not isinstance(found, dict):
        raise invalid("a schema is a JSON object")
    value: dict[str, Any] = {} if found is True else found
    _check_size(value)
    check_schema(value)
    return value


def parse_json(text: str, what: str, limit: int) -> Any:
    """A JSON value of bounded size and depth. Raises GrammarError naming line and column."""
    _at_most(f"bytes in {what}", len(text.encode()), limit)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise too_large(f"{what} is nested too deeply") from error
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise invalid(f"{what} is not JSON: {error.msg} ({at})") from error
    except ValueError as error:  # an integer of thousands of digits
        raise too_large(f"{what} holds a number with too many digits") from error


def _check_size(value: Any) -> None:
    """Depth and number of all JSON values, data included."""
    nodes = 0
    level = [value]
    for _ in range(SCHEMA_DEPTH + 1):
        nodes += len(level)
        _at_most("values in the schema", nodes, SCHEMA_NODES + ENUM_ENTRIES)
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise too_large(f"the schema is nested deeper than {SCHEMA_DEPTH}")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def subschemas(root: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema, itself first, each with its JSON pointer."""
    todo: list[tuple[str, Any]] = [("#", root)]
    while todo:
        at, node = todo.pop()
        if not isinstance(node, dict):
            continue  # true, false, or malformed: `check_schema` says so
        yield at, node
        todo += [(f"{at}/{key}", node[key]) for key in ONE if key in node]
        for key in (*LISTED, "items"):
            entries = node.get(key)
            if isinstance(entries, list):
                todo += [(f"{at}/{key}/{i}", entry) for i, entry in enumerate(entries)]
        for key in NAMED:
            entries = node.get(key)
            if isinstance(entries, dict):
                todo += [(f"{at}/{key}/{name}", entry) for name, entry in entries.items()]


def check_schema(root: dict[str, Any]) -> None:
    """Types, references, patterns and enumerations of a schema. Raises GrammarError."""
    entries = size = 0
    for nodes, (at, node) in enumerate(subschemas(root), 1):
        _at_most("schemas in the schema", nodes, SCHEMA_NODES)
        _check_shapes(at, node)
        _check_type(at, node.get("type", []))
        _check_reference(at, node)
        for pattern in _patterns(node):
            _check_pattern(at, pattern)
        values = node.get("enum", [])
        entries += len(values)
        size += len(json.dumps(values))
    _at_most("enum entries", entries, ENUM_ENTRIES)
    _at_most("bytes in enumerations", size, ENUM_BYTES)


def _check_shapes(at: str, node: dict[str, Any]) -> None:
    for key in NAMED:
        if key in node and not isinstance(node[key], dict):
            raise invalid(f"{at}/{key} must be an object")
    for key in LISTED:
        if key in node and not (isinstance(node[key], list) and node[key]):
            raise invalid(f"{at}/{key} must be a list that is not empty")
    for key in ONE:
        fits = dict | bool | list if key == "items" else dict | bool
        if key in node and not isinstance(node[key], fits):
            raise invalid(f"{at}/{key} must be a schema")
    if "enum" in node and not (isinstance(node["enum"], list) and node["enum"]):
        raise invalid(f"{at}/enum must be a list that is not empty")
    required = node.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise invalid(f"{at}/required must be a list of names")


def _check_type(at: str, found: Any) -> None:
    for name in found if isinstance(found, list) else [found]:
        if name not in TYPES:
            raise invalid(f"{at}/type: {str(name)[:40]!r} is none of {', '.join(TYPES)}")


def _check_reference(at: str, node: dict[str, Any]) -> None:
    for key in ("$ref", "$dynamicRef", "$recursiveRef"):
        reference = node.get(key)
        if reference is None:
            continue
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise invalid(f"{at}/{key} must point into this schema: it must start with #")


def _patterns(node: dict[str, Any]) -> Iterator[Any]:
    if "pattern" in node:
        yield node["pattern"]
    yield from node.get("patternProperties", {})


def _check_pattern(at: str, pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise invalid(f"{at}/pattern must be a string")
    check_regex(pattern, f"pattern at {at}", PATTERN_BYTES)


def _check_tag(text: str) -> dict[str, Any]:
    found = parse_json(text, "the structural tag", SCHEMA_BYTES)
    if not isinstance(found, dict):
        raise invalid("a structural tag is a JSON object")
    _check_size(found)
    return found


_CHECKS: dict[Kind, Callable[[str], object]] = {
    "regex": check_regex,
    "json_schema": schema,
    "ebnf": _check_grammar,
    "lark": _check_lark,
    "choice": choices,
    "structural_tag": _check_tag,
}
