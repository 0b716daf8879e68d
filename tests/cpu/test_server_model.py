"""The real server process with the real model, as its users meet it."""

import json
import re
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from server_process import Server

pytestmark = pytest.mark.model

OPTIONS = ["--threads", "1", "--max-queued-requests", "2", "--max-running-requests", "2"]


@pytest.fixture(scope="module")
def server(smollm2):
    server = Server("smollm2", *OPTIONS)
    yield server
    assert server.stop() == 0  # told to stop, it ends well


def test_it_is_ready_soon_and_its_first_lines_say_how_soon_and_how_large(server):
    text = "".join(server.lines)
    assert re.search(r"ready in\s+\d+\.\d s", text)
    assert re.search(r"engine [\d,]+ MiB, frontend [\d,]+ MiB", text)
    assert server.ready_s < 8
    assert server.client.get("/health").status_code == 200
    assert server.client.get("/health_generate").status_code == 200


def test_hits_follow_the_cached_token_contract(server):
    assert server.client.post("/flush_cache").status_code == 200
    seen = []
    for n in (100, 5000, 5000, 500, 5500):
        reply = server.generate(input_ids=list(range(n)), sampling_params={"max_new_tokens": 1})
        seen.append(reply.json()["meta_info"]["cached_tokens"])
    assert seen == [0, 100, 4999, 499, 5000]


def test_openai_clients_see_text_usage_and_reuse(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    messages = [{"role": "user", "content": "Name a river in Europe."}]
    first = client.chat.completions.create(
        model="smollm2", messages=messages, max_tokens=12, temperature=0
    )
    answer = first.choices[0].message.content
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Another."}]
    stream = client.chat.completions.create(
        model="smollm2",
        messages=messages,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    usage = chunks[-1].usage
    assert usage.completion_tokens <= 12
    # the first turn's prompt is found again, whatever the tokenizer makes of the answer's end
    assert usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1


def test_a_client_that_goes_away_mid_stream_frees_its_pages_within_a_second(server):
    body = {
        "text": "Count to a thousand: 1, 2, 3,",
        "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True},
        "stream": True,
    }
    with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=60) as response:
        events = response.iter_lines()
        while "completion_tokens" not in next(events):
            pass
        assert server.stats()["running"] == 1
    left = time.monotonic()
    while server.stats()["running"]:
        assert time.monotonic() - left < 1.0
        time.sleep(0.02)
    stats = server.stats()
    assert stats["pages_free"] + stats["pages_evictable"] == stats["pages_total"]


def test_a_full_queue_is_503_with_retry_after_and_what_was_taken_is_answered(server):
    """Two run, two wait, so of eight long requests at once some must be turned away."""
    answers = []

    def one(i):
        sampling = {"max_new_tokens": 60, "ignore_eos": True}
        body = {"text": f"{i} green bottles", "sampling_params": sampling}
        answers.append(httpx.post(f"{server.url}/generate", json=body, timeout=60))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = [a.status_code for a in answers]
    assert set(codes) == {200, 503}
    refused = answers[codes.index(503)]
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "overloaded_error"
    assert all(len(a.json()["output_ids"]) == 60 for a in answers if a.status_code == 200)


BAD = [
    ("text", {"text": ""}),
    ("input_ids", {"input_ids": []}),
    ("input_ids", {"input_ids": [-1]}),
    ("input_ids", {"input_ids": [49152]}),
    ("input_ids", {"input_ids": [2**63]}),
    ("input_ids", {"input_ids": list(range(8192))}),
    ("max_new_tokens", {"text": "a", "sampling_params": {"max_new_tokens": 8192}}),
    ("temperature", {"text": "a", "sampling_params": {"temperature": -1}}),
    ("top_k", {"text": "a", "sampling_params": {"top_k": 1.5}}),
    ("n", {"text": "a", "sampling_params": {"n": 10**9}}),
    ("stop", {"text": "a", "sampling_params": {"stop": ["x"] * 10**4}}),
    ("stop_token_ids", {"text": "a", "sampling_params": {"stop_token_ids": [49152]}}),
    ("logit_bias", {"text": "a", "sampling_params": {"logit_bias": {"49152": 1.0}}}),
    ("logit_bias", {"text": "a", "sampling_params": {"logit_bias": dict.fromkeys(range(5000), 1)}}),
    ("regex", {"text": "a", "sampling_params": {"regex": "[0-9"}}),
    ("temprature", {"text": "a", "sampling_params": {"temprature": 1}}),
    ("txt", {"txt": "a"}),
]


@pytest.mark.parametrize(("param", "body"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_a_400_that_names_the_field_and_hurts_nobody(server, param, body):
    answer = server.client.post("/generate", content=json.dumps(body))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"].split(".")[-1] == param
    assert param in error["message"]
    assert server.generate(text="Hi", sampling_params={"max_new_tokens": 1}).status_code == 200
    assert server.stats()["running"] == 0


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b"null", b'{"text": NaN}', b'{"text": "a", "text": "b"}', b"\xff\xfe"]
)
def test_what_is_no_json_object_is_a_400(server, raw):
    assert server.client.post("/generate", content=raw).status_code == 400
    assert server.stats()["running"] == 0


def test_nan_parameters_and_unknown_models_are_refused_by_name(server):
    raw = b'{"text": "a", "sampling_params": {"temperature": 1e999}}'
    answer = server.client.post("/generate", content=raw)
    assert (answer.status_code, "temperature" in answer.text) == (400, True)
    answer = server.client.post("/v1/completions", json={"model": "nope", "prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
