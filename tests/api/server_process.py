"""Server processes: the command as users start it, and what all of them have."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

RAMIFY = Path(sys.executable).with_name("ramify")


class ServerProcess:
    """A process that serves on a free port, the lines it printed when it was ready, a client."""

    def __init__(self, command, env=None, timeout_s=30):
        self.began_s = time.monotonic()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, env=env, text=True, start_new_session=True
        )
        self.lines = [self.process.stdout.readline() for _ in range(5)]
        self.ready_s = time.monotonic() - self.began_s
        found = re.search(r"http://\S+(?=/v1)", self.lines[1])
        assert found, self.lines
        self.url = found[0]
        self.client = httpx.Client(base_url=self.url, timeout=timeout_s)

    def post(self, path, **body):
        return self.client.post(path, json=body)

    def kill(self):
        """End the frontend and the engine at once, without a word."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self._over()

    def stop(self):
        """SIGTERM. Returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self._over()

    def _over(self):
        self.client.close()
        self.process.wait()
        self.process.stdout.close()


class Server(ServerProcess):
    """`ramify serve` with a real model."""

    def __init__(self, model, *options):
        command = [RAMIFY, "serve", model, "--port", "0", "--log-level", "warning", *options]
        super().__init__(command, timeout_s=120)
        self.client.headers["content-type"] = "application/json"

    def generate(self, **body):
        return self.post("/generate", **body)

    def stats(self):
        info = self.client.get("/server_info").json()
        assert info["violations"] == []
        return info["stats"]
