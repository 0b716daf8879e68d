"""Regular expressions to constrain a text with: common patterns, and those of JSON objects. Pure.

All stay within what every engine takes: no look-around, no back references, no anchors (a text is
matched whole), digits and letters of ASCII. A pattern may be put into a larger one: `f"on {DATE}"`.

    build_regex_from_object(model | JSON schema | example) --> one regex of its JSON text

Prefer `gen(json_schema=...)`, which knows far more of JSON schema; a regex is for what is around or
between objects, and for engines that only know regexes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ramify.lang.schemas import is_model

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"(?:{_LABEL}\.)+[a-zA-Z]{{2,63}}"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PORT = r"(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
_PATH = r"[a-zA-Z0-9._~!$&'()*+,;=:@%/-]*"
_QUERY = r"[a-zA-Z0-9._~!$&'()*+,;=:@%/?-]*"
_DIVISIBLE_BY_4 = r"0[48]|[2468][048]|[13579][26]"  # two digits that are not 00
_LEAP_YEAR = rf"(?:[0-9]{{2}}(?:{_DIVISIBLE_BY_4})|(?:00|{_DIVISIBLE_BY_4})00)"

INTEGER = r"-?(?:0|[1-9][0-9]*)"
FLOAT = rf"{INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"  # the numbers of JSON
DATE = (  # days that there are, as 2024-02-29
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    rf"|{_LEAP_YEAR}-02-29)"
)
IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
EMAIL = rf"[a-zA-Z0-9_%+-]+(?:\.[a-zA-Z0-9_%+-]+)*@{_HOST}"
URL = rf"https?://{_HOST}(?::{_PORT})?(?:/{_PATH})?(?:\?{_QUERY})?(?:#{_QUERY})?"
UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"

_CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])'  # of a JSON string
_FORMATS = {"date": DATE, "ipv4": IPV4, "email": EMAIL, "uri": URL, "uuid": UUID}
_SCALARS = {"integer": INTEGER, "number": FLOAT, "boolean": "(?:true|false)", "null": "null"}
_ANNOTATIONS = {
    *("$defs", "$schema", "$id", "$comment", "definitions"),
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    "discriminator",
}
_SCHEMA_KEYS = {"$ref", "$schema", "anyOf", "oneOf", "allOf", "enum", "const", "properties"}
_OF_TYPE = {
    "string": {"minLength", "maxLength", "format"},
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}


def build_regex_from_object(object: Any, whitespace_pattern: str | None = None) -> str:
    """The regex of the JSON texts of an object.

    `object` is a model class or an instance of one (as pydantic's), a JSON schema as an object or
    text, or an example: {"name": "Ada", "tags": ["x"]}. An object that reads as a schema is one.
    Properties come in their order. White space is as `json.dumps` writes it, or matches
    `whitespace_pattern`. Raises ValueError for what a regex cannot hold or we do not know: nothing
    that a schema asks is left out.
    """
    schema = _schema(object)
    definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
    return _Builder(definitions, whitespace_pattern).value(schema, "#", ())


def _schema(given: Any) -> dict[str, Any]:
    model: Any = given if isinstance(given, type) else type(given)
    if is_model(model):
        return dict(model.model_json_schema())
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise ValueError(f"the schema is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise ValueError("the schema is not a JSON object")
        return given
    return given if _reads_as_schema(given) else example_schema(given)


def _reads_as_schema(given: Any) -> bool:
    if not isinstance(given, Mapping):
        return False
    kinds = given.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    known = all(isinstance(kind, str) and kind in {*_SCALARS, *_OF_TYPE} for kind in kinds)
    return known or not _SCHEMA_KEYS.isdisjoint(given)


def example_schema(example: Any) -> dict[str, Any]:
    """The JSON schema of the objects like this one. Raises ValueError for what JSON has not."""
    names = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    if type(example) in names:
        return {"type": names[type(example)]}
    if isinstance(example, Mapping):
        properties = {str(name): example_schema(value) for name, value in example.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    if isinstance(example, list | tuple) and example:
        kinds: list[dict[str, Any]] = []
        for entry in example:
            if (kind := example_schema(entry)) not in kinds:
                kinds.append(kind)
        return {"type": "array", "items": kinds[0] if len(kinds) == 1 else {"anyOf": kinds}}
    raise ValueError(f"an example is made of JSON values, and its lists are not empty: {example!r}")


@dataclass(frozen=True)
class _Builder:
    """Schemas to regexes. `space` stands where JSON takes white space; None: as `json.dumps`."""

    definitions: Mapping[str, Any]
    space: str | None

    def value(self, schema: Any, at: str, inside: tuple[str, ...]) -> str:
        """The regex of one schema. `inside` are the references that lead here."""
        if not isinstance(schema, Mapping):
            raise ValueError(f"{at}: a regex cannot hold any value; say of what type it is")
        if "$ref" in schema:
            return self._reference(schema, at, inside)
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                _only(schema, {key}, at)
                if key == "allOf" and len(schema[key]) > 1:
                    raise ValueError(f"{at}: allOf of several schemas cannot be made a regex")
                entries = enumerate(schema[key])
                return _any(self.value(one, f"{at}/{key}/{i}", inside) for i, one in entries)
        if "enum" in schema or "const" in schema:
            _only(schema, {"enum", "const", "type"}, at)
            values = schema.get("enum", [schema.get("const")])
            return _any(literal(json.dumps(value, ensure_ascii=False)) for value in values)
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return _any(self.value({**schema, "type": kind}, at, inside) for kind in kinds)
        return self._typed(schema, kinds, at, inside)

    def _reference(self, schema: Mapping[str, Any], at: str, inside: tuple[str, ...]) -> str:
        _only(schema, {"$ref"}, at)
        name = str(schema["$ref"]).rpartition("/")[2]
        if name not in self.definitions:
            raise ValueError(f"{at}/$ref: {schema['$ref']!r} is not among the definitions")
        if name in inside:
            raise ValueError(f"{at}/$ref: {name} holds itself, which a regex cannot")
        return self.value(self.definitions[name], f"#/$defs/{name}", (*inside, name))

    def _typed(self, schema: Mapping[str, Any], kind: Any, at: str, inside: tuple[str, ...]) -> str:
        if kind in _SCALARS:
            _only(schema, {"type"}, at)
            return _SCALARS[kind]
        if kind not in _OF_TYPE:
            raise ValueError(f"{at}: a regex cannot hold any value; say of what type it is")
        _only(schema, {"type", *_OF_TYPE[kind]}, at)
        if kind == "string":
            return _string(schema, at)
        if kind == "array":
            item = self.value(schema.get("items"), f"{at}/items", inside)
            low, high = schema.get("minItems", 0), schema.get("maxItems")
            return rf"\[{self._space()}{self._list(item, low, high)}{self._space()}\]"
        return self._object(schema, at, inside)

    def _list(self, item: str, low: int, high: int | None) -> str:
        if high == 0:
            return ""
        more = rf"{item}(?:{self._comma()}{item}){_times(max(low - 1, 0), high and high - 1)}"
        return more if low else f"(?:{more})?"

    def _object(self, schema: Mapping[str, Any], at: str, inside: tuple[str, ...]) -> str:
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties")
        if isinstance(rest, Mapping):
            if properties:
                raise ValueError(f"{at}: properties beside additionalProperties are too much")
            value = self.value(rest, f"{at}/additionalProperties", inside)
            member = f'"{_CHARACTER}*"{self._colon()}{value}'
            return rf"\{{{self._space()}{self._list(member, 0, None)}{self._space()}\}}"
        members = [
            literal(json.dumps(name, ensure_ascii=False))
            + self._colon()
            + self.value(value, f"{at}/properties/{name}", inside)
            for name, value in properties.items()
        ]
        required = [name in schema.get("required", ()) for name in properties]
        return rf"\{{{self._space()}{self._members(members, required)}{self._space()}\}}"

    def _members(self, members: Sequence[str], required: Sequence[bool]) -> str:
        """Members in order. The first that must come has the others lean on it with their commas;
        where none must, each may be the first, or there is none."""
        comma = self._comma()
        if True in required:
            first = required.index(True)
            before = "".join(f"(?:{member}{comma})?" for member in members[:first])
            return before + members[first] + self._after(members, required, first)
        starts = [members[i] + self._after(members, required, i) for i in range(len(members))]
        return f"{_any(starts)}?" if starts else ""

    def _after(self, members: Sequence[str], required: Sequence[bool], place: int) -> str:
        comma = self._comma()
        return "".join(
            comma + member if needed else f"(?:{comma}{member})?"
            for member, needed in zip(members[place + 1 :], required[place + 1 :], strict=True)
        )

    def _space(self) -> str:
        return self.space or ""

    def _comma(self) -> str:
        return "," + (" " if self.space is None else self.space)

    def _colon(self) -> str:
        return ":" + (" " if self.space is None else self.space)


def _string(schema: Mapping[str, Any], at: str) -> str:
    if "format" in schema:
        _only(schema, {"type", "format"}, at)
        if schema["format"] not in _FORMATS:
            raise ValueError(f"{at}/format: {schema['format']!r} is none of {', '.join(_FORMATS)}")
        return f'"{_FORMATS[schema["format"]]}"'
    return f'"{_CHARACTER}{_times(schema.get("minLength", 0), schema.get("maxLength"))}"'


def _times(low: int, high: int | None) -> str:
    if high is None:
        return {0: "*", 1: "+"}.get(low, f"{{{low},}}")
    return f"{{{low},{high}}}"


def _any(regexes: Iterable[str]) -> str:
    return f"(?:{'|'.join(regexes)})"


def literal(text: str) -> str:
    """The regex of exactly this text, in every engine's dialect."""
    return "".join(f"\\{one}" if one in r".^$*+?{}[]\|()" else one for one in text)


def _only(schema: Mapping[str, Any], known: set[str], at: str) -> None:
    """Raises ValueError for a keyword that would be left out."""
    unknown = [key for key in schema if key not in known and key not in _ANNOTATIONS]
    if unknown:
        raise ValueError(f"{at}: {unknown[0]} cannot be made a regex; give json_schema instead")
