"""Structured outputs of the real model, as the field's clients ask for them over HTTP."""

import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import serving

pytestmark = pytest.mark.model

MODEL = "smollm2"
ASK = [{"role": "user", "content": "Describe the dog Rex."}]
SHORT = {"model": MODEL, "messages": ASK, "max_tokens": 120, "temperature": 0.0}


class Size(Enum):
    small = "small"
    large = "large"


class Owner(BaseModel):
    name: str = Field(max_length=20)
    town: Literal["Rome", "Oslo"]


class Dog(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=20)
    size: Size
    owner: Owner


@pytest.fixture(scope="module")
def url(smollm2):
    options = ("--threads", "1", "--max-total-tokens", "8192")
    with serving.server(*options) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def said(client, **fields):
    """The reply's text, and why it ended."""
    choice = client.chat.completions.create(**SHORT | fields).choices[0]
    return choice.message.content, choice.finish_reason


# --- openai -------------------------------------------------------------------------------------


def test_parse_gives_a_model(client):
    done = client.chat.completions.parse(**SHORT, response_format=Dog)
    choice = done.choices[0]
    assert isinstance(choice.message.parsed, Dog)
    assert choice.message.parsed == Dog.model_validate_json(choice.message.content)
    assert choice.finish_reason == "stop"
    assert done.usage.completion_tokens > 10
    assert "unenforced_keywords" not in done.model_extra, "all was enforced"


def test_a_stream_is_parsed_too(client):
    with client.chat.completions.stream(**SHORT, response_format=Dog) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        done = stream.get_final_completion()
    assert len(pieces) > 5
    assert "".join(pieces) == done.choices[0].message.content
    assert isinstance(done.choices[0].message.parsed, Dog)
    whole = client.chat.completions.parse(**SHORT, response_format=Dog)
    assert whole.choices[0].message.parsed == done.choices[0].message.parsed


def test_an_output_without_room_ends_by_length(client):
    text, reason = said(client, response_format={"type": "json_object"}, max_tokens=4)
    assert reason == "length"
    assert text.startswith("{")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**SHORT | {"max_tokens": 4}, response_format=Dog)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[0-9]{3}-[0-9]{4}"}}, "[0-9]{3}-[0-9]{4}"),
        ({"structured_outputs": {"choice": ["New", "New York"]}}, "New( York)?"),
        ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "[ab]"),
        ({"structured_outputs": {"grammar": 'start: "x" /[0-9]/'}}, "x[0-9]"),
        ({"guided_regex": "(yes|no)"}, "yes|no"),
        ({"guided_choice": ["red", "blue"]}, "red|blue"),
        ({"guided_grammar": 'root ::= [0-9] "!"'}, "[0-9]!"),
        ({"regex": "[A-Z]{5}"}, "[A-Z]{5}"),
        ({"ebnf": 'root ::= ("ha"){2,3}'}, "(ha){2,3}"),
    ],
    ids=str,
)
def test_other_dialects_by_extra_body(client, fields, pattern):
    text, reason = said(client, extra_body=fields)
    assert re.fullmatch(pattern, text)
    assert reason == "stop"
    done = client.completions.create(
        model=MODEL, prompt="Rex", max_tokens=40, temperature=0.9, n=3, extra_body=fields
    )
    assert all(re.fullmatch(pattern, choice.text) for choice in done.choices)
    assert {choice.finish_reason for choice in done.choices} == {"stop"}


ARGUMENTS = {
    "type": "object",
    "properties": {"x": {"type": "boolean"}},
    "required": ["x"],
    "additionalProperties": False,
}
CONTENT = {"type": "json_schema", "json_schema": ARGUMENTS}


def test_structural_tags_in_both_forms(client):
    tag = {"type": "tag", "begin": "<call>", "content": CONTENT, "end": "</call>"}
    one = {"type": "structural_tag", "format": tag}
    text, reason = said(client, response_format=one)
    assert re.fullmatch(r'<call>\s*\{\s*"x":\s*(true|false)\s*\}\s*</call>', text)
    assert reason == "stop"
    structures = [{"begin": "<call>", "schema": ARGUMENTS, "end": "</call>"}]
    older = {"type": "structural_tag", "structures": structures, "triggers": ["<call>"]}
    text, _ = said(client, response_format=older, max_tokens=10)
    assert text, "free text until a trigger comes"


def test_a_lenient_schema_says_what_was_not_enforced(client):
    schema = {"type": "integer", "minimum": 10, "maximum": 99, "not": {"const": 5}}
    named = {"name": "n", "schema": schema}
    with pytest.raises(openai.BadRequestError) as caught:
        said(client, response_format={"type": "json_schema", "json_schema": named})
    assert caught.value.code == "unsupported_schema"
    assert caught.value.param == "response_format.json_schema.schema"
    assert '"not"' in caught.value.message
    lenient = {"type": "json_schema", "json_schema": named | {"strict": False}}
    done = client.chat.completions.create(**SHORT, response_format=lenient)
    assert 10 <= int(done.choices[0].message.content) <= 99
    assert done.model_extra["unenforced_keywords"] == ["not"]
    chunks = list(client.chat.completions.create(**SHORT, response_format=lenient, stream=True))
    assert chunks[-1].model_extra["unenforced_keywords"] == ["not"]


def test_penalties_and_biases_do_not_win_against_a_constraint(client):
    fields = {"extra_body": {"regex": "aaaaaaaa"}, "frequency_penalty": 2.0}
    assert said(client, **fields, logit_bias={"81": -100})[0] == "aaaaaaaa"
    fields["extra_body"] |= {"min_tokens": 30}
    assert said(client, **fields)[0] == "aaaaaaaa", "nor does a least length"


