"""What a client asks of an output, in any dialect, is one checked constraint or a 400 that names
the field; no engine is asked yet."""

import json

import pytest

from ramify.frontend_api import translate
from ramify.frontend_api.answers import ChatAnswer, CompletionAnswer, Envelope
from ramify.frontend_api.body import parse
from ramify.frontend_api.schema import ChatBody, CompletionBody, GenerateBody
from ramify.frontend_api.structured import READERS
from ramify.srt.errors import InvalidRequest
from ramify.srt.grammar import GrammarSpec
from ramify.srt.intake import GenerateRequest, generate_requests, to_submits
from ramify.srt.messages import Finished, ModelInfo, Submit, pack_ids
from ramify.srt.replies import ReplyAssembler
from ramify.srt.sampling_params import SamplingParams

INFO = ModelInfo(1024, 64, (1000,), "float32", "cpu", "Fake", 0, 64, 0.0)
SCHEMA = {"type": "object", "properties": {"zeta": {"type": "string"}, "alpha": {"const": "é"}}}
TEXT = json.dumps(SCHEMA, ensure_ascii=False)
OBJECT = '{"type": "object"}'
TAG = {"type": "structural_tag", "format": {"type": "any_text"}}


def native(params, **fields):
    body = {"text": "a", "sampling_params": params} | fields
    requests, _ = translate.native_requests(parse(json.dumps(body).encode(), GenerateBody), 1024)
    return [request.grammar for request in requests]


def chat(**fields):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    return translate.chat_request(parse(json.dumps(body).encode(), ChatBody), [1]).grammar


def completion(**fields):
    body = {"model": "m", "prompt": ["a", "b"]} | fields
    made = translate.completion_requests(parse(json.dumps(body).encode(), CompletionBody))
    assert made[0].grammar == made[1].grammar, "all prompts of a body have the same constraint"
    return made[0].grammar


def refused(ask, *args, **fields):
    with pytest.raises(InvalidRequest) as caught:
        ask(*args, **fields)
    error = caught.value
    assert error.message.startswith(error.param), "the message names the field as the client does"
    return error


# --- native -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "kind", "text"),
    [
        ({"regex": "[0-9]+"}, "regex", "[0-9]+"),
        ({"ebnf": 'root ::= "a"'}, "ebnf", 'root ::= "a"'),
        ({"json_schema": SCHEMA}, "json_schema", TEXT),
        ({"json_schema": TEXT}, "json_schema", TEXT),
        ({"json_schema": "{}"}, "json_schema", "{}"),
        ({"json_schema": {}}, "json_schema", "{}"),
        ({"structural_tag": TAG}, "structural_tag", json.dumps(TAG)),
        ({"structural_tag": json.dumps(TAG)}, "structural_tag", json.dumps(TAG)),
    ],
)
def test_a_native_option_arrives_as_it_was_written(params, kind, text):
    """The order of properties too: it is the order that they are generated in."""
    (name,) = params
    assert native(params) == [GrammarSpec(kind, text, True, f"sampling_params.{name}")]


def test_a_batch_has_one_constraint_for_all_or_one_for_each():
    one = GrammarSpec("regex", "a", True, "sampling_params.regex")
    assert native({"regex": "a"}, text=["x", "y"]) == [one, one]
    found = native([{"regex": "a"}, {}, {"ebnf": 'root ::= "b"'}], text=["x", "y", "z"])
    assert [spec and spec.kind for spec in found] == ["regex", None, "ebnf"]


@pytest.mark.parametrize("name", ["regex", "json_schema", "ebnf", "structural_tag", "strict"])
def test_null_asks_for_nothing(name):
    assert native({name: None}) == [None]


def test_an_empty_text_asks_for_nothing():
    assert native({"regex": "", "json_schema": "", "ebnf": "", "structural_tag": ""}) == [None]


def test_only_an_explicit_false_lets_a_schema_be_lenient():
    assert native({"json_schema": "{}", "strict": False})[0].strict is False
    assert native({"json_schema": "{}", "strict": True})[0].strict is True


