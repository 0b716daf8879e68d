"""What happens when a client, the engine or the server goes away."""

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment
from waiting import Asking, wait_until

LONG = {"text": "a", "sampling_params": {"max_new_tokens": 4000}}
HERE = Path(__file__).parent


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("text", ["a", ["a", "b", "c"]])
def test_a_client_that_goes_away_frees_its_requests(server, stream, text):
    """Not at the next write, which a long prefill would delay, but at once."""
    body = json.dumps(LONG | {"stream": stream, "text": text}).encode()
    head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(b"POST /generate HTTP/1.1\r\n" + head.encode() + body)
        wait_until(lambda: server.running() == (1 if text == "a" else 3))
    wait_until(lambda: server.running() == 0, 2.0)


def test_a_stream_whose_reader_stops_half_way_is_freed(server):
    with server.client.stream("POST", "/generate", json=LONG | {"stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert server_running_elsewhere(server) == 1
    wait_until(lambda: server.running() == 0, 2.0)


def server_running_elsewhere(server):
    info = httpx.get(f"{server.url}/server_info").json()
    return info["internal_states"][0]["running"]


def test_one_refused_prompt_of_a_batch_ends_the_others(server):
    """Token 999 makes the fake engine say that its queue is full."""
    body = {"input_ids": [[5], [999]], "sampling_params": {"max_new_tokens": 4000}}
    refused = server.post("/generate", **body)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "overloaded_error"
    wait_until(lambda: server.running() == 0, 2.0)


def test_an_engine_that_dies_is_an_answer_and_comes_back(start_server):
    server = start_server("fake:step_s=0.002,exit_at=999,load_s=0.7")
    waiting = Asking(server.url, **LONG)
    wait_until(lambda: server.running() == 1)
    with server.client.stream("POST", "/generate", json=LONG | {"stream": True}) as stream:
        lines = stream.iter_lines()
        next(lines)
        Asking(server.url, input_ids=[999])
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "engine_lost"
    waiting.join()
    assert waiting.response.status_code == 503
    assert waiting.response.headers["retry-after"]
    down = server.client.get("/health")
    assert (down.status_code, down.headers["retry-after"]) == (503, "2")
    assert server.post("/generate", text="a").status_code == 503
    assert server.client.get("/server_info").status_code == 503
    assert server.client.get("/v1/models").status_code == 200
    wait_until(lambda: server.client.get("/health").status_code == 200)
    assert server.post("/generate", text="a", sampling_params={"max_new_tokens": 1}).is_success


def test_what_runs_is_finished_before_the_server_stops(start_server):
    server = start_server("fake:step_s=0.005")
    first = server.lines
    assert first[0].startswith("ramify ")
    assert "fake" in first[0]
    assert [line.split()[0] for line in first[1:]] == ["url", "ready", "memory", "KV"]
    waiting = Asking(server.url, text="a", sampling_params={"max_new_tokens": 300})
    wait_until(lambda: server.running() == 1)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refuses(server.url))
    waiting.join()
    assert waiting.response.json()["meta_info"]["completion_tokens"] == 300
    assert server.stop() == 0


def refuses(url):
    try:
        httpx.get(f"{url}/health")
    except httpx.TransportError:  # refused, or closed before it was taken
        return True
    return False


def test_draining_has_an_end(start_server):
    server = start_server("fake:step_s=0.05", "drain_timeout_s=1.0")
    waiting = Asking(server.url, **LONG)
    wait_until(lambda: server.running() == 1)
    started = time.monotonic()
    assert server.stop() == 0
    waiting.join()
    assert time.monotonic() - started < 6


@contextmanager
def start_process(folder, model):
    """A server that may never get ready."""
    script = [sys.executable, str(HERE / "http_fakes.py"), model, str(folder)]
    with subprocess.Popen(script, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_server_can_be_stopped_while_it_loads(tokenizer_folder):
    with start_process(tokenizer_folder, "fake:load_s=3") as process:
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_model_that_cannot_be_used_ends_the_server(tokenizer_folder):
    """In the words of the engine process, and without a trace."""
    with start_process(tokenizer_folder, "fake:unusable=1") as process:
        assert process.communicate(timeout=20)[1].count("ends in the middle of a tensor") == 1
        assert process.returncode == 1
