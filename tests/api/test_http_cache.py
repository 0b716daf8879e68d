"""The routes of the cache over real sockets: pins, and a tree that hides or shows its contents."""

import json

import pytest
from server_process import Server


@pytest.fixture(autouse=True)
def _nothing_is_pinned(stays_alive, server):
    """Whatever a test sends."""
    yield
    assert server.client.get("/cache/tree").json()["nodes"] == []


def error_of(response, status=400):
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_a_prefix_is_pinned_until_it_is_unpinned(server):
    assert server.post("/cache/pin", text="abc", ttl_s=60).json() == {"pinned_tokens": 3}
    assert server.post("/cache/unpin", text="ab").json() == {"unpinned_tokens": 0}
    assert server.post("/cache/unpin", input_ids=[64, 65, 66]).json() == {"unpinned_tokens": 3}
    assert server.post("/cache/unpin", text="abc").json() == {"unpinned_tokens": 0}


def test_a_long_text_is_pinned_as_well(server):
    """It is tokenised beside the event loop; its errors still name the client's field."""
    body = {"text": "a" * 21_000, "ttl_s": 1}
    error = error_of(server.post("/cache/pin", **body))
    assert (error["param"], error["code"]) == ("text", "context_length_exceeded")


def test_a_pin_belongs_to_its_namespace(server):
    keys = {"cache_salt": "mine", "extra_key": "k"}
    assert server.post("/cache/pin", text="abc", ttl_s=0.5, **keys).is_success
    assert server.post("/cache/unpin", text="abc").json() == {"unpinned_tokens": 0}
    assert server.post("/cache/unpin", text="abc", **keys).json() == {"unpinned_tokens": 3}


def test_what_the_engine_refuses_is_told_in_its_words(server):
    error = error_of(server.post("/cache/pin", input_ids=[1, 999], ttl_s=60))
    assert error["message"] == "pins may hold no more of the cache"
    assert (error["type"], error["code"]) == ("invalid_request_error", "pin_refused")


PREFIXES = [
    ({}, "text"),
    ({"text": "a", "input_ids": [1]}, "text"),
    ({"text": ""}, "text"),
    ({"text": 5}, "text"),
    ({"text": ["a"]}, "text"),
    ({"text": "a\0b"}, "text"),
    ({"text": "a" * 4096}, "text"),
    ({"input_ids": []}, "input_ids"),
    ({"input_ids": [[1]]}, "input_ids"),
    ({"input_ids": [1.0]}, "input_ids"),
    ({"input_ids": [True]}, "input_ids"),
    ({"input_ids": [-1]}, "input_ids"),
    ({"input_ids": [1024]}, "input_ids"),
    ({"input_ids": [2**64]}, "input_ids"),
    ({"input_ids": [1] * 4096}, "input_ids"),
    ({"input_ids": "abc"}, "input_ids"),
    ({"text": "a", "cache_salt": 5}, "cache_salt"),
    ({"text": "a", "cache_salt": "x" * 257}, "cache_salt"),
    ({"text": "a", "cache_salt": "x" * 200, "extra_key": "y" * 100}, "cache_salt"),
    ({"text": "a", "namespace": "x"}, "namespace"),
    ({"text": "a", "n": 1}, "n"),
]
PINS = [
    *((body | {"ttl_s": 60}, param) for body, param in PREFIXES),
    ({"text": "a"}, "ttl_s"),
    *(
        ({"text": "a", "ttl_s": ttl_s}, "ttl_s")
        for ttl_s in (None, 0, -1, -0.0, 86_401, 1e308, 10**400, "60", True, [60])
    ),
]
CASES = [("/cache/pin", *case) for case in PINS] + [("/cache/unpin", *case) for case in PREFIXES]


@pytest.mark.parametrize(
    ("path", "body", "param"), [*CASES, ("/cache/unpin", PINS[-1][0], "ttl_s")]
)
def test_bodies_that_are_wrong(server, path, body, param):
    error = error_of(server.post(path, **body))
    assert error["param"] == param, error


@pytest.mark.parametrize("path", ["/cache/pin", "/cache/unpin"])
@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b'{"text": "a", "ttl_s": NaN}', b'{"text": "a", "text": "a"}', b"\xff"],
)
def test_bodies_that_are_not_strict_json(server, path, raw):
    headers = {"Content-Type": "application/json"}
    error = error_of(server.client.post(path, content=raw, headers=headers))
    assert error["code"] == "invalid_json"