@pytest.mark.parametrize(
    ("params", "param", "code"),
    [
        ({"regex": "a", "json_schema": "{}"}, "regex", "invalid_value"),
        ({"ebnf": "root ::= x", "structural_tag": TAG}, "ebnf", "invalid_value"),
        ({"regex": 5}, "regex", "invalid_value"),
        ({"regex": ["a"]}, "regex", "invalid_value"),
        ({"regex": "a" * 8193}, "regex", "grammar_too_large"),
        ({"regex": "(" * 300}, "regex", "grammar_too_large"),
        ({"regex": "a{1,10000000}"}, "regex", "grammar_too_large"),
        ({"regex": "a\0"}, "regex", "invalid_grammar"),
        ({"json_schema": []}, "json_schema", "invalid_value"),
        ({"json_schema": True}, "json_schema", "invalid_value"),
        ({"json_schema": "{"}, "json_schema", "invalid_grammar"),
        ({"json_schema": "false"}, "json_schema", "invalid_grammar"),
        ({"json_schema": {"type": "text"}}, "json_schema", "invalid_grammar"),
        ({"json_schema": {"$ref": "http://x/y"}}, "json_schema", "invalid_grammar"),
        ({"json_schema": "[" * 100_000}, "json_schema", "grammar_too_large"),
        ({"ebnf": " \n"}, "ebnf", "invalid_grammar"),
        ({"ebnf": {"root": "a"}}, "ebnf", "invalid_value"),
        ({"structural_tag": "[]"}, "structural_tag", "invalid_grammar"),
        ({"structural_tag": 1}, "structural_tag", "invalid_value"),
        ({"strict": False}, "strict", "invalid_value"),
        ({"regex": "a", "strict": False}, "strict", "invalid_value"),
        ({"json_schema": "{}", "strict": "no"}, "strict", "invalid_value"),
        ({"json_schema": "{}", "strict": 0}, "strict", "invalid_value"),
    ],
)
def test_a_native_constraint_that_cannot_be(params, param, code):
    error = refused(native, params)
    assert (error.param, error.code) == (f"sampling_params.{param}", code)


def test_two_constraints_are_both_named():
    assert "regex and json_schema" in refused(native, {"regex": "a", "json_schema": "{}"}).message


def test_in_process_the_field_has_its_own_name_and_values_may_not_be_json():
    for bad in ({"type": {1, 2}}, {"maximum": float("nan")}):
        with pytest.raises(InvalidRequest, match="json_schema is not JSON") as caught:
            generate_requests(text="a", sampling={"json_schema": bad})
        assert caught.value.param == "json_schema"
    deep: dict = {}
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(InvalidRequest, match="too deeply"):
        generate_requests(text="a", sampling={"json_schema": deep})


def test_every_sequence_of_a_request_keeps_to_the_constraint():
    spec = GrammarSpec("regex", "a", True, "regex")
    request = GenerateRequest(
        input_ids=[1], sampling=SamplingParams(n=3, max_new_tokens=5), grammar=spec
    )

    class NoText:
        def encode(self, text, add_special_tokens=True): ...

    ids = iter("abc")
    submits = to_submits(request, NoText(), INFO, lambda: next(ids), lambda: 0)
    assert [submit.grammar for submit in submits] == [spec] * 3
    with pytest.raises(InvalidRequest, match="needs a tokenizer") as caught:
        to_submits(request, None, INFO, lambda: "r", lambda: 0)
    assert caught.value.param == "regex"


def test_the_constraints_of_a_body_are_bounded_as_a_whole():
    """128 sequences of a small body must not become gigabytes on the way to the engine."""
    spec = GrammarSpec("json_schema", " " * 2**18)
    many = [GenerateRequest(text="a", sampling=SamplingParams(n=65), grammar=spec)]
    with pytest.raises(InvalidRequest, match="for all sequences") as caught:
        translate.check_grammars(many)
    assert caught.value.code == "grammar_too_large"
    translate.check_grammars(
        [GenerateRequest(text="a", sampling=SamplingParams(n=64), grammar=spec)]
    )


