"""Thinking over HTTP: told apart in chats, whole on the native route; which requests may think.

The engine is fake: it answers with the text between the braces of the prompt, a byte a token, and
tells a constraint back as what it did not enforce.
"""

import json

import openai
import pytest

CHAT, GENERATE, COMPLETE = "/v1/chat/completions", "/generate", "/v1/completions"
WHY, SO = "is 2<3? </thin", "4</think>2"
ANSWER = f"<think>{WHY}</think>{SO}"
THOUGHT = len(f"<think>{WHY}</think>")  # in tokens, too
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module")
def thinker(tokenizer_folder):
    from running_server import RunningServer

    running = RunningServer(tokenizer_folder, "fake:parser=qwen3", "max_batch=16")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def client(thinker):
    with openai.OpenAI(base_url=f"{thinker.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def asked(answer: str = ANSWER) -> list[dict]:
    return [{"role": "user", "content": f"say {{{answer}}}"}]


def chat(server, answer: str = ANSWER, **fields) -> dict:
    body = {"model": "fake", "messages": asked(answer), "max_tokens": 200} | fields
    response = server.post(CHAT, **body)
    assert response.status_code == 200, response.text
    return response.json()


def message(reply: dict) -> dict:
    return reply["choices"][0]["message"]


def refused(response, param: str) -> str:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    return error["message"]


# --- chats --------------------------------------------------------------------------------------


def test_an_answer_has_its_thinking_apart(thinker):
    reply = chat(thinker)
    assert message(reply) == {
        "role": "assistant",
        "content": SO,
        "refusal": None,
        "reasoning_content": WHY,
    }
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": THOUGHT}
    assert reply["usage"]["completion_tokens"] == len(ANSWER) + 1


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stream_has_its_thinking_apart(client, logprobs):
    chunks = list(
        client.chat.completions.create(
            model="fake",
            messages=asked(),
            max_tokens=200,
            stream=True,
            logprobs=logprobs,
            stream_options={"include_usage": True},
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    pieces = [(delta.model_extra.get("reasoning_content"), delta.content) for delta in deltas]
    assert "".join(why or "" for why, _ in pieces) == WHY
    assert "".join(so or "" for _, so in pieces) == SO
    assert not any(why and so for why, so in pieces)
    first = next(i for i, (_, so) in enumerate(pieces) if so)
    assert not any(why for why, _ in pieces[first:]), "the answer comes behind all thinking"
    usage = chunks[-1].usage
    assert usage.completion_tokens_details.reasoning_tokens == THOUGHT
    entries = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    told = sum(len(entry.content) for entry in entries)
    assert told == (usage.completion_tokens if logprobs else 0), "each token once"


@pytest.mark.parametrize(
    ("answer", "parts", "thought"),
    [
        ("no thinking", (None, "no thinking"), 0),
        ("<thin", (None, "<thin"), 0),
        ("<think>all of it", ("all of it", ""), 16),
        ("<think>all </thin", ("all </thin", ""), 17),
        ("<think></think>b", (None, "b"), 15),
    ],
)
def test_what_a_model_may_write_instead(thinker, answer, parts, thought):
    reply = chat(thinker, answer)
    assert (message(reply)["reasoning_content"], message(reply)["content"]) == parts
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": thought}


def test_thinking_that_does_not_end_is_all_there_is(thinker):
    reply = chat(thinker, max_tokens=12)
    assert (message(reply)["reasoning_content"], message(reply)["content"]) == ("is 2<", "")
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 12}


def test_each_of_several_answers_is_split(thinker):
    reply = chat(thinker, n=3)
    assert [choice["message"]["reasoning_content"] for choice in reply["choices"]] == [WHY] * 3
    assert [choice["message"]["content"] for choice in reply["choices"]] == [SO] * 3
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3 * THOUGHT}


def test_a_stop_string_ends_thinking_too(thinker):
    reply = chat(thinker, stop=["2<3"])
    assert (message(reply)["reasoning_content"], message(reply)["content"]) == ("is ", "")


def test_it_is_not_told_apart_if_not_asked_for(thinker):
    reply = chat(thinker, separate_reasoning=False)
    assert message(reply) == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": THOUGHT}


@pytest.mark.parametrize("off", [OFF, {"reasoning_effort": "none"}], ids=str)
def test_a_request_may_switch_thinking_off(thinker, off):
    """The template is told, nothing is split, and a constraint applies from the start."""
    plain = chat(thinker, regex="a")
    reply = chat(thinker, regex="a", **off)
    assert message(reply) == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert "completion_tokens_details" not in reply["usage"]
    more = reply["usage"]["prompt_tokens"] - plain["usage"]["prompt_tokens"]
    assert more == len("<nothink>")
    assert plain["unenforced_keywords"][-1] == "after thinking"
    assert "after thinking" not in reply["unenforced_keywords"]
    on = chat(thinker, chat_template_kwargs={"enable_thinking": True})
    assert message(on) == message(plain)


def test_a_constrained_answer_thinks_first_whether_it_says_so_or_not(thinker):
    """The constraint starts behind the end marker, so what is before it is no answer."""
    reply = chat(thinker, "hm</think>b", regex="b")
    assert (message(reply)["reasoning_content"], message(reply)["content"]) == ("hm", "b")


def test_a_message_to_continue_may_have_ended_thinking(thinker):
    def continued(text: str) -> dict:
        turns = [*asked("so"), {"role": "assistant", "content": text}]
        fields = {"continue_final_message": True, "add_generation_prompt": False, "regex": "a"}
        return chat(thinker, messages=turns, **fields)

    assert "after thinking" in continued("<think>because")["unenforced_keywords"]
    ended = continued("<think>because</think>")
    assert "after thinking" not in ended["unenforced_keywords"]
    assert message(ended)["content"] == "so"


def test_the_template_may_use_the_thinking_of_earlier_turns(thinker):
    turns = [*asked(), {"role": "assistant", "content": "b"}]
    told = [turns[0], turns[1] | {"reasoning_content": "why"}]
    counts = [chat(thinker, messages=m)["usage"]["prompt_tokens"] for m in (turns, told)]
    assert counts[1] - counts[0] == len("(why)")


def test_without_a_parser_nothing_is_split(server):
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    for fields in ({}, OFF, {"separate_reasoning": False}, {"reasoning_effort": "none"}):
        reply = server.post(CHAT, **body, **fields).json()
        assert set(message(reply)) == {"role", "content", "refusal"}
        assert "completion_tokens_details" not in reply["usage"]


# --- native -------------------------------------------------------------------------------------


def native(server, **fields) -> dict:
    given = {"text": f"say {{{ANSWER}}}", "sampling_params": {"max_new_tokens": 200}} | fields
    response = server.post(GENERATE, **given)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_native_text_stays_whole(thinker):
    reply = native(thinker, require_reasoning=True)
    assert reply["text"] == ANSWER
    assert reply["meta_info"]["reasoning_tokens"] == THOUGHT
    plain = native(thinker)
    assert plain["text"] == ANSWER
    assert "reasoning_tokens" not in plain["meta_info"]


def test_a_native_constraint_applies_from_the_start_unless_asked(thinker):
    params = {"max_new_tokens": 200, "regex": "a"}
    each = native(
        thinker,
        text=[f"say {{{ANSWER}}}"] * 2,
        sampling_params=params,
        require_reasoning=[False, True],
    )
    ends = [reply["meta_info"]["unenforced_keywords"][-1] for reply in each]
    assert ends == ["as sampling_params.regex", "after thinking"]


def test_the_native_stream_counts_thinking_as_it_comes(thinker):
    body = {"text": f"say {{{ANSWER}}}", "require_reasoning": True, "stream": True}
    with thinker.client.stream("POST", GENERATE, json=body) as response:
        lines = [line for line in response.iter_lines() if line][:-1]
    replies = [json.loads(line.removeprefix("data: ")) for line in lines]
    for reply in replies:
        meta = reply["meta_info"]
        most = min(meta["completion_tokens"], THOUGHT)
        assert meta["reasoning_tokens"] == (most if most >= len("<think>") else 0)


def test_completions_are_no_chats(thinker):
    body = {"model": "fake", "prompt": f"{{{ANSWER}}}", "max_tokens": 200, "regex": "a"}
    reply = thinker.post(COMPLETE, **body).json()
    assert reply["choices"][0]["text"] == ANSWER
    assert "after thinking" not in reply["unenforced_keywords"]


def test_the_parser_is_told(thinker, server):
    assert thinker.client.get("/model_info").json()["reasoning_parser"] == "qwen3"
    assert server.client.get("/model_info").json()["reasoning_parser"] is None


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"separate_reasoning": "yes"}, "separate_reasoning"),
        ({"separate_reasoning": 1}, "separate_reasoning"),
        ({"stream_reasoning": False}, "stream_reasoning"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"reasoning_effort": 1}, "reasoning_effort"),
        ({"chat_template_kwargs": "enable_thinking"}, "chat_template_kwargs"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        (
            {"chat_template_kwargs": {"enable_thinking": "no"}},
            "chat_template_kwargs.enable_thinking",
        ),
        ({"chat_template_kwargs": {"enable_thinking": 0}}, "chat_template_kwargs.enable_thinking"),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "reasoning_effort",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "reasoning_content": 5}]},
            "messages.0.reasoning_content",
        ),
        ({"require_reasoning": True}, "require_reasoning"),
    ],
    ids=str,
)
def test_fields_of_a_chat_that_are_wrong(thinker, fields, param):
    body = {"model": "fake", "messages": asked()} | fields
    refused(thinker.post(CHAT, **body), param)
    refused(thinker.post(CHAT, **body, stream=True), param)


@pytest.mark.parametrize(
    ("value", "place"),
    [("true", ""), (1, ""), ({"a": 1}, ""), ([True, "no"], ".1"), ([[True], True], ".0")],
    ids=str,
)
def test_a_native_switch_that_is_wrong(thinker, value, place):
    response = thinker.post(GENERATE, text=["a", "b"], require_reasoning=value)
    refused(response, f"require_reasoning{place}")


def test_a_native_switch_of_the_wrong_length(thinker):
    refused(thinker.post(GENERATE, text=["a", "b"], require_reasoning=[True]), "require_reasoning")
    refused(thinker.post(GENERATE, text="a", require_reasoning=[True]), "require_reasoning")


def test_who_cannot_think_is_not_asked_to(server, thinker):
    why = refused(server.post(GENERATE, text="a", require_reasoning=True), "require_reasoning")
    assert "reasoning_parser" in why
    search = {"text": "a", "sampling_params": {"beam_width": 2}, "require_reasoning": True}
    refused(thinker.post(GENERATE, **search), "require_reasoning")
