"""Beam search over real sockets: its answers, its end, and what does not go together with it."""

import json
import signal
import socket
import time

import pytest
from fake_core import EOS
from waiting import Asking, wait_until

from ramify.srt.beam_search import BeamOptions, Beams, extend

PROMPT = [64, 65, 66]  # "abc"
LONG = {"beam_width": 3, "max_new_tokens": 3000}


def expected(options, last=PROMPT[-1]):
    """The ids and scores that the pure search finds over the rule of the fake engine."""
    beams = Beams()
    while beams.running:
        ends = [h.token_ids[-1] if h.token_ids else last for h in beams.running]
        beams = extend(beams, [likeliest(t, options.n_candidates) for t in ends], options)
    return [(list(h.token_ids), options.score(h.logprob, len(h.token_ids))) for h in beams.finished]


def likeliest(token, top):
    return [(-0.5 - i, ((token + 1) % EOS + i) % (EOS + 1)) for i in range(top)]


def search(server, sampling, **body):
    body = {"input_ids": PROMPT} | body
    response = server.post("/generate", sampling_params=sampling, **body)
    assert response.status_code == 200, response.text
    return response.json()


def complete(server, **body):
    return server.post(
        "/v1/completions", **{"model": "fake", "prompt": "abc", "use_beam_search": True} | body
    )


def steps(server):
    return server.client.get("/server_info").json()["stats"]["steps"]


def wait_until_it_steps(server):
    """Until a search has gone some steps: between two, the engine has no request of it."""
    before = steps(server)
    wait_until(lambda: steps(server) > before + 3)


def asking_for_long(server, **body):
    """A long search on a thread."""
    return Asking(server.url, **{"input_ids": PROMPT, "sampling_params": LONG} | body)


# --- what is found ---


@pytest.mark.parametrize(("penalty", "stopping"), [(1.0, False), (0.0, True), (2.0, "never")])
def test_the_answer_is_that_of_the_pure_search(server, penalty, stopping):
    sampling = {"beam_width": 4, "max_new_tokens": 6, "temperature": 0}
    sampling |= {"length_penalty": penalty, "early_stopping": stopping}
    found = search(server, sampling)
    options = BeamOptions(4, 6, (EOS,), penalty, stopping)
    assert [(r["output_ids"], r["meta_info"]["score"]) for r in found] == expected(options)
    assert found[0]["text"] == "defghi"
    assert found[0]["meta_info"]["finish_reason"] == {"type": "length", "length": 6}
    assert found[0]["meta_info"]["cumulative_logprob"] == -3.0


def test_hypotheses_end_at_the_end_token_unless_it_is_ignored(start_server):
    server = start_server("fake:")
    sampling = {"beam_width": 2, "max_new_tokens": 3, "length_penalty": -1.0}
    found = search(server, sampling, input_ids=[EOS - 4])
    assert [r["output_ids"] for r in found] == [
        ids for ids, _ in expected(BeamOptions(2, 3, (EOS,), -1.0), EOS - 4)
    ]
    going_on = search(server, sampling | {"ignore_eos": True}, input_ids=[EOS - 1])
    assert going_on[0]["output_ids"] == [0, 1, 2]
    ended = search(server, {"beam_width": 16, "max_new_tokens": 2}, input_ids=[EOS - 8])
    assert {r["meta_info"]["finish_reason"]["type"] for r in ended} == {"length"}
    stopped = search(
        server, {"beam_width": 4, "max_new_tokens": 9, "length_penalty": 0.0}, input_ids=[EOS - 3]
    )
    reasons = [r["meta_info"]["finish_reason"] for r in stopped]
    assert {"type": "stop", "matched": EOS} in reasons
    assert all("<eos>" not in r["text"] for r in stopped)


