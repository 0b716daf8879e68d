"""Between HTTP and the runtime, without either: names, namespaces, numbers, and the answers."""

import asyncio
import contextlib
import json

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from ramify.frontend_api import translate
from ramify.frontend_api.answers import ChatAnswer, CompletionAnswer, Envelope, NativeAnswer, usage
from ramify.frontend_api.body import parse, strict_json
from ramify.frontend_api.errors import error_body, error_response, on_unexpected
from ramify.frontend_api.schema import ChatBody, CompletionBody, GenerateBody, StreamOptions
from ramify.frontend_api.sse import event
from ramify.srt.errors import InvalidRequest, QueueFull, RequestError
from ramify.srt.messages import Finished, ModelInfo, Submit, TokenLogprob, Tokens, pack_ids
from ramify.srt.replies import ReplyAssembler
from ramify.srt.sampling_params import SamplingParams

MESSAGES = [{"role": "user", "content": "hi"}]


def completion(**fields):
    return parse(json.dumps({"model": "m", "prompt": "p"} | fields).encode(), CompletionBody)


def chat(**fields):
    return parse(json.dumps({"model": "m", "messages": MESSAGES} | fields).encode(), ChatBody)


# --- strict JSON ---

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values, st.booleans())
def test_every_json_value_is_read_as_it_was_written(value, ascii_only):
    assert strict_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_an_error_of_the_client(raw):
    with contextlib.suppress(InvalidRequest):  # any other exception fails the test
        value = strict_json(raw)
        assert value == json.loads(raw)


@given(json_values)
def test_any_object_is_a_body_or_an_error_that_can_be_sent(value):
    """An error names a field of the client: it must always be possible to encode it."""
    for schema in (GenerateBody, CompletionBody, ChatBody):
        raw = json.dumps({"text": value, "prompt": value, "messages": value, "x": value}).encode()
        with pytest.raises(InvalidRequest) as caught:
            parse(raw, schema)
        assert event(error_body(caught.value))


# --- namespaces and names ---


@given(st.lists(st.tuples(st.text("ab:1", max_size=4), st.text("ab:1", max_size=4)), unique=True))
def test_no_two_pairs_of_keys_share_a_namespace(pairs):
    assert len({translate.namespace(*pair) for pair in pairs}) == len(pairs)


@given(
    st.none() | st.sampled_from(["r", "r_0"]),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
)
def test_every_sequence_has_one_id_and_every_id_is_a_name(rid, sizes):
    named = translate.names(rid, "made", sizes)
    assert len(set(named.ids)) == len(named.ids) == sum(sizes)
    for place, public in enumerate(named.ids):
        assert place in named.groups[public]
    assert named.groups[rid or "made"] == list(range(sum(sizes)))


def test_a_list_of_rids_names_its_prompts():
    named = translate.names(["a", "b"], "made", [2, 1])
    assert named.ids == ["a_0", "a_1", "b"]
    assert named.groups["a"] == [0, 1]
    assert "made" not in named.groups


def test_errors_use_the_name_that_the_client_used():
    error = InvalidRequest("max_new_tokens takes less", param="max_new_tokens", code="c")
    told = translate.renamed(error, translate.completion_name)
    assert (told.message, told.param, told.code) == ("max_tokens takes less", "max_tokens", "c")
    told = translate.renamed(error, translate.chat_name(chat()))
    assert told.param == "max_completion_tokens"
    told = translate.renamed(error, translate.native_name)
    assert told.param == "sampling_params.max_new_tokens"


def test_an_error_about_nothing_in_particular_stays_as_it_is():
    error = InvalidRequest("no")
    assert translate.renamed(error, translate.completion_name) is error


# --- requests ---


def test_openai_fields_become_sampling_parameters():
    body = completion(seed=3, stop="x", min_tokens=1, logit_bias={"7": -1}, top_k=4, n=2)
    (request,) = translate.completion_requests(body)
    assert request.sampling == SamplingParams(
        max_new_tokens=16,
        min_new_tokens=1,
        sampling_seed=3,
        stop=("x",),
        logit_bias={7: -1.0},
        top_k=4,
        n=2,
    )


def test_what_the_scheduler_reads_has_one_name_on_all_routes():
    fields = {"priority": -3, "program_id": "p", "timeout_s": 2}
    native = parse(json.dumps({"text": "p"} | fields).encode(), GenerateBody)
    made = [
        *translate.native_requests(native, 1)[0],
        *translate.completion_requests(completion(**fields)),
        translate.chat_request(chat(**fields), [1]),
    ]
    assert len(made) == 3
    for request in made:
        assert {name: getattr(request, name) for name in fields} == fields


def test_every_shared_option_of_openai_is_one_of_ours():
    """A name that is in one list only would be lost on the way."""
    assert set(translate.SHARED) <= set(SamplingParams.__struct_fields__)
    assert set(translate.SHARED) <= set(CompletionBody.model_fields)


