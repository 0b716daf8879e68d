"""`ramify chat`: a conversation in the terminal, with a model in this process or with a server.

The whole conversation is sent every turn. That it costs only the new words is the point of the
runtime; the line after every answer shows it.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any, Protocol, cast

import httpx

from ramify.frontend_api.keys import ENVIRONMENT
from ramify.frontend_api.options import given, sampling_given, take
from ramify.srt.config import EngineConfig, check_engine
from ramify.srt.errors import ConfigError, RamifyError, RequestError

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it"
CONNECT_TIMEOUT_S = 10.0
OPENAI_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "sampling_seed": "seed",
}

Messages = list[dict[str, str]]


class Partner(Protocol):
    """Whoever answers. `counts` are (reused, computed, generated) tokens of the last answer."""

    counts: tuple[int, int, int]

    def answer(self, messages: Messages) -> Iterator[str]: ...


def run(parsed: argparse.Namespace) -> int:
    """The subcommand. Returns the exit code."""
    with contextlib.ExitStack() as stack:
        if parsed.model.startswith(("http://", "https://")):
            partner: Partner = stack.enter_context(_server(parsed))
        else:
            partner = stack.enter_context(_in_process(parsed))
        converse(partner, parsed.system)
    return 0


def converse(partner: Partner, system: str | None) -> None:
    """Read lines, print answers, until the end of input or /exit."""
    start: Messages = [] if system is None else [{"role": "system", "content": system}]
    messages = list(start)
    for line in _lines():
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            messages = list(start)
            print("(forgotten)")
        elif text.startswith("/"):
            print(HELP)
        elif text:
            _turn(partner, messages, text)


def _turn(partner: Partner, messages: Messages, text: str) -> None:
    """One question and its answer; a turn that fails leaves the conversation as it was."""
    messages.append({"role": "user", "content": text})
    pieces: list[str] = []
    try:
        for piece in partner.answer(messages):
            pieces.append(piece)
            print(piece, end="", flush=True)
    except RequestError as error:
        messages.pop()
        print(f"ramify: {error}", file=sys.stderr)
        return
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    messages.append({"role": "assistant", "content": "".join(pieces)})
    reused, computed, generated = partner.counts
    print(f"\n[{reused} tokens reused, {computed} computed, {generated} generated]")


def _lines() -> Iterator[str]:
    """Lines from the terminal, with history and editing, or from a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  makes input() editable
    print(HELP)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


# --- the model in this process ------------------------------------------------------------------


@contextlib.contextmanager
def _in_process(parsed: argparse.Namespace) -> Iterator[Partner]:
    from ramify.srt.engine import Engine

    config = take(EngineConfig, parsed)
    check_engine(config)
    with Engine(**asdict(config)) as engine:
        yield EnginePartner(engine, _sampling(parsed))


class EnginePartner:
    """An `Engine`, or any object shaped like one."""

    def __init__(self, engine: Any, sampling: dict[str, Any]) -> None:
        self._engine, self._sampling = engine, sampling
        self.counts = (0, 0, 0)

    def answer(self, messages: Messages) -> Iterator[str]:
        stream = self._engine.chat(messages, self._sampling, stream=True)
        told = 0
        with contextlib.closing(cast("Any", stream)) as replies:
            for reply in replies:
                yield reply["text"][told:]
                told = len(reply["text"])
                meta = reply["meta_info"]
                reused = meta["cached_tokens"]
                self.counts = (reused, meta["prompt_tokens"] - reused, meta["completion_tokens"])


# --- a server -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(parsed: argparse.Namespace) -> Iterator[Partner]:
    engine_options = given([item.name for item in fields(EngineConfig)], parsed)
    wrong = next((name for name in engine_options if name != "model"), None)
    if wrong is not None:
        raise ConfigError(f"{wrong} is an option of the engine; the server has its own")
    url = parsed.model.rstrip("/").removesuffix("/v1") + "/v1/"
    options = {OPENAI_NAMES.get(name, name): value for name, value in _sampling(parsed).items()}
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
    key = os.environ.get(ENVIRONMENT)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, timeout=timeout, headers=headers) as client:
        yield ServerPartner(client, options)


class ServerPartner:
    """Any server with OpenAI's chat route; the first model that it lists answers."""

    def __init__(self, client: httpx.Client, options: dict[str, Any]) -> None:
        self._client, self._options = client, options
        self.counts = (0, 0, 0)
        try:
            listed = client.get("models")
            if listed.status_code == httpx.codes.UNAUTHORIZED:
                raise RamifyError(f"{client.base_url} takes no such key: set {ENVIRONMENT}")
            self._model = listed.raise_for_status().json()["data"][0]["id"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise RamifyError(f"{client.base_url} is not an OpenAI server: {error}") from None

    def answer(self, messages: Messages) -> Iterator[str]:
        body = self._options | {
            "model": self._model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            with self._client.stream("POST", "chat/completions", json=body) as response:
                _raise_for(response)
                for chunk in _chunks(response):
                    yield from self._read(chunk)
        except httpx.HTTPError as error:
            raise RequestError(f"the connection failed: {error}") from None

    def _read(self, chunk: dict[str, Any]) -> Iterator[str]:
        if "error" in chunk:
            raise RequestError(chunk["error"]["message"])
        for choice in chunk["choices"]:
            yield choice["delta"].get("content") or ""
        usage = chunk.get("usage")
        if usage:
            reused = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            self.counts = (reused, usage["prompt_tokens"] - reused, usage["completion_tokens"])


def _raise_for(response: httpx.Response) -> None:
    if response.is_success:
        return
    text = response.read().decode(errors="replace")
    with contextlib.suppress(ValueError, LookupError, TypeError):
        text = json.loads(text)["error"]["message"]
    raise RequestError(f"the server answered {response.status_code}: {text[:500]}")


def _chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


def _sampling(parsed: argparse.Namespace) -> dict[str, Any]:
    sampling = sampling_given(parsed)
    if sampling.get("n", 1) != 1:
        raise ConfigError("n must be 1 in a chat")
    return sampling