def test_counts_are_those_of_the_prompt_and_of_all_steps(server):
    """Of the prompt what the first step found; computed is what all steps together computed."""
    server.client.post("/flush_cache", params={"timeout": 10})
    sampling = {"beam_width": 3, "max_new_tokens": 5}
    cold, warm = (search(server, sampling, input_ids=[7] * 40)[0]["meta_info"] for _ in range(2))
    assert (cold["prompt_tokens"], cold["cached_tokens"], cold["completion_tokens"]) == (40, 0, 5)
    assert (warm["prompt_tokens"], warm["cached_tokens"]) == (40, 39)
    assert cold["cached_tokens_details"] == {"device": 0, "host": 0, "disk": 0}
    assert cold["computed_tokens"] - warm["computed_tokens"] >= 39
    assert cold["cache_miss_reason"] == "never seen"
    assert cold["e2e_latency"] > 5 * 0.002


def test_a_search_is_of_its_namespace(server):
    server.client.post("/flush_cache", params={"timeout": 10})
    sampling = {"beam_width": 2, "max_new_tokens": 2}
    cached = [
        search(server, sampling, input_ids=[9] * 30, cache_salt=salt)[0]["meta_info"][
            "cached_tokens"
        ]
        for salt in ("a", "a", "b")
    ]
    assert cached == [0, 29, 0]


def test_a_completion_has_a_choice_for_each_hypothesis_and_its_usage(server):
    body = complete(server, n=3, best_of=3, max_tokens=4, length_penalty=0.5).json()
    found = expected(BeamOptions(3, 4, (EOS,), 0.5))
    assert [choice["score"] for choice in body["choices"]] == [score for _, score in found]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["choices"][0]["text"] == "defg"
    assert body["choices"][0]["finish_reason"] == "length"
    usage = body["usage"]
    assert usage.pop("prompt_tokens_details")["cached_tokens"] <= 2
    assert usage == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
    assert (body["object"], body["model"]) == ("text_completion", "fake")


def test_one_prompt_in_a_list_is_one_prompt(server):
    sampling = {"beam_width": 2, "max_new_tokens": 2}
    assert len(search(server, [sampling], input_ids=[PROMPT])) == 2
    assert len(complete(server, prompt=["abc"], n=2).json()["choices"]) == 2


def test_null_is_not_given(server):
    nulls = {"beam_width": None, "length_penalty": None, "early_stopping": None}
    reply = search(server, nulls | {"max_new_tokens": 2})
    assert reply["output_ids"] == [67, 68], "no search"
    nulls["beam_width"] = 2
    assert len(search(server, nulls | {"max_new_tokens": 2})) == 2


def test_the_widest_beam(start_server):
    server = start_server("fake:")
    found = search(server, {"beam_width": 64, "max_new_tokens": 3})
    assert len({tuple(reply["output_ids"]) for reply in found}) == 64
    refused = server.post("/generate", text="a", sampling_params={"beam_width": 65})
    assert "from 1 to 64" in refused.json()["error"]["message"]


# --- what is refused ---

