"""llguidance's messages as errors of ours: what is wrong and where, nothing of its insides."""

import re

from ramify.srt.constrained.base import GrammarError
from ramify.srt.constrained.steps import EMPTY

TOO_COMPLEX = "it is too complex: a limit of the engine was reached"

# Message pattern, code, what to say; the first that is found counts.
_KNOWN = (
    (r"Unimplemented keys: \[(.*?)\]", "unsupported_schema", "{0} cannot be enforced"),
    (r"oneOf", "unsupported_schema", '"oneOf" cannot be enforced: its schemas may overlap'),
    (r"Unknown format: (\S+)", "unsupported_schema", '"format": "{0}" cannot be enforced'),
    (
        r"min/maxProperties only",
        "unsupported_schema",
        "minProperties or maxProperties: not enforceable here",
    ),
    (
        r"circular references",
        "unsupported_schema",
        '"$ref" to itself beside other keywords cannot be enforced',
    ),
    (
        r"patternProperty regexes .* not disjoint",
        "unsupported_schema",
        "patternProperties cannot be enforced: its patterns may overlap",
    ),
    (r"Expected \w+ integer for '(\w+)'", "invalid_grammar", "{0} must be a whole number"),
    (r"Unsatisfiable schema: ([^\n]+)", "invalid_grammar", "nothing satisfies the schema: {0}"),
    (r"Pointer '([^'\n]*)' does not exist", "invalid_grammar", '"$ref": "{0}" points nowhere'),
    (r"NoExtension", "invalid_grammar", EMPTY),
    (r"(?i)look-?around", "", "look-around is not supported"),
    (r"(?i)backreference", "", "back references are not supported"),
    (r"too many expressions", "grammar_too_large", TOO_COMPLEX),
    (r"error: ([^\n]+)", "invalid_grammar", "bad regular expression: {0}"),
    (r"(?i)too ?complex|fuel|too large|too many|too big|limit", "grammar_too_large", TOO_COMPLEX),
    (r"(\d+)\((\d+)\): (?!invalid regex)([^\n]+)", "invalid_grammar", "line {0}, column {1}: {2}"),
)
_INSIDES = re.compile(r"::|\.rs\b|/[a-z_]+/|<state>|panick", re.IGNORECASE)
_UNENFORCED = (
    (re.compile(r"Unimplemented keys: \[(.*?)\]"), "{0}"),
    (re.compile(r"Unknown format: (\S+)"), "format: {0}"),
    (re.compile(r"^(oneOf) "), "{0}"),
)


def error(message: str, kind: str) -> GrammarError:
    """The error to tell a client. `kind` is the spec's."""
    unsupported = "unsupported_schema" if kind == "json_schema" else "invalid_grammar"
    for pattern, code, text in _KNOWN:
        found = re.search(pattern, message)
        if found:
            said = text.format(*found.groups())[:200]
            if not _INSIDES.search(said):
                return GrammarError(code or unsupported, said)
    return GrammarError("invalid_grammar", f"the {kind} cannot be used")


def unenforced(warnings: list[str]) -> tuple[str, ...]:
    """The keywords that a lenient compile let go, each once; a warning that names none as it is."""
    found: list[str] = []
    for warning in warnings:
        for pattern, text in _UNENFORCED:
            match = pattern.search(warning)
            if match:
                names = text.format(match[1]).replace('"', "").split(", ")
                found += names
                break
        else:
            found.append(warning.split("\n")[0][:80])
    return tuple(dict.fromkeys(found))
