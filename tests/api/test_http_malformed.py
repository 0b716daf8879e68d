"""Every class of malformed request: the right status, the right field, and a server that lives on.

The classes are those that have taken down or fooled servers of this kind.
"""

import json
import socket

import httpx
import pytest

pytestmark = pytest.mark.usefixtures("stays_alive")

GENERATE, COMPLETE, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
BASE = {
    GENERATE: {"text": "a", "sampling_params": {"max_new_tokens": 1}},
    COMPLETE: {"model": "fake", "prompt": "a", "max_tokens": 1},
    CHAT: {"model": "fake", "messages": HELLO, "max_tokens": 1},
}
MISSING = object()


def check(response: httpx.Response, status: int, param: str | None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert error["message"]
    assert not any(leak in error["message"] for leak in (".py", "site-packages", "Traceback"))


BODIES = {
    "empty": (b"", None),
    "blank": (b"  \n", None),
    "cut off": (b'{"text": "a"', None),
    "not JSON": (b"text=a", None),
    "a list": (b"[]", None),
    "a string": (b'"x"', None),
    "null": (b"null", None),
    "a key twice": (b'{"text": "a", "text": "b"}', None),
    "a key twice, deeper": (b'{"text": "a", "sampling_params": {"n": 1, "n": 2}}', None),
    "NaN": (b'{"text": "a", "sampling_params": {"temperature": NaN}}', None),
    "NaN as a timeout": (b'{"text": "a", "timeout_s": NaN}', None),
    "an overflow as a timeout": (b'{"text": "a", "timeout_s": 1e999}', "timeout_s"),
    "infinity": (b'{"text": "a", "sampling_params": {"temperature": -Infinity}}', None),
    "overflow": (
        b'{"text": "a", "sampling_params": {"temperature": 1e999}}',
        "sampling_params.temperature",
    ),
    "deep list": (b"[" * 100_000, None),
    "deep object": (b'{"a":' * 100_000, None),
    "deep and closed": (b'{"text":' + b"[" * 5000 + b"]" * 5000 + b"}", None),
    "huge number": (b'{"text": ' + b"9" * 10_000 + b"}", None),
    "lone surrogate": (b'{"text": "\\ud800"}', None),
    "lone surrogate as a key": (b'{"\\udfff": 1}', None),
    "bad UTF-8": (b'{"text": "\xff\xfe"}', None),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), None),
    "NUL": (b'{"text": "a\\u0000b"}', "text"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_not_strict_json(server, name):
    raw, param = BODIES[name]
    headers = {"Content-Type": "application/json"}
    check(server.client.post(GENERATE, content=raw, headers=headers), 400, param)


NATIVE = [
    ({"text": MISSING}, "text"),
    ({"text": None}, "text"),
    ({"text": ""}, "text"),
    ({"text": []}, "text"),
    ({"text": [""]}, "text"),
    ({"text": ["a", 1]}, "text"),
    ({"text": 5}, "text"),
    ({"input_ids": [1]}, "text"),
    ({"text": MISSING, "input_ids": []}, "input_ids"),
    ({"text": MISSING, "input_ids": [[]]}, "input_ids"),
    ({"text": MISSING, "input_ids": [-1]}, "input_ids"),
    ({"text": MISSING, "input_ids": [1024]}, "input_ids"),
    ({"text": MISSING, "input_ids": [[1], [1024]]}, "input_ids.1"),
    ({"text": MISSING, "input_ids": [1.0]}, "input_ids"),
    ({"text": MISSING, "input_ids": [True]}, "input_ids"),
    ({"text": MISSING, "input_ids": [2**63]}, "input_ids"),
    ({"text": MISSING, "input_ids": [10**300]}, "input_ids"),
    ({"text": MISSING, "input_ids": "abc"}, "input_ids"),
    ({"text": MISSING, "input_ids": [1] * 4096}, "input_ids"),
    ({"text": "a" * 4096}, "text"),
    ({"text": "a" * 30_000}, "text"),
    ({"text": "a" * 300_000}, "text"),
    ({"text": ["a"] * 17}, "text"),
    ({"sampling_params": {"n": 17}}, "sampling_params.n"),
    ({"text": ["a"] * 9, "sampling_params": {"n": 2}}, None),
    ({"stream": 1}, "stream"),
    ({"stream": "true"}, "stream"),
    ({"rid": ""}, "rid"),
    ({"rid": 5}, "rid"),
    ({"rid": "x" * 300}, "rid"),
    ({"rid": ["a", "b"]}, "rid"),
    ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
    ({"return_logprob": 1}, "return_logprob"),
    ({"return_logprob": True, "logprob_start_len": -2}, "logprob_start_len"),
    ({"return_logprob": True, "logprob_start_len": 5}, "logprob_start_len"),
    ({"return_logprob": True, "top_logprobs_num": 10**6}, "top_logprobs_num"),
    ({"return_logprob": True, "top_logprobs_num": -1}, "top_logprobs_num"),
    ({"cache_salt": "x" * 257}, "cache_salt"),
    ({"cache_salt": "x" * 200, "extra_key": "y" * 100}, "cache_salt"),
    ({"cache_salt": 5}, "cache_salt"),
    ({"lora_path": "../../etc"}, "lora_path"),
    ({"image_data": "http://169.254.169.254/"}, "image_data"),
    ({"input_embeds": [[0.5]]}, "input_embeds"),
    ({"custom_logit_processor": "gASV"}, "custom_logit_processor"),
    ({"session_params": {"id": "s"}}, "session_params"),
    ({"return_hidden_states": True}, "return_hidden_states"),
    ({"guided_json": {}}, "guided_json"),
    ({"x" * 10_000: 1}, "x" * 80),
    ({"sampling_params": "x"}, "sampling_params"),
    ({"sampling_params": [{}, {}]}, "sampling_params"),
    ({"sampling_params": {"max_tokens": 5}}, "sampling_params.max_tokens"),
    ({"sampling_params": {"guided_regex": "a"}}, "sampling_params.guided_regex"),
]
SAMPLING = [
    ("max_new_tokens", [-1, 2**31, 4096, 1.5, "5", True]),
    ("min_new_tokens", [2, -1, 2**31]),
    ("n", [0, -1, 10**9, 1.0, "2"]),
    ("temperature", [-1, 1e308, "0", True, [1]]),
    ("top_p", [0, 1.1, -0.1]),
    ("top_k", [-2, 0, 1.5, 2**40]),
    ("min_p", [2, -1]),
    ("frequency_penalty", [2.1, -3]),
    ("presence_penalty", [2.1, "x"]),
    ("repetition_penalty", [0, 3, -1]),
    ("logit_bias", [{"x": 1}, {"1024": 1}, {"-1": 1}, {"1": 1e9}, {"1": "x"}, [1], {"1.5": 1}]),
    ("logit_bias", [{str(i): 1 for i in range(1025)}]),
    ("stop", ["", [""], ["x"] * 33, "x" * 513, [1], {"a": 1}, [None]]),
    ("stop_token_ids", [[1024], [-1], [1.5], [True], "5", [1] * 257]),
    ("sampling_seed", [-1, 2**63, 2**64, 1.5]),
    ("ignore_eos", [1, "true"]),
    ("regex", [5, "(" * 300, "a" * 8193]),
    ("json_schema", ["{", [], {"type": "text"}]),
    ("ebnf", [{}, " "]),
]
NATIVE += [
    ({"sampling_params": {"max_new_tokens": 1} | {name: value}}, f"sampling_params.{name}")
    for name, values in SAMPLING
    for value in values
]

OPENAI = [
    ({"model": MISSING}, "model"),
    ({"model": "other"}, "model"),
    ({"model": 5}, "model"),
    ({"guided_json": [{}]}, "guided_json"),
    ({"n": 0}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": 17}, "n"),
    ({"n": True}, "n"),
    ({"temperature": -0.5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"presence_penalty": -3}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1024": 1}}, "logit_bias"),
    ({"logit_bias": {"٣": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 33}, "stop"),
    ({"stop": ["a", 5]}, "stop.1"),
    ({"stop_token_ids": [1024], "min_tokens": 1}, "stop_token_ids"),
    ({"min_tokens": 2}, "min_tokens"),
    ({"min_tokens": 2**31}, "min_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_tokens": 4096}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"seed": 2**64}, "seed"),
    ({"seed": -1}, "seed"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"store": True}, "store"),
    ({"regex": ["a+"]}, "regex"),
    ({"cache_salt": "x" * 300}, "cache_salt"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"bad_words": ["a"]}, "bad_words"),
]
COMPLETIONS = [
    ({"prompt": MISSING}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt.1"),
    ({"prompt": [1024]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": ["a"] * 17}, None),
    ({"prompt": "a" * 4096}, "prompt"),
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 10**9}, "best_of"),
    ({"logprobs": -2}, "logprobs"),
    ({"logprobs": 10**6}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": 1}, "echo"),
    ({"messages": HELLO}, "messages"),
]
CHATS = [
    ({"messages": MISSING}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "boss", "content": "hi"}]}, "messages.0.role"),
    ({"messages": [*HELLO, {"role": "user", "content": "a", "x": 1}]}, "messages.1.x"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages.0.content.0.type",
    ),
    ({"messages": [HELLO[0] | {"tool_calls": [{}]}]}, "messages.0.tool_calls"),
    ({"messages": [{"role": "user", "content": "a\0"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "a" * 5000}]}, "messages"),
    ({"messages": [{"role": "user", "content": "a" * 300_000}]}, "messages"),
    ({"messages": HELLO * 9000}, "messages"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 5}, "logprobs"),
    ({"max_completion_tokens": 5}, "max_tokens"),
    ({"max_tokens": None, "max_completion_tokens": -1}, "max_completion_tokens"),
    ({"continue_final_message": True}, "continue_final_message"),
]
SCHEDULING = [
    ({name: value}, name)
    for name, values in (
        ("priority", ["high", 1.0, 1.5, True, [1], 2**31, -(2**31), 2**63, 10**300]),
        ("program_id", [5, ["p"], "p" * 129, {"id": "p"}]),
        ("timeout_s", [0, -1, -0.0, 86_401, 1e308, 10**400, "5", True, [1.0]]),
    )
    for value in values
]
CASES = [
    *((path, *case) for path in (GENERATE, COMPLETE, CHAT) for case in SCHEDULING),
    *((GENERATE, *case) for case in NATIVE),
    *((path, *case) for path in (COMPLETE, CHAT) for case in OPENAI),
    *((COMPLETE, *case) for case in COMPLETIONS),
    *((CHAT, *case) for case in CHATS),
]