NATIVE = [
    *(
        ({"beam_width": width}, {}, "beam_width")
        for width in (0, -1, 17, 1.0, True, "4", [4], 2**70)
    ),
    *(({"beam_width": 2, "length_penalty": p}, {}, "length_penalty") for p in (11, -11, "1", True)),
    *(({"beam_width": 2, "early_stopping": s}, {}, "early_stopping") for s in ("always", 1, [])),
    ({"length_penalty": 1.0}, {}, "beam_width"),
    ({"early_stopping": True}, {}, "beam_width"),
    ({"beam_width": 2, "max_new_tokens": 0}, {}, "max_new_tokens"),
    ({"beam_width": 2, "max_new_tokens": 5000}, {}, "max_new_tokens"),
    ({"beam_width": 2, "max_new_tokens": "5"}, {}, "max_new_tokens"),
    ({"beam_width": 2, "beam_size": 2}, {}, "beam_size"),
    ({"beam_width": 2, "n": 2}, {}, "n"),
    ({"beam_width": 2, "temperature": 0.5}, {}, "temperature"),
    ({"beam_width": 2, "top_p": 0.5}, {}, "top_p"),
    ({"beam_width": 2, "top_k": 5}, {}, "top_k"),
    ({"beam_width": 2, "min_p": 0.5}, {}, "min_p"),
    ({"beam_width": 2, "stop": "x"}, {}, "stop"),
    ({"beam_width": 2, "stop_token_ids": [5]}, {}, "stop_token_ids"),
    ({"beam_width": 2, "min_new_tokens": 1}, {}, "min_new_tokens"),
    ({"beam_width": 2, "frequency_penalty": 0.5}, {}, "frequency_penalty"),
    ({"beam_width": 2, "presence_penalty": 0.5}, {}, "presence_penalty"),
    ({"beam_width": 2, "repetition_penalty": 1.5}, {}, "repetition_penalty"),
    ({"beam_width": 2, "logit_bias": {"5": 1.0}}, {}, "logit_bias"),
    ({"beam_width": 2, "sampling_seed": 5}, {}, "sampling_seed"),
    ({"beam_width": 2, "regex": "a+"}, {}, "regex"),
]
BODIES = [
    ({"stream": True}, "stream"),
    ({"return_logprob": True}, "return_logprob"),
    ({"top_logprobs_num": 2}, "top_logprobs_num"),
    ({"logprob_start_len": 0}, "logprob_start_len"),
    ({"return_text_in_logprobs": True}, "return_text_in_logprobs"),
    ({"session_params": {"id": "x"}}, "session_params"),
    ({"input_ids": [[1], [2]]}, "input_ids"),
    ({"input_ids": [5000]}, "input_ids"),
    ({"input_ids": [1] * 4096}, "input_ids"),
    ({"text": "a"}, "text"),
    ({"timeout_s": 0}, "timeout_s"),
    ({"rid": ["a", "b"]}, "rid"),
]
COMPLETIONS = [
    ({"guided_regex": "a+"}, "guided_regex"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 2, "best_of": 3}, "best_of"),
    ({"length_penalty": 11}, "length_penalty"),
    ({"length_penalty": "1"}, "length_penalty"),
    ({"use_beam_search": False, "length_penalty": 1.0}, "length_penalty"),
    ({"use_beam_search": 1}, "use_beam_search"),
    ({"early_stopping": True}, "early_stopping"),
    ({"stream": True}, "stream"),
    ({"echo": True}, "echo"),
    ({"logprobs": 0}, "logprobs"),
    ({"prompt": ["a", "b"]}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5000}, "max_tokens"),
    ({"temperature": 0.7}, "temperature"),
    ({"seed": 1}, "seed"),
    ({"min_tokens": 1}, "min_tokens"),
    ({"stop": ["x"]}, "stop"),
    ({"presence_penalty": 1.0}, "presence_penalty"),
]


def refusal(response):
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"].split(".")[-1] in error["message"]
    return error["param"]


@pytest.mark.parametrize(("sampling", "body", "param"), NATIVE)
def test_options_that_are_wrong_or_do_not_go_together(server, sampling, body, param):
    response = server.post("/generate", input_ids=PROMPT, sampling_params=sampling, **body)
    assert refusal(response) == f"sampling_params.{param}"


@pytest.mark.parametrize(("body", "param"), BODIES)
def test_bodies_that_do_not_go_together_with_a_search(server, body, param):
    body = {"input_ids": PROMPT, "sampling_params": {"beam_width": 2}} | body
    assert refusal(server.post("/generate", **body)) == param


@pytest.mark.parametrize(("body", "param"), COMPLETIONS)
def test_completions_that_are_refused(server, body, param):
    assert refusal(complete(server, **body)) == param


def test_a_search_for_each_of_two_prompts_is_refused(server):
    body = {"input_ids": [[1], [2]], "sampling_params": [{"beam_width": 2}, {"max_new_tokens": 2}]}
    assert refusal(server.post("/generate", **body)) == "input_ids"


# --- how it ends ---


def test_a_client_that_goes_away_ends_its_search(server):
    body = json.dumps({"input_ids": PROMPT, "sampling_params": LONG}).encode()
    head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(b"POST /generate HTTP/1.1\r\n" + head.encode() + body)
        wait_until_it_steps(server)
    time.sleep(0.3)
    before = steps(server)
    time.sleep(0.1)
    assert (steps(server), server.running()) == (before, 0)


