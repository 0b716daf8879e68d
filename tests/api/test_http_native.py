"""The native routes over real sockets: replies, streams, names, and the engine's own routes."""

import itertools
import json
import threading

import httpx
import pytest
from waiting import wait_until


def events(response: httpx.Response) -> list:
    """The values of a stream, which must end with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def generate(server, **body):
    return server.post("/generate", **body)


def test_a_text_is_continued(server):
    reply = generate(server, text="abc", sampling_params={"max_new_tokens": 4}).json()
    meta = reply["meta_info"]
    assert reply["text"] == "defg"
    assert reply["output_ids"] == [67, 68, 69, 70]
    assert meta["finish_reason"] == {"type": "length", "length": 4}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (3, 4)


def test_ids_and_put_are_taken_as_well(server):
    body = {"input_ids": [64, 65, 66], "sampling_params": {"max_new_tokens": 2}}
    assert server.client.put("/generate", json=body).json()["output_ids"] == [67, 68]


def test_a_stop_string_ends_and_is_cut(server):
    params = {"max_new_tokens": 500, "stop": ["fg"]}
    reply = generate(server, text="abc", sampling_params=params).json()
    assert reply["text"] == "de"
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": "fg"}


def test_a_batch_times_n_is_one_flat_list(server):
    params = {"max_new_tokens": 1, "n": 2}
    replies = generate(server, text=["a", "m"], sampling_params=params).json()
    assert [reply["text"] for reply in replies] == ["b", "b", "n", "n"]


def test_a_batch_of_one_is_a_list_and_params_may_differ(server):
    assert isinstance(generate(server, text=["a"]).json(), list)
    params = [{"max_new_tokens": 1}, {"max_new_tokens": 2}]
    replies = generate(server, text=["a", "m"], sampling_params=params).json()
    assert [reply["text"] for reply in replies] == ["b", "no"]


def test_a_stream_is_cumulative(server):
    params = {"max_new_tokens": 5}
    chunks = events(generate(server, text="abc", stream=True, sampling_params=params))
    texts = [chunk["text"] for chunk in chunks]
    assert texts[-1] == "defgh"
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    reasons = [chunk["meta_info"]["finish_reason"] for chunk in chunks]
    assert reasons[-1]["type"] == "length"
    assert not any(reasons[:-1])


def test_a_batch_streams_with_the_index_of_each(server):
    params = {"max_new_tokens": 3}
    chunks = events(generate(server, text=["a", "m"], stream=True, sampling_params=params))
    last = {chunk["index"]: chunk["text"] for chunk in chunks}
    assert last == {0: "bcd", 1: "nop"}


def test_logprobs_come_with_texts_when_asked_for(server):
    meta = generate(
        server,
        text="ab",
        sampling_params={"max_new_tokens": 1},
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=1,
        return_text_in_logprobs=True,
    ).json()["meta_info"]
    assert meta["input_token_logprobs"] == [[None, 64, "a"], [-1.0, 65, "b"]]
    assert meta["output_token_logprobs"] == [[-0.5, 66, "c"]]
    assert meta["output_top_logprobs"] == [[[-0.5, 66, "c"]]]


def test_only_requests_of_one_namespace_share(server):
    server.client.post("/flush_cache")

    def cached(**keys):
        meta = generate(server, text="x" * 50, sampling_params={"max_new_tokens": 1}, **keys)
        return meta.json()["meta_info"]["cached_tokens"]

    assert [cached(), cached()] == [0, 49]
    assert [cached(cache_salt="s"), cached(cache_salt="s")] == [0, 49]
    assert [cached(extra_key="s"), cached(extra_key="a", cache_salt="b")] == [0, 0]
    assert cached(extra_key="ab") == 0


def test_a_reply_says_what_was_computed_and_why(server):
    server.client.post("/flush_cache")
    params = {"max_new_tokens": 1}
    meta = generate(server, text="y" * 30, sampling_params=params).json()["meta_info"]
    assert (meta["cached_tokens"], meta["computed_tokens"]) == (0, 30)
    assert meta["cache_miss_reason"] == "never seen"
    params = {"max_new_tokens": 9}
    chunks = events(generate(server, text="y" * 30, stream=True, sampling_params=params))
    metas = [chunk["meta_info"] for chunk in chunks]
    assert {meta["computed_tokens"] for meta in metas} == {1}
    assert metas[0]["cache_miss_reason"] is None, "told at the end"


def test_a_request_ends_when_its_time_is_over(server):
    params = {"max_new_tokens": 3000}
    reply = generate(server, text="a", sampling_params=params, timeout_s=0.05).json()
    assert 0 < reply["meta_info"]["completion_tokens"] < 3000
    assert reply["meta_info"]["finish_reason"]["err_type"] == "timeout"
    completion = {"model": "fake", "prompt": "a", "max_tokens": 3000, "timeout_s": 0.05}
    (choice,) = server.post("/v1/completions", **completion).json()["choices"]
    assert choice["finish_reason"] == "abort"


def test_requests_are_known_by_the_names_of_their_client(server):
    params = {"max_new_tokens": 1}
    assert generate(server, text="a", rid="mine").json()["meta_info"]["id"] == "mine"
    batch = generate(server, text=["a", "b"], rid="mine", sampling_params=params).json()
    assert [reply["meta_info"]["id"] for reply in batch] == ["mine_0", "mine_1"]
    listed = generate(server, text=["a", "b"], rid=["x", "y"], sampling_params=params).json()
    assert [reply["meta_info"]["id"] for reply in listed] == ["x", "y"]


@pytest.mark.parametrize("abort", [{"rid": "long"}, {"rid": "long_1"}, {"abort_all": True}])
def test_abort_ends_a_request_by_its_name(server, abort):
    replies = []

    def ask():
        params = {"max_new_tokens": 3000, "n": 2}
        replies.extend(generate(server, text="a", rid="long", sampling_params=params).json())

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: server.running() == 2)
    twice = generate(server, text="a", rid="long")
    assert twice.status_code == 400
    assert twice.json()["error"]["param"] == "rid"
    aborted = server.post("/abort_request", **abort).json()["aborted"]
    server.post("/abort_request", abort_all=True)
    thread.join(10)
    assert aborted == (1 if abort == {"rid": "long_1"} else 2)
    assert [reply["meta_info"]["finish_reason"]["type"] for reply in replies] == ["abort", "abort"]


def test_aborting_what_is_not_there_is_no_error(server):
    assert server.post("/abort_request", rid="nobody").json() == {"aborted": 0}


def test_flush_is_refused_while_requests_run(server):
    with server.client.stream(
        "POST",
        "/generate",
        json={"text": "a", "stream": True, "sampling_params": {"max_new_tokens": 3000}},
    ) as response:
        lines = response.iter_lines()
        next(lines)
        refused = httpx.post(f"{server.url}/flush_cache")
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "engine_busy"
    assert server.client.get("/flush_cache", params={"timeout": 10}).json() == {"flushed": True}


def test_the_engine_tells_of_itself(server):
    assert server.client.get("/health").status_code == 200
    assert server.client.get("/health_generate").status_code == 200
    info = server.client.get("/get_model_info").json()
    assert info == server.client.get("/model_info").json()
    assert info["served_model_name"] == "fake"
    assert info["is_generation"] is True
    state = server.client.get("/get_server_info").json()
    assert state["max_batch"] == 16
    assert state["page_size"] == 16
    assert state["violations"] == []
    assert state["version"]