def test_echo_asks_for_prompt_logprobs_only_with_logprobs():
    def asked(**fields):
        (request,) = translate.completion_requests(completion(**fields))
        return request.return_logprob, request.logprob_start, request.top_logprobs

    assert asked(echo=True) == (False, -1, 0)
    assert asked(logprobs=2) == (True, -1, 2)
    assert asked(logprobs=0, echo=True) == (True, 0, 0)


def test_a_chat_may_use_all_the_context():
    request = translate.chat_request(chat(), [1, 2])
    assert request.sampling.max_new_tokens is None
    assert request.input_ids == [1, 2]


# --- answers ---

INFO = ModelInfo(100, 64, (99,), "float32", "cpu", "Fake", 0, 64, 0.0)


class Letters:
    """Names token i after the i-th letter."""

    def token_text(self, token_id):
        return chr(97 + token_id)

    def token_bytes(self, token_id):
        return self.token_text(token_id).encode()


def reply(prompt=3, made=2, cached=1, logprob=-0.5):
    ids = pack_ids([0] * prompt)
    submit = Submit("id", ids, SamplingParams(), return_logprob=True, top_logprobs=1)
    assembler = ReplyAssembler(submit, None, INFO, now=0.0)
    items = [TokenLogprob(logprob, i, [(-0.1, i + 1)]) for i in range(made)]
    assembler.push(Tokens("id", list(range(made)), cached, items), 0.1)
    return assembler


def end(assembler, reason="length"):
    made = len(assembler.output_ids)
    finished = Finished("id", reason, None, 3, assembler.cached_tokens, made, 0, 0.0, 0.0)
    assembler.push(finished, 0.2)


def test_usage_counts_a_prompt_once_and_only_sure_cache_hits():
    replies = [reply(cached=0), reply(cached=3), reply(cached=2), reply(cached=2)]
    assert usage(replies, 2) == {
        "prompt_tokens": 6,
        "completion_tokens": 8,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("namespace", "never seen"),
        ("never seen", "never seen"),
        ("evicted", "evicted"),
        ("below threshold", "below threshold"),
    ],
)
def test_a_client_is_not_told_what_other_namespaces_hold(reason, told):
    """It could find out, prompt by prompt, what others have sent."""
    assembler = reply()
    assembler.push(Finished("id", "length", None, 3, 1, 2, 0, 0.0, 0.0, reason), 0.2)
    for answer in (NativeAnswer([assembler], ["i"], many) for many in (False, True)):
        (chunk,) = answer.moved(0)
        assert chunk["meta_info"]["cache_miss_reason"] == told
        assert reason == told or reason not in json.dumps(answer.whole())
    (chunk,) = NativeAnswer([assembler], ["i"], many=False, tells_all=True).moved(0)
    assert chunk["meta_info"]["cache_miss_reason"] == reason, "unless the operator allows it"


def test_a_completion_stream_tells_every_logprob_once():
    assembler = reply()
    answer = CompletionAnswer(Envelope("i", "m", 0, 1), [assembler], ["echo "], Letters(), 1)
    (first,) = answer.moved(0)
    assert first["choices"][0]["text"] == "echo "
    assert first["choices"][0]["logprobs"]["tokens"] == ["a", "b"]
    assert first["choices"][0]["logprobs"]["top_logprobs"][0] == {"b": -0.1, "a": -0.5}
    assert answer.moved(0) == []
    end(assembler)
    (last,) = answer.moved(0)
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["choices"][0]["logprobs"] is None
    assert answer.closing() == []


def test_a_chat_stream_opens_with_the_role_and_closes_with_the_usage():
    assembler = reply()
    envelope = Envelope("i", "m", 0, 1, StreamOptions(include_usage=True))
    answer = ChatAnswer(envelope, [assembler], Letters(), logprobs=False)
    (opening,) = answer.moved(0)
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert opening["usage"] is None
    end(assembler, "timeout")
    (last,) = answer.moved(0)
    assert last["choices"][0]["finish_reason"] == "abort"
    (closing,) = answer.closing()
    assert closing["choices"] == []
    assert closing["usage"]["completion_tokens"] == 2


def test_minus_infinity_becomes_a_number_that_json_has():
    answer = ChatAnswer(
        Envelope("i", "m", 0, 1), [reply(logprob=float("-inf"))], Letters(), logprobs=True
    )
    entry = answer.whole()["choices"][0]["logprobs"]["content"][0]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("a", -9999.0, [97])


# --- errors ---


def test_overload_says_when_to_come_back():
    response = error_response(QueueFull("full"))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_a_bug_of_ours_says_nothing_of_itself(caplog):
    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "query_string": b""}
    error = RuntimeError("/home/me/secret.py is broken")
    response = asyncio.run(on_unexpected(Request(scope), error))
    assert response.status_code == 500
    assert b"secret" not in response.body
    assert "RuntimeError" in caplog.text


def test_an_event_is_one_line_whatever_it_holds():
    raw = event({"text": "a\nb\r\u2028c"})
    assert raw.endswith(b"\n\n")
    assert b"\n" not in raw[:-2]
    assert error_body(RequestError("x"))["error"]["type"] == "server_error"
