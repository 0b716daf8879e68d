"""Structural tags: free text until a trigger, then what its tag asks, then free text again."""

import json
import sys
from pathlib import Path

import pytest

from ramify.srt.constrained.base import GrammarError, compile_grammar
from ramify.srt.constrained.choose import load_backend
from ramify.srt.grammar import GrammarSpec

pytest.importorskip("xgrammar")
sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from small_vocabulary import small_vocabulary

VOCABULARY = small_vocabulary()
BACKEND = load_backend("auto", VOCABULARY)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


def new_form(content) -> dict:
    tags = [{"begin": "<f=x>", "content": content, "end": "</f>"}]
    return {
        "type": "structural_tag",
        "format": {"type": "triggered_tags", "triggers": ["<f="], "tags": tags},
    }


OLD = {"structures": [{"begin": "<f=x>", "schema": SCHEMA, "end": "</f>"}], "triggers": ["<f="]}
NEW = new_form({"type": "json_schema", "json_schema": SCHEMA})


def compile_tag(tag, strict=True):
    return compile_grammar(BACKEND, GrammarSpec("structural_tag", json.dumps(tag), strict=strict))


def takes(tag, text) -> bool:
    matcher = compile_tag(tag).new_matcher()
    return all(map(matcher.accept, VOCABULARY.write(text))) and matcher.is_accepting()


@pytest.mark.parametrize("tag", [OLD, NEW], ids=["old", "new"])
def test_both_forms_bind_what_follows_a_trigger(tag):
    for text in ("", "name", '<f=x>{"a": 1}</f>', 'a <f=x>{"a": 1}</f> b <f=x>{"a":2}</f>'):
        assert takes(tag, text), text
    for text in ('<f=x>{"a": "1"}</f>', "<f=y>", '<f=x>{"a": 1}', '<f=x>{"a":  1}</f>'):
        assert not takes(tag, text), text


def test_parts_follow_the_rules_of_whole_grammars():
    assert takes(new_form({"type": "regex", "pattern": "^a.c$"}), "<f=x>abc</f>")
    assert not takes(new_form({"type": "regex", "pattern": "^a.c$"}), "<f=x>a\nc</f>")
    assert takes(new_form({"type": "grammar", "grammar": 'root ::= . "b"'}), "<f=x>ab</f>")


@pytest.mark.parametrize(
    ("tag", "code", "message"),
    [
        ({"structures": 1}, "invalid_grammar", "list of objects"),
        ({**OLD, "triggers": ["<g"]}, "invalid_grammar", "trigger"),
        ({"type": "structural_tag", "format": {}}, "invalid_grammar", "format"),
        (new_form({"type": "token", "token": 2}), "invalid_grammar", "type token"),
        (new_form({"type": "regex", "pattern": "a{9999999}"}), "grammar_too_large", "repeat"),
        (new_form({"type": "grammar", "grammar": "root ::= no"}), "invalid_grammar", "no is not"),
        (
            new_form({"type": "json_schema", "json_schema": {"not": {}}}),
            "unsupported_schema",
            "enforce: not",
        ),
    ],
)
def test_a_bad_tag_is_an_error_with_a_code(tag, code, message):
    with pytest.raises(GrammarError, match=message) as caught:
        compile_tag(tag)
    assert caught.value.code == code
    assert ".cc" not in caught.value.message


def test_a_lenient_tag_names_what_it_lets_go():
    lenient = new_form({"type": "json_schema", "json_schema": {**SCHEMA, "minProperties": 1}})
    assert compile_tag(lenient, strict=False).unenforced == ("minProperties",)
