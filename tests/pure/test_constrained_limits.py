"""What is refused on the text alone, before any engine: codes, and what the message names."""

import json
import subprocess
import sys

import pytest

from ramify.srt.constrained import limits
from ramify.srt.constrained.base import GrammarError
from ramify.srt.grammar import GrammarSpec


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


LARGE = "grammar_too_large"
BAD = "invalid_grammar"


@pytest.mark.parametrize(
    ("kind", "text", "code", "message"),
    [
        ("regex", "a" * 8193, LARGE, "8193, at most 8192"),
        ("regex", "a\0b", BAD, "NUL"),
        ("regex", "a\ud800", BAD, "surrogates"),
        ("regex", "(" * 201, LARGE, "brackets"),
        ("regex", "a{1000001}", LARGE, "repeat"),
        ("regex", "a{1,99999999999}", LARGE, "repeat"),
        ("ebnf", "x" * 65537, LARGE, "65536"),
        ("ebnf", " \n", BAD, "empty"),
        ("lark", 'start: "a"\nb: <|end|>', BAD, "line 2"),
        ("choice", "[", BAD, "line 1, column 2"),
        ("choice", "{}", BAD, "list of strings"),
        ("choice", "[1]", BAD, "list of strings"),
        ("choice", "[]", BAD, "no choice"),
        ("choice", '["a", ""]', BAD, "choice 1 is empty"),
        ("choice", '["a", "b", "a"]', BAD, "choices 0 and 2"),
        ("choice", '["\\ud800"]', BAD, "surrogate"),
        ("choice", json.dumps([str(i) for i in range(1025)]), LARGE, "1025"),
        ("choice", json.dumps(["a" * 4097]), LARGE, "4097"),
        ("json_schema", "{", BAD, "column 2"),
        ("json_schema", "[]", BAD, "JSON object"),
        ("json_schema", "false", BAD, "allows nothing"),
        ("json_schema", "[" * 5000, LARGE, "nested"),
        ("json_schema", '{"const": ' + "9" * 5000 + "}", LARGE, "digits"),
        ("json_schema", json.dumps(nested(65)), LARGE, "deeper than 64"),
        ("json_schema", json.dumps({"default": [0] * 40_000}), LARGE, "values"),
        ("json_schema", json.dumps({"enum": list(range(10_001))}), LARGE, "enum entries"),
        ("json_schema", json.dumps({"enum": ["a" * 140_000]}), LARGE, "enumerations"),
        ("json_schema", '{"items": {"type": "text"}}', BAD, "#/items/type: 'text'"),
        ("json_schema", '{"type": [["null"]]}', BAD, "type"),
        ("json_schema", '{"$ref": "other.json"}', BAD, "must start with #"),
        ("json_schema", '{"pattern": 1}', BAD, "must be a string"),
        ("json_schema", json.dumps({"pattern": "a" * 2049}), LARGE, "pattern at #"),
        ("json_schema", '{"patternProperties": {"a{9999999}": {}}}', LARGE, "repeat"),
        ("json_schema", '{"properties": []}', BAD, "#/properties must be an object"),
        ("json_schema", '{"anyOf": []}', BAD, "#/anyOf must be a list"),
        ("json_schema", '{"not": 1}', BAD, "#/not must be a schema"),
        ("json_schema", '{"enum": 1}', BAD, "#/enum must be a list"),
        ("json_schema", '{"required": [1]}', BAD, "#/required"),
        ("structural_tag", "[]", BAD, "JSON object"),
        ("structural_tag", json.dumps(nested(65)), LARGE, "deeper"),
    ],
)
def test_a_text_is_refused(kind, text, code, message):
    with pytest.raises(GrammarError) as caught:
        limits.check(GrammarSpec(kind, text))
    assert caught.value.code == code
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", r"(\(|\[){0,1000}"),
        ("lark", 'start: "<a>" /<b>/ // <c>'),
        ("choice", '["a", "b"]'),
        ("json_schema", "true"),
        ("json_schema", json.dumps(nested(60))),
        ("json_schema", '{"properties": {"type": {"type": "string"}, "$ref": {}, "enum": {}}}'),
        ("json_schema", '{"const": {"type": "text", "$ref": "x", "pattern": 1}}'),
        ("json_schema", '{"items": [{"type": "null"}], "additionalProperties": false}'),
    ],
)
def test_what_only_looks_bad_is_let_in(kind, text):
    limits.check(GrammarSpec(kind, text))


def test_the_checks_load_no_engine():
    """The frontend makes them, and it has neither torch nor an engine in its memory."""
    code = (
        "import sys, ramify.srt.constrained.limits\n"
        "print([m for m in ('torch', 'llguidance', 'xgrammar', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
