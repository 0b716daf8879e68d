"""Waiting for what another thread or process does."""

import threading
import time
from pathlib import Path

import httpx


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def is_alive(pid):
    """Whether there is such a process, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


class Asking(threading.Thread):
    """Posts a request on a thread; `response` is there after `join`."""

    def __init__(self, url, **body):
        super().__init__()
        self._url, self._body = url, body
        self.response = None
        self.start()

    def run(self):
        self.response = httpx.post(f"{self._url}/generate", json=self._body, timeout=30)