def test_the_tree_shows_the_latest_nodes_and_how_many_there_are(server):
    for text in ("abc", "abcdef"):
        server.post("/cache/pin", text=text, ttl_s=60)
    both = server.client.get("/cache/tree").json()
    one = server.client.get("/cache/tree", params={"limit": 1}).json()
    for text in ("abc", "abcdef"):
        server.post("/cache/unpin", text=text)
    assert both["total_nodes"] == one["total_nodes"] == 2
    assert both["nodes"][:1] == one["nodes"]
    assert one["nodes"] == [
        {
            "number": 1,
            "parent": 0,
            "namespace": 0,
            "start": 0,
            "tokens": 6,
            "pages": 1,
            "hits": 7,
            "locks": 0,
            "pins": 1,
            "idle": 1,
        }
    ]


def test_the_tree_tells_neither_what_others_wrote_nor_their_keys(server):
    """Who knows a salt could find out by timing what is cached under it."""
    for salt in ("secret-salt", "other-salt"):
        server.post("/cache/pin", input_ids=[777, 778], ttl_s=60, cache_salt=salt)
    shown = server.client.get("/cache/tree")
    for salt in ("secret-salt", "other-salt"):
        server.post("/cache/unpin", input_ids=[777, 778], cache_salt=salt)
    assert [node["namespace"] for node in shown.json()["nodes"]] == [1, 2]
    assert not any(secret in shown.text for secret in ("777", "778", "secret", "other", "salt"))


def test_a_preview_shows_the_first_text_of_each_node_and_its_namespace(start_server):
    """Short, and safe to print: control characters come escaped."""
    server = start_server("fake:", "cache_preview=true")
    server.post("/cache/pin", text='a"b\n\x1b[2J', ttl_s=60, cache_salt="mine")
    server.post("/cache/pin", text="x" * 200, ttl_s=60)
    server.post("/cache/pin", input_ids=[300] * 200, ttl_s=60)
    shown = server.client.get("/cache/tree")
    nodes = [(node["text"], node["namespace"]) for node in shown.json()["nodes"]]
    assert nodes[1:] == [("x" * 64, ""), ('a"b\n\x1b[2J', "0:mine")]
    assert nodes[0][0] == ("word300" * 10)[:64], "the name of a token is long"
    assert "\x1b" not in shown.text
    assert "\n" not in shown.text


@pytest.fixture(scope="module")
def open_server():
    """The real command with the real model, whose operator shows contents."""
    options = ["--threads", "1", "--max-total-tokens", "1024", "--cache-preview"]
    server = Server("smollm2", *options)
    yield server
    assert server.stop() == 0


@pytest.mark.model
def test_with_the_preview_the_real_server_shows_texts_and_what_namespaces_hold(open_server):
    prompt = "The quick brown fox jumps over the lazy dog, and then it sleeps until the next day."
    metas = []
    for salt in ("mine", "other"):
        body = {"text": prompt, "sampling_params": {"max_new_tokens": 0}, "cache_salt": salt}
        metas.append(open_server.generate(**body).json()["meta_info"])
    assert [meta["cache_miss_reason"] for meta in metas] == ["never seen", "namespace"]
    details = {"device": 0, "host": 0, "disk": 0}
    assert [meta["cached_tokens_details"] for meta in metas] == [details, details]
    nodes = open_server.client.get("/cache/tree").json()["nodes"]
    assert [node["namespace"] for node in nodes] == ["0:other", "0:mine"]
    for node in nodes:
        assert len(node["text"]) in range(20, 65)
        assert prompt.startswith(node["text"])


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=nan", "limit"),
        ("limit=1.5", "limit"),
        ("limit=", "limit"),
        (f"limit={'9' * 5000}", "limit"),
        ("token_ids=true", "token_ids"),
        ("x%00=1", "x\0"),
    ],
)
def test_queries_that_are_wrong(server, query, param):
    error = error_of(server.client.get(f"/cache/tree?{query}"))
    assert error["param"] == param
    assert json.dumps(error)


def test_methods_that_the_routes_do_not_take(server):
    assert server.client.get("/cache/pin").status_code == 405
    assert server.client.post("/cache/tree").status_code == 405