# --- OpenAI -------------------------------------------------------------------------------------


def json_schema(**fields):
    named = {"name": "n", "schema": SCHEMA} | fields
    return {"type": "json_schema", "json_schema": named}


AT = "response_format.json_schema.schema"


@pytest.mark.parametrize("ask", [chat, completion])
@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({}, None),
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "json_object"}},
            GrammarSpec("json_schema", OBJECT, True, "response_format"),
        ),
        ({"response_format": json_schema()}, GrammarSpec("json_schema", TEXT, True, AT)),
        ({"response_format": json_schema(strict=True)}, GrammarSpec("json_schema", TEXT, True, AT)),
        ({"response_format": json_schema(strict=None)}, GrammarSpec("json_schema", TEXT, True, AT)),
        (
            {"response_format": json_schema(strict=False, description="d")},
            GrammarSpec("json_schema", TEXT, False, AT),
        ),
        (
            {"response_format": TAG},
            GrammarSpec("structural_tag", json.dumps(TAG), True, "response_format"),
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "regex": None}},
            GrammarSpec("json_schema", TEXT, True, "structured_outputs.json"),
        ),
        (
            {"structured_outputs": {"json": TEXT}},
            GrammarSpec("json_schema", TEXT, True, "structured_outputs.json"),
        ),
        (
            {"structured_outputs": {"choice": ["New", "New York", "é"]}},
            GrammarSpec("choice", '["New", "New York", "é"]', True, "structured_outputs.choice"),
        ),
        (
            {"structured_outputs": {"regex": "a|b"}},
            GrammarSpec("regex", "a|b", True, "structured_outputs.regex"),
        ),
        (
            {"structured_outputs": {"grammar": 'root ::= "a"'}},
            GrammarSpec("ebnf", 'root ::= "a"', True, "structured_outputs.grammar"),
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            GrammarSpec("lark", 'start: "a"', True, "structured_outputs.grammar"),
        ),
        (
            {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
            GrammarSpec(
                "structural_tag", json.dumps(TAG), True, "structured_outputs.structural_tag"
            ),
        ),
        (
            {"structured_outputs": {"json_object": True}},
            GrammarSpec("json_schema", OBJECT, True, "structured_outputs.json_object"),
        ),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"guided_json": SCHEMA}, GrammarSpec("json_schema", TEXT, True, "guided_json")),
        ({"guided_regex": "a"}, GrammarSpec("regex", "a", True, "guided_regex")),
        ({"guided_choice": ["a", "b"]}, GrammarSpec("choice", '["a", "b"]', True, "guided_choice")),
        (
            {"guided_grammar": 'start: "a"'},
            GrammarSpec("lark", 'start: "a"', True, "guided_grammar"),
        ),
        ({"regex": "a"}, GrammarSpec("regex", "a", True, "regex")),
        ({"json_schema": SCHEMA}, GrammarSpec("json_schema", TEXT, True, "json_schema")),
        ({"ebnf": "root ::= [a]"}, GrammarSpec("ebnf", "root ::= [a]", True, "ebnf")),
        (
            {"structural_tag": TAG},
            GrammarSpec("structural_tag", json.dumps(TAG), True, "structural_tag"),
        ),
        (
            {"regex": "a", "response_format": {"type": "text"}},
            GrammarSpec("regex", "a", True, "regex"),
        ),
    ],
    ids=str,
)
def test_the_dialects_of_openai_bodies(ask, fields, spec):
    assert ask(**fields) == spec


