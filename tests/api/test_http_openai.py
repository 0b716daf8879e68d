"""The OpenAI routes as OpenAI's own client sees them, and the bytes below it."""

import json

import openai
import pytest
from langchain_openai import ChatOpenAI

HELLO = [{"role": "user", "content": "abc"}]  # "<assistant>" ends the prompt: "?@AB..." answers


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client, **options):
    options = {"model": "fake", "messages": HELLO, "max_tokens": 4} | options
    return client.chat.completions.create(**options)


def complete(client, **options):
    options = {"model": "fake", "prompt": "abc", "max_tokens": 4} | options
    return client.completions.create(**options)


def test_models_are_listed_and_found(client):
    (card,) = client.models.list().data
    assert card.id == "fake"
    assert client.models.retrieve("fake").model_dump()["max_model_len"] == 4096
    with pytest.raises(openai.NotFoundError, match="no model") as caught:
        client.models.retrieve("gpt-5/x")
    assert caught.value.code == "model_not_found"


def test_a_completion(client):
    made = complete(client)
    assert made.choices[0].text == "defg"
    assert made.choices[0].finish_reason == "length"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (3, 4)
    assert made.usage.total_tokens == 7


def test_completions_of_every_shape_of_prompt(client):
    for prompt, texts in (
        (["a", "m"], ["b", "n"]),
        ([64, 65], ["c"]),
        ([[64], [70]], ["b", "h"]),
    ):
        made = complete(client, prompt=prompt, max_tokens=1)
        assert [choice.text for choice in made.choices] == texts
        assert [choice.index for choice in made.choices] == list(range(len(texts)))


def test_n_counts_its_prompt_once(client):
    made = complete(client, n=3)
    assert len(made.choices) == 3
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (3, 12)


def test_max_tokens_is_16_unless_given(client):
    assert complete(client, max_tokens=openai.NOT_GIVEN).usage.completion_tokens == 16


def test_echo_with_logprobs_scores_a_prompt_without_generating(client):
    made = complete(client, echo=True, logprobs=1, max_tokens=0).choices[0]
    assert made.text == "abc"
    assert made.logprobs.tokens == ["a", "b", "c"]
    assert made.logprobs.token_logprobs == [None, -1.0, -1.0]
    assert made.logprobs.top_logprobs == [None, {"b": -1.0}, {"c": -1.0}]
    assert made.logprobs.text_offset == [0, 1, 2]


def test_echo_and_logprobs_are_the_same_as_a_stream(client):
    options = {"echo": True, "logprobs": 1, "prompt": [64, 65]}
    whole = complete(client, **options).choices[0]
    chunks = [chunk.choices[0] for chunk in complete(client, stream=True, **options)]
    assert "".join(chunk.text for chunk in chunks) == whole.text == "abcdef"
    tokens = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.tokens]
    offsets = [o for chunk in chunks if chunk.logprobs for o in chunk.logprobs.text_offset]
    assert tokens == whole.logprobs.tokens
    assert offsets == whole.logprobs.text_offset


def test_a_chat(client):
    made = chat(client, stop="B")
    assert made.choices[0].message.content == "?@A"
    assert made.choices[0].message.role == "assistant"
    assert made.choices[0].finish_reason == "stop"
    assert made.choices[0].model_dump()["matched_stop"] == "B"


def test_a_second_turn_finds_the_first_one_cached(client, server):
    server.client.post("/flush_cache")
    first = chat(client).usage
    assert first.prompt_tokens_details.cached_tokens == 0
    more = [*HELLO, {"role": "assistant", "content": "?@AB"}, {"role": "user", "content": "d"}]
    second = chat(client, messages=more).usage
    assert second.prompt_tokens_details.cached_tokens == first.prompt_tokens


def test_a_chat_stream(client):
    stream = chat(client, stream=True, n=2, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for place in range(2):
        choices = [c for chunk in chunks for c in chunk.choices if c.index == place]
        assert choices[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in choices) == "?@AB"
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]


def test_a_stream_without_usage_options_says_nothing_of_usage(server):
    body = {"model": "fake", "messages": HELLO, "stream": True, "max_tokens": 2}
    text = server.client.post("/v1/chat/completions", json=body).text
    assert text.endswith("data: [DONE]\n\n")
    assert "usage" not in text


def test_chat_logprobs(client):
    (entry,) = chat(client, max_tokens=1, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert (entry.token, entry.logprob, entry.bytes) == ("?", -0.5, [63])
    assert entry.top_logprobs[0].token == "?"


def test_text_never_breaks_inside_a_character(client):
    """From "~" on the fake's tokens are single bytes that are not UTF-8, or only parts of it."""
    options = {"prompt": "}", "max_tokens": 30}
    pieces = [chunk.choices[0].text for chunk in complete(client, stream=True, **options)]
    assert "".join(pieces) == complete(client, **options).choices[0].text


def test_text_parts_and_roles_reach_the_template(client):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    roles = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": None, "refusal": None},
    ]
    made = chat(client, messages=roles, max_tokens=1)
    rendered = "<system>s<end><developer>d<end><user>a\nb<end><assistant><end><assistant>"
    assert made.usage.prompt_tokens == len(rendered)


def test_what_the_template_refuses_is_an_error_of_the_messages(client):
    with pytest.raises(openai.BadRequestError, match="no tools here") as caught:
        chat(client, messages=[{"role": "tool", "content": "4", "tool_call_id": "1"}])
    assert caught.value.param == "messages"


def test_the_last_message_can_be_continued(client):
    messages = [*HELLO, {"role": "assistant", "content": "hij"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    made = chat(client, messages=messages, extra_body=extra)
    assert made.choices[0].message.content == "klmn"


def test_extensions_act(client):
    made = complete(client, max_tokens=9, extra_body={"stop_token_ids": [69], "min_tokens": 0})
    assert made.choices[0].text == "de"
    assert made.choices[0].model_dump()["matched_stop"] == 69
    kept = complete(client, stop="f", extra_body={"no_stop_trim": True, "top_k": 5, "min_p": 0.1})
    assert kept.choices[0].text == "def"


def test_harmless_fields_are_taken(client):
    made = chat(
        client,
        user="ann",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
        seed=7,
        logit_bias={"5": -100},
        frequency_penalty=0.5,
        temperature=0,
    )
    assert made.choices[0].finish_reason == "length"


def test_an_unknown_model_is_refused_by_name(client):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, model="gpt-5")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_a_stream_that_cannot_start_has_its_own_status(client):
    """Errors come before the first byte, also those that only the engine knows."""
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, stream=True, max_tokens=10**6)
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.InternalServerError) as caught:
        complete(client, stream=True, prompt=[999])
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.type == "overloaded_error"


def test_rid_names_the_answer(server):
    body = {"model": "fake", "prompt": "a", "rid": "mine"}
    assert json.loads(server.client.post("/v1/completions", json=body).text)["id"] == "mine"


def test_langchain_works_unmodified(server):
    model = ChatOpenAI(
        model="fake", base_url=f"{server.url}/v1", api_key="none", max_tokens=4, max_retries=0
    )
    assert model.invoke("abc").content == "?@AB"
    assert "".join(chunk.content for chunk in model.stream("abc")) == "?@AB"
