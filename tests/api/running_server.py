"""A real server process in which only the model is fake."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx

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