@pytest.mark.parametrize("abort", [{"rid": "mine"}, {"abort_all": True}])
def test_an_aborted_search_gives_what_there_is(server, abort):
    asking = asking_for_long(server, rid="mine")
    wait_until_it_steps(server)
    in_use = server.post("/generate", text="a", rid="mine")
    assert in_use.json()["error"]["code"] == "rid_in_use"
    assert server.post("/abort_request", **abort).json()["aborted"] >= 1
    asking.join(10)
    replies = asking.response.json()
    assert len(replies) == 3
    for reply in replies:
        meta = reply["meta_info"]
        assert (meta["id"], meta["finish_reason"]["type"]) == ("mine", "abort")
        assert 0 < meta["completion_tokens"] == len(reply["output_ids"]) < 3000
    assert server.running() == 0
    assert server.post("/abort_request", rid="mine").json() == {"aborted": 0}


def test_an_abort_at_any_moment_ends_the_search(start_server):
    """Also between two steps, when the engine knows no request of it."""
    server = start_server("fake:")
    for wait_s in (0.0, 0.001, 0.002, 0.003, 0.005, 0.008):
        asking = asking_for_long(server, rid="mine")
        time.sleep(wait_s)
        wait_until(lambda: server.post("/abort_request", rid="mine").json()["aborted"])
        asking.join(0.5)
        assert asking.response.json()[0]["meta_info"]["finish_reason"]["type"] == "abort"


def test_the_time_of_a_request_is_that_of_the_whole_search(server):
    began = time.monotonic()
    best, *_ = search(server, LONG, timeout_s=0.15)
    assert 0.15 <= time.monotonic() - began < 2.0
    assert best["meta_info"]["finish_reason"]["err_type"] == "timeout"
    assert 1 < best["meta_info"]["completion_tokens"] < 3000
    ended = complete(server, max_tokens=3000, n=2, timeout_s=0.1).json()
    assert [choice["finish_reason"] for choice in ended["choices"]] == ["abort"] * 2
    assert ended["usage"]["completion_tokens"] > 2


def test_a_refused_step_ends_the_search_with_its_error(server):
    """Token 999 makes the fake engine say that its queue is full: one beam comes to it."""
    sampling = {"beam_width": 3, "max_new_tokens": 50}
    refused = server.post("/generate", input_ids=[996], sampling_params=sampling)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    wait_until(lambda: server.running() == 0, 2.0)


def test_an_engine_that_dies_in_the_middle_is_an_answer(start_server):
    server = start_server("fake:exit_at=90")
    sampling = {"beam_width": 2, "max_new_tokens": 50}
    lost = server.post("/generate", input_ids=PROMPT, sampling_params=sampling)
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "engine_lost")
    wait_until(lambda: server.client.get("/health").status_code == 200)
    assert search(server, {"beam_width": 2, "max_new_tokens": 2})


def test_a_search_is_finished_before_the_server_stops(start_server):
    server = start_server("fake:step_s=0.005")
    asking = asking_for_long(server, sampling_params=LONG | {"max_new_tokens": 100})
    wait_until_it_steps(server)
    server.process.send_signal(signal.SIGTERM)
    asking.join(20)
    assert asking.response.json()[0]["meta_info"]["completion_tokens"] == 100
    assert server.stop() == 0


def test_a_search_counts_as_its_hypotheses(server):
    def ended():
        page = server.client.get("/metrics").text
        return [
            int(line.split()[-1])
            for kind in ("length", "timeout", "abort")
            for line in page.splitlines()
            if line.startswith(f'ramify:requests_total{{finish_reason="{kind}"}}')
        ]

    before = ended()
    search(server, {"beam_width": 4, "max_new_tokens": 5})
    search(server, LONG, timeout_s=0.05)
    assert [a - b for a, b in zip(ended(), before, strict=True)] == [4, 3, 0]