# --- langchain ----------------------------------------------------------------------------------


def test_langchain_gives_a_model(url):
    langchain_openai = pytest.importorskip("langchain_openai")
    chat = langchain_openai.ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model=MODEL, temperature=0.0, max_tokens=120
    )
    structured = chat.with_structured_output(Dog, method="json_schema")
    assert isinstance(structured.invoke("Describe the dog Rex."), Dog)
    as_json = chat.with_structured_output(Owner.model_json_schema(), method="json_schema")
    Owner.model_validate(as_json.invoke("Who owns Rex?"))
    loose = chat.with_structured_output(Owner, method="json_mode", include_raw=True)
    raw = loose.invoke("Who owns Rex? Answer in JSON.")["raw"]
    assert raw.content.startswith("{"), "any object"


# --- native -------------------------------------------------------------------------------------


def test_the_native_route_and_its_counts(url):
    with httpx.Client(base_url=url, timeout=120) as http:
        before = http.get("/metrics").text
        params = {"temperature": 0.0, "max_new_tokens": 100, "json_schema": Dog.model_json_schema()}
        reply = http.post("/generate", json={"text": "A dog: ", "sampling_params": params}).json()
        Dog.model_validate_json(reply["text"])
        meta = reply["meta_info"]
        assert 5 < meta["jump_forward_tokens"] < meta["completion_tokens"]
        assert meta["unenforced_keywords"] == []
        assert meta["finish_reason"]["type"] == "stop"
        jumped = jump_forward(http.get("/metrics").text) - jump_forward(before)
        assert jumped == meta["jump_forward_tokens"]
        each = [{"regex": "[0-9]", "max_new_tokens": 5}, {"max_new_tokens": 3, "ignore_eos": True}]
        two = http.post("/generate", json={"text": ["1", "2"], "sampling_params": each}).json()
        assert re.fullmatch("[0-9]", two[0]["text"])
        assert two[1]["meta_info"]["completion_tokens"] == 3


def jump_forward(page):
    return int(re.search(r"^ramify:jump_forward_tokens_total (\d+)", page, re.MULTILINE)[1])


@pytest.mark.parametrize(
    ("params", "name", "code"),
    [
        ({"regex": "[0-9"}, "regex", "invalid_grammar"),
        ({"regex": "a)"}, "regex", "invalid_grammar"),
        ({"regex": "*"}, "regex", "invalid_grammar"),
        ({"regex": "(?=a)b"}, "regex", "invalid_grammar"),
        ({"regex": r"(a)\1"}, "regex", "invalid_grammar"),
        ({"regex": r"[^\s\S]"}, "regex", "invalid_grammar"),
        ({"ebnf": "root ::= root"}, "ebnf", "invalid_grammar"),
        ({"ebnf": "root ::= missing"}, "ebnf", "invalid_grammar"),
        ({"ebnf": "rule ::= x"}, "ebnf", "invalid_grammar"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 1}}, "json_schema", None),
        ({"json_schema": {"$ref": "#/nowhere"}}, "json_schema", "invalid_grammar"),
        ({"json_schema": {"uniqueItems": True}}, "json_schema", "unsupported_schema"),
        ({"json_schema": {"type": "string", "pattern": "("}}, "json_schema", None),
        ({"structural_tag": {"type": "structural_tag"}}, "structural_tag", "invalid_grammar"),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_is_a_400_and_hurts_nobody(url, params, name, code):
    with httpx.Client(base_url=url, timeout=120) as http:
        answer = http.post("/generate", json={"text": "a", "sampling_params": params})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == f"sampling_params.{name}"
        assert error["message"].startswith(error["param"])
        assert error["code"] in ((code,) if code else ("invalid_grammar", "unsupported_schema"))
        assert not any(leak in error["message"] for leak in (".rs", ".cc", "::", "/site-"))
        short = {"max_new_tokens": 1}
        assert http.post("/generate", json={"text": "a", "sampling_params": short}).is_success
        info = http.get("/server_info").json()
        assert (info["violations"], info["stats"]["running"]) == ([], 0)


def test_many_at_once_each_keep_to_their_own(url):
    """Constrained and free, good and bad, and clients that leave: nobody gets another's."""
    patterns = [f"{letter}[0-9]{{{n}}}" for letter in "abcd" for n in (1, 3, 6)]

    def ask(i):
        pattern = patterns[i % len(patterns)]
        params = {"regex": pattern, "max_new_tokens": 12, "temperature": 1.0}
        if i % 4 == 1:
            params = {"max_new_tokens": 3, "ignore_eos": True}
        if i % 4 == 2:
            params["regex"] = "(" + pattern
        timeout = 0.01 if i % 4 == 3 else 120
        try:
            reply = httpx.post(
                f"{url}/generate", json={"text": "x", "sampling_params": params}, timeout=timeout
            )
        except httpx.TimeoutException:
            return i % 4 == 3
        if i % 4 == 2:
            return reply.status_code == 400
        if i % 4 == 1:
            return reply.json()["meta_info"]["completion_tokens"] == 3
        return re.fullmatch(pattern, reply.json()["text"]) is not None

    with ThreadPoolExecutor(12) as pool:
        right = list(pool.map(ask, range(36)))
    assert [i for i, good in enumerate(right) if not good] == []
    deadline = time.monotonic() + 20
    while (info := httpx.get(f"{url}/server_info").json())["stats"]["running"]:
        assert time.monotonic() < deadline, "those whose clients left are ended"
    assert info["violations"] == []
