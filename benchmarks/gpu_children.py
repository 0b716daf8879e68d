"""Processes that measure or test: each with limits, none able to stop the others.

A child that dies in a case, or is silent for too long, is started again and goes on with the case
after it. What it was at is told as an outcome of its own, so nothing goes missing in silence.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import gpu_lines

POLL_S = 0.1
Line = dict[str, Any]


@dataclass
class Child:
    """A command that appends to `path` what it does; `silent_s`: longest wait for its next line."""

    name: str
    command: Sequence[str]
    path: Path
    silent_s: float
    env: Mapping[str, str] = field(default_factory=dict)
    over: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _read: int = 0
    _heard: float = 0.0
    _current: str | None = None  # what has begun and not ended
    _idle: bool = True  # nothing has begun since it was started

    @property
    def at(self) -> str:
        """What it is doing: a case, or as yet only the command."""
        return self._current or self.name

    def start(self, log: IO[bytes]) -> None:
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **self.env}
        # a group, so that compilers which it has started end with it
        self._process = subprocess.Popen(
            self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, process_group=0
        )
        self._heard, self._idle, self._current = time.monotonic(), True, None

    def step(self, log: IO[bytes]) -> list[Line]:
        """New lines; starts the command, and starts it again, as long as there is more to do."""
        if self._process is None:
            self.start(log)
        code = self._process.poll()  # before reading: what it wrote last is read below
        lines = self._hear()
        if any("finished" in line for line in lines):
            self.stop()
            self.over = True
        elif code is not None:
            lines += self._ended(f"died with exit code {code}")
        elif time.monotonic() - self._heard > self.silent_s:
            self.stop()
            lines += self._ended(f"stopped after {self.silent_s:.0f} s")
        return lines

    def _hear(self) -> list[Line]:
        lines, self._read = gpu_lines.read(self.path, self._read)
        for line in lines:
            self._heard = time.monotonic()
            if "begin" in line:
                self._current, self._idle = line["begin"], False
            if "end" in line:
                self._current = None
        return lines

    def _ended(self, why: str) -> list[Line]:
        """What is said of a process that did not finish; it is started again if it did begin."""
        self._process = None
        self.over = self._idle
        if self._current is not None:
            return [{"end": self._current, "outcome": "failed", "words": why}]
        return [{"end": self.name, "outcome": "failed", "words": why}] if self._idle else []

    def stop(self) -> None:
        """End the process and all that it has started."""
        if self._process is not None:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self._process.pid, sign)
                    self._process.wait(5)
                    break
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
            self._process = None


def watch(
    children: Sequence[Child],
    seconds: float,
    at_once: int,
    hear: Callable[[Child, Line], None],
    log: IO[bytes],
) -> list[Child]:
    """Run children, some at once. Returns those that were not over in time."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            for child in [child for child in children if not child.over][:at_once]:
                for line in child.step(log):
                    hear(child, line)
            if all(child.over for child in children):
                return []
            time.sleep(POLL_S)
        return [child for child in children if not child.over]
    finally:
        for child in children:
            child.stop()