def name(value: object) -> str | None:
    return json.dumps(value, default=str)[:50] if isinstance(value, dict) else None


@pytest.mark.parametrize(("path", "change", "param"), CASES, ids=name)
def test_fields_that_are_wrong(server, path, change, param):
    body = {key: value for key, value in (BASE[path] | change).items() if value is not MISSING}
    check(server.client.post(path, json=body), 400, param)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (GENERATE, {"sampling_params": {"temperature": -0.0, "max_new_tokens": 0}}),
        (GENERATE, {"sampling_params": {"n": 2, "temperature": 0.0, "max_new_tokens": 1}}),
        (GENERATE, {"sampling_params": {"regex": "", "top_p": None, "max_new_tokens": 1}}),
        (GENERATE, {"text": "<eos>"}),
        (GENERATE, {"cache_salt": "a/b"}),
        (GENERATE, {"priority": None, "program_id": None, "timeout_s": None}),
        (GENERATE, {"priority": -(2**31) + 1, "program_id": "p" * 128, "timeout_s": 86_400}),
        (CHAT, {"priority": 2**31 - 1, "program_id": "", "timeout_s": 0.5}),
        (COMPLETE, {"max_tokens": 0, "echo": True}),
        (COMPLETE, {"stop": None, "n": None, "suffix": None, "user": "x" * 10_000}),
        (CHAT, {"max_tokens": None, "max_completion_tokens": 1}),
        (CHAT, {"messages": [{"role": "user", "content": "<eos>"}]}),
    ],
)
def test_odd_requests_that_are_right(server, path, change):
    assert server.client.post(path, json=BASE[path] | change).status_code == 200


