"""Constraints of an output from a client's JSON to the engine, and the errors on the way.

The engine is fake: it tells a constraint back as what it did not enforce, field by field.
"""

import json

import httpx
import openai
import pytest

pytestmark = pytest.mark.usefixtures("stays_alive")

GENERATE, COMPLETE, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
BASE = {
    GENERATE: {"text": "a"},
    COMPLETE: {"model": "fake", "prompt": "a", "max_tokens": 1},
    CHAT: {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
}
SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"const": "é"}}}
TEXT = json.dumps(SCHEMA, ensure_ascii=False)
TAG = {"type": "structural_tag", "format": {"type": "any_text"}}
IN_PARAMS = "sampling_params"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def generate(server, params, **fields):
    return server.post(
        GENERATE, text="a", sampling_params={"max_new_tokens": 1, **params}, **fields
    )


# --- what arrives -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "came"),
    [
        ({"regex": "[0-9]+é"}, ["regex", "[0-9]+é", "True", "regex"]),
        ({"json_schema": SCHEMA}, ["json_schema", TEXT, "True", "json_schema"]),
        ({"json_schema": TEXT, "strict": False}, ["json_schema", TEXT, "False", "json_schema"]),
        ({"ebnf": 'root ::= "a"'}, ["ebnf", 'root ::= "a"', "True", "ebnf"]),
        ({"structural_tag": TAG}, ["structural_tag", json.dumps(TAG), "True", "structural_tag"]),
    ],
    ids=str,
)
def test_a_native_constraint_reaches_the_engine(server, params, came):
    meta = generate(server, params).json()["meta_info"]
    assert meta["unenforced_keywords"] == [*came[:3], f"as {IN_PARAMS}.{came[3]}"]
    assert meta["jump_forward_tokens"] == 7


def test_each_prompt_of_a_batch_has_its_own(server):
    each = [{"regex": "a", "max_new_tokens": 1}, {"max_new_tokens": 1}]
    replies = server.post(GENERATE, text=["a", "b"], sampling_params=each).json()
    metas = [reply["meta_info"] for reply in replies]
    assert metas[0]["unenforced_keywords"][:2] == ["regex", "a"]
    assert "unenforced_keywords" not in metas[1]
    assert [meta["jump_forward_tokens"] for meta in metas] == [7, 0]
    replies = generate(server, {"regex": "a", "n": 2}).json()
    assert all(reply["meta_info"]["unenforced_keywords"][1] == "a" for reply in replies)


