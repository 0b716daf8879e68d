"""What an OpenAI body asks of its output, in any of the field's dialects: one `GrammarSpec`. Pure.

    response_format        OpenAI: {"type": "text" | "json_object" | "json_schema" | ...}
    structured_outputs     vLLM: {"json" | "regex" | "choice" | "grammar" | ...: ...}
    guided_json, ...       vLLM's older names for the same
    regex, ebnf, ...       SGLang: as in its `sampling_params`

At most one of them constrains. A schema is strict, what cannot be enforced refused, unless the
client says `"strict": false` of it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ramify.srt.constraints import at_most_one, checked, wrong
from ramify.srt.grammar import GrammarSpec

ANY_OBJECT = {"type": "object"}
MAX_NAME_CHARS = 64
FORMATS = ("text", "json_object", "json_schema", "structural_tag")

Reader = Callable[[Any, str], GrammarSpec | None]


def grammar_of(fields: Mapping[str, Any]) -> GrammarSpec | None:
    """The constraint among a body's fields. None and "" ask for none. Raises InvalidRequest."""
    specs = [read(fields[name], name) for name, read in READERS.items() if _asks(fields.get(name))]
    return at_most_one([spec for spec in specs if spec is not None])


def _asks(value: Any) -> bool:
    return value is not None and value != ""


# --- OpenAI -------------------------------------------------------------------------------------


def _response_format(value: Any, at: str) -> GrammarSpec | None:
    given = _object(value, at)
    kind = given.get("type")
    if kind not in FORMATS:
        raise wrong(f"{at}.type", f"must be one of {', '.join(FORMATS)}")
    if kind == "structural_tag":
        return checked("structural_tag", given, at)
    _known(given, at, ("type", "json_schema") if kind == "json_schema" else ("type",))
    if kind == "json_schema":
        return _named_schema(given.get("json_schema"), f"{at}.json_schema")
    return checked("json_schema", ANY_OBJECT, at) if kind == "json_object" else None


def _named_schema(value: Any, at: str) -> GrammarSpec:
    """{"name", "schema"} with, if given, "description" and "strict"."""
    given = {name: entry for name, entry in _object(value, at).items() if entry is not None}
    _known(given, at, ("name", "description", "schema", "strict"))
    for name in ("name", "schema"):
        if name not in given:
            raise wrong(f"{at}.{name}", "is required", "missing_parameter")
    name = given["name"]
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_CHARS:
        raise wrong(f"{at}.name", f"must be a string of 1 to {MAX_NAME_CHARS} characters")
    if not isinstance(given.get("description", ""), str):
        raise wrong(f"{at}.description", "must be a string")
    strict = given.get("strict", True)
    if not isinstance(strict, bool):
        raise wrong(f"{at}.strict", "must be true or false")
    if not isinstance(given["schema"], dict):
        raise wrong(f"{at}.schema", "must be an object")
    return checked("json_schema", given["schema"], f"{at}.schema", strict)


# --- vLLM and SGLang ----------------------------------------------------------------------------


def _structured_outputs(value: Any, at: str) -> GrammarSpec | None:
    given = {name: entry for name, entry in _object(value, at).items() if entry is not None}
    _known(given, at, tuple(CONSTRAINTS))
    if not given:
        raise wrong(at, f"must hold one of {', '.join(CONSTRAINTS)}")
    specs = [CONSTRAINTS[name](entry, f"{at}.{name}") for name, entry in given.items()]
    return at_most_one([spec for spec in specs if spec is not None])


def _json_object(value: Any, at: str) -> GrammarSpec | None:
    if not isinstance(value, bool):
        raise wrong(at, "must be true or false")
    return checked("json_schema", ANY_OBJECT, at) if value else None


def _grammar(value: Any, at: str) -> GrammarSpec:
    """EBNF defines with ::=, Lark with a colon."""
    lark = isinstance(value, str) and "::=" not in value
    return checked("lark" if lark else "ebnf", value, at)


_json: Reader = partial(checked, "json_schema")
_regex: Reader = partial(checked, "regex")
_choice: Reader = partial(checked, "choice")
_ebnf: Reader = partial(checked, "ebnf")
_structural_tag: Reader = partial(checked, "structural_tag")

CONSTRAINTS: dict[str, Reader] = {  # of structured_outputs
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
    "json_object": _json_object,
}
READERS: dict[str, Reader] = {  # of a body
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "regex": _regex,
    "json_schema": _json,
    "ebnf": _ebnf,
    "structural_tag": _structural_tag,
}


# --- shapes -------------------------------------------------------------------------------------


def _object(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(at, "must be an object")
    return value


def _known(given: Mapping[str, Any], at: str, names: tuple[str, ...]) -> None:
    for name in given:
        if name not in names:
            what = "is not a field we know; it would have no effect"
            raise wrong(f"{at}.{name[:MAX_NAME_CHARS]}", what, "unknown_parameter")