def test_a_body_must_be_declared_as_json(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        sent = server.client.post(GENERATE, content=b"{}", headers={"Content-Type": kind})
        check(sent, 415, None)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert server.client.post(GENERATE, content=b'{"text":"a"}', headers=headers).is_success


def test_a_body_over_the_limit_is_refused_declared_or_not(server):
    big = b" " * (2**20 + 1)
    headers = {"Content-Type": "application/json"}
    check(server.client.post(GENERATE, content=big, headers=headers), 413, None)
    with httpx.Client(base_url=server.url) as client:
        chunks = (b" " * 2**16 for _ in range(17))
        check(client.post(GENERATE, content=chunks, headers=headers), 413, None)


def test_unknown_routes_and_methods(server):
    check(server.client.get("/v2/nothing"), 404, None)
    check(server.client.get(f"/{'x' * 5000}"), 404, None)
    check(server.client.get("/generate"), 405, None)
    check(server.client.request("DELETE", "/health"), 405, None)
    check(server.client.post("/flush_cache?timeout=nan"), 400, "timeout")
    check(server.client.post("/flush_cache?timeout=1e9"), 400, "timeout")


def test_abort_says_what_it_needs(server):
    check(server.post("/abort_request"), 400, "rid")
    check(server.post("/abort_request", rid="a", abort_all=True), 400, "rid")
    check(server.post("/abort_request", rid=["a"]), 400, "rid")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /health HTTP/1.1\r\nX: " + b"x" * 400_000,
        b"GET /" + b"x" * 400_000,
        b"".join([b"GET /health HTTP/1.1\r\n", *(b"X%d: y\r\n" % i for i in range(40_000))]),
        b"\x80\x04\x95 not http at all\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ],
    ids=["one header", "the path", "many headers", "garbage", "negative length"],
)
def test_heads_of_requests_that_are_no_http_or_too_large(server, raw):
    """Such a connection is answered with 400 or closed; the server does not hold the bytes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        try:
            for start in range(0, len(raw), 65_536):
                sock.sendall(raw[start : start + 65_536])
            answer = sock.recv(4096)
        except ConnectionError:
            return
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
