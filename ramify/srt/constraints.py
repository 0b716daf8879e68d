"""From what a client asks of an output to a `GrammarSpec` that is worth compiling. Pure.

Limits are checked here, before a request gets an id; whether a grammar can be compiled is for its
engine to say. No engine is loaded.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ramify.srt.constrained import limits
from ramify.srt.errors import InvalidRequest
from ramify.srt.grammar import GrammarError, GrammarSpec, Kind

KINDS: tuple[Kind, ...] = ("regex", "json_schema", "ebnf", "structural_tag")  # options by name
STRICT = "strict"  # an option too: false lets what a schema asks beyond the engine go
OBJECTS = ("json_schema", "structural_tag")  # taken as JSON text or as an object
NAMES = (*KINDS, STRICT)


def from_options(options: Mapping[str, Any]) -> GrammarSpec | None:
    """The constraint among sampling options. None and "" ask for none. Raises InvalidRequest."""
    given = [name for name in KINDS if options.get(name) not in (None, "")]
    strict = options.get(STRICT)
    if strict is not None and given != ["json_schema"]:
        raise wrong(STRICT, "needs a json_schema")
    if strict is not None and type(strict) is not bool:
        raise wrong(STRICT, "must be true or false")
    return at_most_one([checked(name, options[name], name, strict is not False) for name in given])


def at_most_one(specs: Sequence[GrammarSpec]) -> GrammarSpec | None:
    """The only one, None of none. Raises InvalidRequest that names two."""
    if len(specs) > 1:
        one, other = specs[0].param, specs[1].param
        raise wrong(one, f"and {other} are both given: an output keeps to one constraint")
    return specs[0] if specs else None


def checked(kind: Kind, value: object, param: str, strict: bool = True) -> GrammarSpec:
    """A constraint within its limits. Raises InvalidRequest naming `param`.

    A schema and a structural tag are JSON text or an object, a choice a list of strings, the others
    text.
    """
    if kind == "choice":
        text = _json(value, list, "a list of strings", param)
    elif isinstance(value, str):
        text = value
    elif kind in OBJECTS:
        text = _json(value, dict, "an object, or the JSON text of one", param)
    else:
        raise wrong(param, "must be a string")
    spec = GrammarSpec(kind, text, strict, param)
    try:
        limits.check(spec)
    except GrammarError as error:
        raise refusal(error, param) from None
    return spec


def _json(value: object, kind: type, right: str, param: str) -> str:
    if not isinstance(value, kind):
        raise wrong(param, f"must be {right}")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise wrong(param, "is nested too deeply", "grammar_too_large") from None
    except (TypeError, ValueError) as error:
        raise wrong(param, f"is not JSON: {error}") from None


def refusal(error: GrammarError, param: str) -> InvalidRequest:
    """What the client is told of a grammar that cannot be used; `param` is "" if it has no name."""
    text = f"{param} cannot be used: {error.message}" if param else error.message
    return InvalidRequest(text, param=param or None, code=error.code)


def wrong(param: str, what: str, code: str = "invalid_value") -> InvalidRequest:
    """An error of the client's about a constraint."""
    return InvalidRequest(f"{param} {what}", param=param, code=code)
