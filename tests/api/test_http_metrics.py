"""`/metrics` over real sockets: a page that is exactly right, and numbers that move."""

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import prometheus
from waiting import wait_until


def scrape(server) -> dict[prometheus.Series, float]:
    response = server.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return prometheus.read(response.text)


def moved(server, act) -> dict[str, float]:
    """Which counters `act` has moved, and by how much."""
    before = scrape(server)
    act()
    after = scrape(server)
    assert before.keys() == after.keys(), "nothing a client sends makes a new series"
    return {
        "/".join((name.removeprefix("ramify:"), *(value for _, value in labels))): after[key] - old
        for key, old in before.items()
        for name, labels in [key]
        if not name.endswith(("_bucket", "_sum")) and after[key] != old
    }


def test_a_reply_is_counted_and_measured(server):
    def act():
        server.post("/generate", text=["a", "b"], sampling_params={"max_new_tokens": 3})

    assert moved(server, act) == {
        "requests_total/length": 2,
        "cache_misses_total/never seen": 2,
        "time_to_first_token_seconds_count": 2,
        "inter_token_latency_seconds_count": 4,
        "e2e_request_latency_seconds_count": 2,
        "queue_time_seconds_count": 2,
    }


@pytest.mark.parametrize(
    ("path", "body", "moves"),
    [
        ("/generate", {"text": "a", "sampling_params": {"stop": "c"}}, {"requests_total/stop": 1}),
        ("/generate", {"text": 5}, {"request_errors_total/invalid_request": 1}),
        ("/generate", {"text": "a" * 5000}, {"request_errors_total/invalid_request": 1}),
        ("/generate", {"input_ids": [999]}, {"request_errors_total/queue_full": 1}),
        (
            "/generate",
            {"input_ids": [999], "stream": True},
            {"request_errors_total/queue_full": 1},
        ),
        (
            "/v1/completions",
            {"model": "fake", "prompt": "a", "max_tokens": 3000, "timeout_s": 0.02},
            {"requests_total/timeout": 1},
        ),
        ("/v1/completions", {"model": "x\n"}, {"request_errors_total/invalid_request": 1}),
        ("/v1/chat/completions", {}, {"request_errors_total/invalid_request": 1}),
        ("/cache/pin", {"text": 5}, {}),
        ("/nothing", {}, {}),
    ],
)
def test_every_end_has_its_counter(server, path, body, moves):
    found = moved(server, lambda: server.post(path, **body))
    assert {name: by for name, by in found.items() if name.startswith("request")} == moves


def test_a_client_that_leaves_a_stream_is_an_abort_and_no_error(server):
    def act():
        body = {"text": "a", "stream": True, "sampling_params": {"max_new_tokens": 3000}}
        with server.client.stream("POST", "/generate", json=body) as response:
            next(response.iter_lines())
        wait_until(lambda: server.running() == 0)

    found = moved(server, act)
    assert {name: by for name, by in found.items() if name.startswith("request")} == {
        "requests_total/abort": 1
    }


def test_gauges_tell_of_now(server):
    body = {"text": "a", "stream": True, "sampling_params": {"max_new_tokens": 3000}}
    with server.client.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()  # held: a reader that is forgotten closes the stream
        next(lines)
        assert scrape(server)["ramify:running_requests", ()] == 1
    wait_until(lambda: server.running() == 0)
    page = scrape(server)
    assert page["ramify:running_requests", ()] == 0
    assert page["ramify:engine_up", ()] == 1


def test_the_page_is_there_while_the_engine_is_not(start_server):
    server = start_server("fake:load_s=1")
    (pid,) = children(server.process.pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.client.get("/health").status_code == 503)
    page = scrape(server)
    assert page["ramify:engine_up", ()] == 0
    assert ("ramify:running_requests", ()) not in page
    assert ("ramify:requests_total", (("finish_reason", "stop"),)) in page
    wait_until(lambda: scrape(server)["ramify:engine_up", ()] == 1)


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found
