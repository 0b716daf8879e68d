"""Where an example runs, and what it cost: shared by the examples beside this file.

server()   a `ramify serve` process of our own, stopped at the end
backend()  a running server by its URL, or an engine inside this process
metered()  tokens and time of a block, from the engine's own counters
outcome()  an exit code, with one line instead of a traceback when a run fails
"""

import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramify import Engine, RuntimeEndpoint, get_server_info
from ramify.srt.errors import RamifyError

MODEL = "smollm2"
DATA = Path(__file__).parent / "data"
STOP_TIMEOUT_S = 20.0


@contextmanager
def server(*options: str, model: str = MODEL) -> Iterator[str]:
    """The URL of a server that runs for the length of the block, on a free port.

    It comes back when the model is loaded; the first start on a machine downloads it.
    Raises RuntimeError when the server cannot start.
    """
    ramify = Path(sysconfig.get_path("scripts"), "ramify")
    command = [str(ramify), "serve", model, "--port", "0", "--log-level", "warning", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _announced_url(process)
        finally:
            _stop(process)


def _announced_url(process: "subprocess.Popen[str]") -> str:
    """The URL that the server prints once it listens."""
    assert process.stdout is not None
    for line in process.stdout:
        label, _, url = line.strip().partition(" ")
        if label == "url":
            return url.strip().removesuffix("/v1")
    raise RuntimeError(f"the server ended with exit code {process.wait()} before it was ready")


def _stop(process: "subprocess.Popen[str]") -> None:
    """Ask the server to finish (SIGTERM); end it when it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


@contextmanager
def endpoint(url: str | None = None, *options: str) -> Iterator[RuntimeEndpoint]:
    """The server at `url`, or without one a server of our own, started with `options`."""
    if url is None:
        with server(*options) as own, RuntimeEndpoint(own) as connected:
            yield connected
    else:
        with RuntimeEndpoint(url) as connected:
            yield connected


@contextmanager
def backend(url: str | None = None, **options: Any) -> Iterator[RuntimeEndpoint | Engine]:
    """What programs run on: the server at `url`, or without one an engine in this process.

    `options` are the engine's (see `EngineConfig`) and have no effect on a server.
    """
    if url is not None:
        with RuntimeEndpoint(url) as connected:
            yield connected
    else:
        with Engine(MODEL, **options) as engine:
            yield engine


@dataclass
class Usage:
    """Tokens that went through an engine, and seconds. `reused` is the cached part of `prompt`."""

    prompt: int = 0
    reused: int = 0
    generated: int = 0
    seconds: float = 0.0

    @property
    def computed(self) -> int:
        """Prompt tokens that had to be computed."""
        return self.prompt - self.reused

    def __str__(self) -> str:
        share = self.reused / self.prompt if self.prompt else 0.0
        return (
            f"{self.prompt:,} prompt tokens: {self.reused:,} reused ({share:.0%}), "
            f"{self.computed:,} computed; {self.generated:,} generated; {self.seconds:.1f} s"
        )


@contextmanager
def metered(runs_on: RuntimeEndpoint | Engine) -> Iterator[Usage]:
    """What the engine does during the block; filled in at its end.

    It counts every request, also those behind `fork` and `select`, and those of others who use the
    same server at the same time.
    """
    usage, before, start = Usage(), _counters(runs_on), time.perf_counter()
    yield usage
    usage.seconds = time.perf_counter() - start
    after = _counters(runs_on)
    usage.prompt, usage.reused, usage.generated = (
        after[name] - before[name]
        for name in ("prompt_tokens", "cached_tokens", "generated_tokens")
    )


def _counters(runs_on: RuntimeEndpoint | Engine) -> dict[str, int]:
    """The engine's counters since its start."""
    counters: dict[str, int] = (get_server_info(runs_on) or {})["stats"]
    return counters


def outcome(work: Callable[[], None]) -> int:
    """0 when `work` succeeds, else 1 and one line on standard error."""
    try:
        work()
    except (RuntimeError, RamifyError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    return 0