def test_a_stream_ends_with_what_is_known_at_the_end(server):
    with server.client.stream(
        "POST",
        GENERATE,
        json={"text": "a", "stream": True, "sampling_params": {"regex": "a", "max_new_tokens": 2}},
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    metas = [json.loads(line.removeprefix("data: "))["meta_info"] for line in lines[:-1]]
    assert metas[-1]["jump_forward_tokens"] == 7
    assert metas[-1]["unenforced_keywords"][0] == "regex"


FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
LENIENT = {"type": "json_schema", "json_schema": FORMAT["json_schema"] | {"strict": False}}
AT = "response_format.json_schema.schema"
DIALECTS = [
    ({"response_format": FORMAT}, ["json_schema", TEXT, "True", AT]),
    ({"response_format": LENIENT}, ["json_schema", TEXT, "False", AT]),
    (
        {"response_format": {"type": "json_object"}},
        ["json_schema", '{"type": "object"}', "True", "response_format"],
    ),
    (
        {"extra_body": {"structured_outputs": {"choice": ["New", "New York"]}}},
        ["choice", '["New", "New York"]', "True", "structured_outputs.choice"],
    ),
    (
        {"extra_body": {"guided_grammar": 'root ::= "a"'}},
        ["ebnf", 'root ::= "a"', "True", "guided_grammar"],
    ),
    ({"extra_body": {"guided_json": SCHEMA}}, ["json_schema", TEXT, "True", "guided_json"]),
    ({"extra_body": {"regex": "a"}}, ["regex", "a", "True", "regex"]),
]


@pytest.mark.parametrize(("fields", "came"), DIALECTS, ids=str)
def test_openais_client_sends_every_dialect(client, fields, came):
    reply = client.chat.completions.create(**BASE[CHAT], **fields)
    came = [*came[:3], f"as {came[3]}"]
    assert reply.model_extra["unenforced_keywords"] == came
    assert reply.usage is not None
    chunks = list(client.chat.completions.create(**BASE[CHAT], **fields, stream=True))
    told = [chunk.model_extra.get("unenforced_keywords") for chunk in chunks]
    assert told[-1] == came, "with the reason of the end"
    assert not any(told[:-1])


@pytest.mark.parametrize(("fields", "came"), DIALECTS, ids=str)
def test_completions_take_the_same(server, fields, came):
    fields = fields.get("extra_body", fields)
    reply = server.post(COMPLETE, **BASE[COMPLETE], **fields).json()
    assert reply["unenforced_keywords"] == [*came[:3], f"as {came[3]}"]


def test_text_is_no_constraint_and_is_not_told(client):
    reply = client.chat.completions.create(**BASE[CHAT], response_format={"type": "text"})
    assert "unenforced_keywords" not in reply.model_extra


# --- what is refused ----------------------------------------------------------------------------


def check(response: httpx.Response, param: str, code: str | None = None) -> None:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    assert error["message"].startswith(param)
    assert error["code"] == code or code is None
    assert not any(leak in error["message"] for leak in (".py", "::", "Traceback", ".rs"))


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


SCHEMAS = [  # wrong whatever the dialect
    ({"type": "text"}, "invalid_grammar"),
    ({"type": 5}, "invalid_grammar"),
    ({"properties": []}, "invalid_grammar"),
    ({"required": "a"}, "invalid_grammar"),
    ({"required": [1]}, "invalid_grammar"),
    ({"enum": []}, "invalid_grammar"),
    ({"enum": "abc"}, "invalid_grammar"),
    ({"anyOf": []}, "invalid_grammar"),
    ({"allOf": {}}, "invalid_grammar"),
    ({"$ref": "http://169.254.169.254/x"}, "invalid_grammar"),
    ({"$ref": "other.json#/a"}, "invalid_grammar"),
    ({"$ref": 5}, "invalid_grammar"),
    ({"$dynamicRef": "file:///etc/passwd"}, "invalid_grammar"),
    ({"pattern": 5}, "invalid_grammar"),
    ({"pattern": "a" * 3000}, "grammar_too_large"),
    ({"pattern": "(" * 300}, "grammar_too_large"),
    ({"patternProperties": {"(" * 300: {}}}, "grammar_too_large"),
    (nested(70), "grammar_too_large"),
    ({"enum": ["x"] * 10_001}, "grammar_too_large"),
    ({"enum": ["x" * 200_000]}, "grammar_too_large"),
    ({"description": "x" * 300_000}, "grammar_too_large"),
    ({"examples": list(range(40_000))}, "grammar_too_large"),
]


@pytest.mark.parametrize(("schema", "code"), SCHEMAS, ids=lambda value: str(value)[:50])
def test_a_schema_that_cannot_be_is_refused_in_every_dialect(server, schema, code):
    check(generate(server, {"json_schema": schema}), f"{IN_PARAMS}.json_schema", code)
    check(generate(server, {"json_schema": json.dumps(schema)}), f"{IN_PARAMS}.json_schema", code)
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    check(server.post(CHAT, **BASE[CHAT], response_format=named), AT, code)
    outputs = {"json": schema}
    check(
        server.post(COMPLETE, **BASE[COMPLETE], structured_outputs=outputs),
        "structured_outputs.json",
        code,
    )


NATIVE = [
    ({"regex": "a", "json_schema": {}}, "regex"),
    ({"regex": "a", "ebnf": "root ::= a"}, "regex"),
    ({"json_schema": {}, "structural_tag": TAG}, "json_schema"),
    ({"regex": 5}, "regex"),
    ({"regex": ["a"]}, "regex"),
    ({"regex": {"a": 1}}, "regex"),
    ({"regex": "a\0"}, "regex"),
    ({"regex": "a" * 9000}, "regex"),
    ({"regex": "(" * 30_000}, "regex"),
    ({"regex": "a{1,99999999999}"}, "regex"),
    ({"json_schema": "nonsense"}, "json_schema"),
    ({"json_schema": "[]"}, "json_schema"),
    ({"json_schema": [{}]}, "json_schema"),
    ({"json_schema": 5}, "json_schema"),
    ({"json_schema": True}, "json_schema"),
    ({"json_schema": "[" * 90_000}, "json_schema"),
    ({"json_schema": "9" * 9000}, "json_schema"),
    ({"ebnf": "  "}, "ebnf"),
    ({"ebnf": 5}, "ebnf"),
    ({"ebnf": "root ::= " + "(" * 300}, "ebnf"),
    ({"ebnf": "x" * 70_000}, "ebnf"),
    ({"structural_tag": "x"}, "structural_tag"),
    ({"structural_tag": []}, "structural_tag"),
    ({"strict": True}, "strict"),
    ({"json_schema": {}, "strict": 1}, "strict"),
    ({"stop_regex": "a"}, "stop_regex"),
    ({"guided_json": {}}, "guided_json"),
    ({"response_format": {"type": "text"}}, "response_format"),
]


@pytest.mark.parametrize(("params", "param"), NATIVE, ids=lambda value: str(value)[:50])
def test_a_native_constraint_that_cannot_be(server, params, param):
    check(generate(server, params), f"{IN_PARAMS}.{param}")
    check(generate(server, params, stream=True), f"{IN_PARAMS}.{param}")


@pytest.mark.parametrize("path", [CHAT, COMPLETE])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": ["text"]}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": None}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        ({"response_format": {"type": "json_schema", "schema": {}}}, "response_format.schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            AT,
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {}, "strict": 1},
                }
            },
            "response_format.json_schema.strict",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": 5, "schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": "json"}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", "b", "a"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", 5]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": "ab"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["x" * 5000]}}, "structured_outputs.choice"),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
        ),
        ({"guided_choice": [str(i) for i in range(2000)]}, "guided_choice"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_json"),
        ({"response_format": FORMAT, "regex": "a"}, AT),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_constraint_of_openais_routes_that_cannot_be(server, path, fields, param):
    check(server.post(path, **BASE[path], **fields), param)


def test_what_the_engine_refuses_is_a_400_before_the_first_byte(server):
    param = f"{IN_PARAMS}.regex"
    check(generate(server, {"regex": "["}), param, "invalid_grammar")
    check(generate(server, {"regex": "["}, stream=True), param, "invalid_grammar")
    check(server.post(CHAT, **BASE[CHAT], guided_regex="["), "guided_regex", "invalid_grammar")
    fields = {"structured_outputs": {"regex": "["}, "stream": True}
    check(server.post(COMPLETE, **BASE[COMPLETE], **fields), "structured_outputs.regex")


def test_constraints_are_bounded_over_all_sequences_of_a_body(start_server):
    """A small body must not become a hundred times as much on the way to the engine."""
    server = start_server("fake:", "max_batch=128")
    schema = json.dumps({"type": "string", "description": "x" * 200_000})
    many = {"json_schema": schema, "n": 128}
    refused = generate(server, many)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "grammar_too_large"
    assert generate(server, many | {"n": 80}).status_code == 200
