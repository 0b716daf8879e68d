"""A real server process for the tests of this folder."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

RAMIFY = Path(sys.executable).with_name("ramify")


class Server:
    """A `ramify serve` process on a free port, its first lines, and a client."""

    def __init__(self, model, *options):
        command = [RAMIFY, "serve", model, "--port", "0", "--log-level", "warning", *options]
        self.began_s = time.monotonic()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines = [self.process.stdout.readline() for _ in range(5)]
        self.ready_s = time.monotonic() - self.began_s
        self.url = re.search(r"http://\S+", self.lines[1]).group().removesuffix("/v1")
        is_json = {"content-type": "application/json"}
        self.client = httpx.Client(base_url=self.url, timeout=120, headers=is_json)

    def generate(self, **body):
        return self.client.post("/generate", json=body)

    def stats(self):
        info = self.client.get("/server_info").json()
        assert info["violations"] == []
        return info["stats"]

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
