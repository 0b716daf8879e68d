"""Real servers for the HTTP tests: a process with real sockets and a real engine process behind it,
in which only the model is fake."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment

HERE = Path(__file__).parent


class RunningServer:
    """A server process. `start_lines` is what it printed when it was ready."""

    def __init__(self, folder: Path, model: str, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "http_fakes.py"), model, str(folder), *options],
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        assert self.process.stdout is not None
        self.start_lines = [self.process.stdout.readline() for _ in range(5)]
        found = re.search(r"http://\S+(?=/v1)", self.start_lines[1])
        assert found, self.start_lines
        self.url = found[0]
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def stop(self) -> int:
        """Tell it to stop. Returns its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.client.post(path, json=body)

    def running(self) -> int:
        """How many requests the engine has now."""
        return int(self.client.get("/server_info").json()["internal_states"][0]["running"])


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
def start_server(tokenizer_folder: Path) -> Iterator[Callable[..., RunningServer]]:
    """Start a server of the test's own: start_server(model, *options)."""
    started: list[RunningServer] = []

    def start(model: str, *options: str) -> RunningServer:
        started.append(RunningServer(tokenizer_folder, model, *options))
        return started[-1]

    yield start
    for running in started:
        running.stop()
