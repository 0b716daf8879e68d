"""Real servers for the HTTP tests: a process with real sockets and a real engine process behind it,
in which only the model is fake."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from running_server import RunningServer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from http_fakes import write_tokenizer

    folder = tmp_path_factory.mktemp("fake-model")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def server(tokenizer_folder: Path) -> Iterator[RunningServer]:
    """One server for all tests that leave it as they found it. A step takes 2 ms."""
    running = RunningServer(
        tokenizer_folder, "fake:step_s=0.002,reject_at=999", "max_body_mb=1", "max_batch=16"
    )
    yield running
    assert running.stop() == 0


@pytest.fixture
def stays_alive(server: RunningServer) -> Iterator[None]:
    """Whatever the test sends, the server answers the next request and nothing is left running."""
    yield
    reply = server.post("/generate", text="a", sampling_params={"max_new_tokens": 1})
    assert reply.json()["text"] == "b"
    assert server.running() == 0


@pytest.fixture
def start_server(tokenizer_folder: Path) -> Iterator[Callable[..., RunningServer]]:
    """Start a server of the test's own: start_server(model, *options)."""
    started: list[RunningServer] = []

    def start(model: str, *options: str) -> RunningServer:
        started.append(RunningServer(tokenizer_folder, model, *options))
        return started[-1]

    yield start
    for running in started:
        running.stop()