def test_every_dialect_is_a_field_and_is_read():
    for body in (ChatBody, CompletionBody):
        assert set(READERS) <= set(body.model_fields)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": "json"}, "response_format", "invalid_value"),
        ({"response_format": {}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": ["text"]}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x", "unknown_parameter"),
        (
            {"response_format": {"type": "json_object", "schema": {}}},
            "response_format.schema",
            "unknown_parameter",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "invalid_value",
        ),
        ({"response_format": json_schema(schema=None)}, AT, "missing_parameter"),
        ({"response_format": json_schema(schema=[])}, AT, "invalid_value"),
        ({"response_format": json_schema(schema="{}")}, AT, "invalid_value"),
        (
            {"response_format": json_schema(name=None)},
            "response_format.json_schema.name",
            "missing_parameter",
        ),
        (
            {"response_format": json_schema(name="")},
            "response_format.json_schema.name",
            "invalid_value",
        ),
        (
            {"response_format": json_schema(description=1)},
            "response_format.json_schema.description",
            "invalid_value",
        ),
        (
            {"response_format": json_schema(strict="yes")},
            "response_format.json_schema.strict",
            "invalid_value",
        ),
        (
            {"response_format": json_schema(strikt=True)},
            "response_format.json_schema.strikt",
            "unknown_parameter",
        ),
        (
            {"response_format": json_schema(schema={"type": "text"})},
            AT,
            "invalid_grammar",
        ),
        (
            {"response_format": json_schema(schema={"enum": ["x"] * 10_001})},
            AT,
            "grammar_too_large",
        ),
        ({"structured_outputs": []}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        (
            {"structured_outputs": {"regex": "a", "json": {}}},
            "structured_outputs.regex",
            "invalid_value",
        ),
        (
            {"structured_outputs": {"backend": "x"}},
            "structured_outputs.backend",
            "unknown_parameter",
        ),
        (
            {"structured_outputs": {"choice": []}},
            "structured_outputs.choice",
            "invalid_grammar",
        ),
        (
            {"structured_outputs": {"choice": ["a", "a"]}},
            "structured_outputs.choice",
            "invalid_grammar",
        ),
        (
            {"structured_outputs": {"choice": "a"}},
            "structured_outputs.choice",
            "invalid_value",
        ),
        (
            {"structured_outputs": {"json_object": 1}},
            "structured_outputs.json_object",
            "invalid_value",
        ),
        ({"guided_choice": ["a", 1]}, "guided_choice", "invalid_grammar"),
        ({"guided_choice": ["a", ""]}, "guided_choice", "invalid_grammar"),
        ({"guided_choice": [str(i) for i in range(1025)]}, "guided_choice", "grammar_too_large"),
        ({"guided_grammar": 5}, "guided_grammar", "invalid_value"),
        (
            {"response_format": json_schema(), "guided_regex": "a"},
            AT,
            "invalid_value",
        ),
        ({"regex": "a", "ebnf": "root ::= x"}, "regex", "invalid_value"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_constraint_of_an_openai_body_that_cannot_be(fields, param, code):
    for ask in (chat, completion):
        error = refused(ask, **fields)
        assert (error.param, error.code) == (param, code)


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [ChatAnswer, CompletionAnswer])
def test_what_was_not_enforced_stands_beside_the_usage(answer):
    spec = GrammarSpec("json_schema", "{}", strict=False)
    replies = []
    for unenforced in (["not"], ["if", "not"]):
        submit = Submit("r", pack_ids([1]), SamplingParams(), grammar=spec)
        replies.append(ReplyAssembler(submit, None, INFO, now=0.0))
        replies[-1].push(
            Finished("r", "stop", None, 1, 0, 0, 0, 0.0, 0.0, unenforced=unenforced), 1.0
        )
    rest = (None, False) if answer is ChatAnswer else (["", ""], None, None)
    made = answer(Envelope("id", "m", 0, 2), replies, *rest)
    assert made.whole()["unenforced_keywords"] == ["not", "if"]
    told = [event.get("unenforced_keywords") for event in made.moved(1)]
    assert told[-1] == ["if", "not"], "a stream says it with the reason of the end"
    assert not any(told[:-1])
    replies[0].finished = replies[1].finished = None
    assert "unenforced_keywords" not in made.whole()
