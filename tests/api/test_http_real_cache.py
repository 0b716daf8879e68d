"""The cache as its users see it: the real server, engine, scheduler and cache, and a tiny model
with random weights."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import prometheus
from server_process import Server

OPTIONS = ["--threads", "1", "--max-total-tokens", "1024", "--dtype", "float32"]
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KEPT = list(range(5, 105))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    config = tmp_path_factory.mktemp("tiny") / "tiny.json"
    config.write_text(json.dumps(TINY))
    server = Server(f"dummy:{config}", *OPTIONS)
    yield server.client
    assert server.stop() == 0


@pytest.fixture(autouse=True)
def _sound(client):
    """Each test starts with an empty cache, and leaves one whose invariants hold."""
    assert client.post("/flush_cache", params={"timeout": 10}).is_success
    yield
    assert client.get("/server_info").json()["violations"] == []


def compute(client, ids, **fields):
    body = {"input_ids": ids, "sampling_params": {"max_new_tokens": 0}} | fields
    reply = client.post("/generate", json=body)
    assert reply.is_success, reply.text
    return reply.json()["meta_info"]


def churn(client):
    """Fill the cache twice over with other prompts."""
    for i in range(20):
        compute(client, [200 + i, *range(300, 400)])


def test_a_pinned_prefix_survives_what_evicts_all_others(client):
    compute(client, KEPT)
    pinned = client.post("/cache/pin", json={"input_ids": KEPT, "ttl_s": 600})
    assert pinned.json() == {"pinned_tokens": 100}
    churn(client)
    meta = compute(client, [*KEPT, 7])
    assert (meta["cached_tokens"], meta["computed_tokens"]) == (100, 1)
    assert meta["cache_miss_reason"] is None
    unpinned = client.post("/cache/unpin", json={"input_ids": KEPT})
    assert unpinned.json() == {"unpinned_tokens": 100}
    churn(client)
    meta = compute(client, [*KEPT, 7])
    assert (meta["cached_tokens"], meta["cache_miss_reason"]) == (0, "evicted")


def test_what_is_not_computed_or_too_much_is_not_pinned(client):
    for ids in (KEPT, list(range(1, 400))):
        refused = client.post("/cache/pin", json={"input_ids": ids, "ttl_s": 1})
        assert refused.status_code == 400
        assert "computed" in refused.json()["error"]["message"]
        compute(client, ids)
    refused = client.post("/cache/pin", json={"input_ids": list(range(1, 400)), "ttl_s": 1})
    assert refused.status_code == 400
    assert "pages" in refused.json()["error"]["message"]


def test_a_client_does_not_learn_what_another_namespace_holds(client):
    """The pages tell operators; a reply and a pin say the same as for what nobody has sent."""
    compute(client, KEPT, cache_salt="mine")
    other = compute(client, KEPT, cache_salt="other")
    assert (other["cached_tokens"], other["cache_miss_reason"]) == (0, "never seen")
    pin = {"ttl_s": 1, "cache_salt": "third"}
    known = client.post("/cache/pin", json={"input_ids": KEPT, **pin})
    unknown = client.post("/cache/pin", json={"input_ids": [500, 501], **pin})
    assert known.status_code == unknown.status_code == 400
    assert known.text == unknown.text


def test_the_tree_shows_what_is_shared_and_used(client):
    compute(client, KEPT + [7] * 10)
    compute(client, KEPT + [8] * 10)
    client.post("/cache/pin", json={"input_ids": KEPT, "ttl_s": 600})
    tree = client.get("/cache/tree").json()
    assert tree["total_nodes"] == len(tree["nodes"]) == 3
    (trunk,) = [node for node in tree["nodes"] if node["parent"] == 0]
    assert (trunk["tokens"], trunk["pins"], trunk["start"]) == (100, 1, 0)
    leaves = [node for node in tree["nodes"] if node["parent"] == trunk["number"]]
    assert [leaf["tokens"] for leaf in leaves] == [10, 10]
    assert [leaf["pins"] for leaf in leaves] == [0, 0]
    assert leaves[0]["idle"] <= leaves[1]["idle"], "the latest first"


def test_a_request_out_of_time_ends_with_what_there_is(client):
    sampling = {"max_new_tokens": 400, "ignore_eos": True}
    body = {"input_ids": KEPT, "sampling_params": sampling, "timeout_s": 0.02}
    reply = client.post("/generate", json=body).json()
    assert len(reply["output_ids"]) < 400
    assert reply["meta_info"]["finish_reason"]["err_type"] == "timeout"


def test_the_counters_add_up(client):
    def page():
        return prometheus.read(client.get("/metrics").text)

    before = page()
    compute(client, KEPT)
    compute(client, [*KEPT, 7], program_id="p", priority=5)
    after = page()

    def by(name, *labels):
        return after[f"ramify:{name}", labels] - before[f"ramify:{name}", labels]

    assert by("prompt_tokens_total", ("source", "computed")) == 101
    assert by("prompt_tokens_total", ("source", "cached")) == 100
    assert by("cache_misses_total", ("reason", "never seen")) == 1
    assert by("requests_total", ("finish_reason", "length")) == 2
    assert after["ramify:cached_tokens_held", ()] == 101
    states = [after["ramify:kv_pages", (("state", s),)] for s in ("free", "evictable", "in_use")]
    assert sum(states) == 64
    assert states[2] == 0
