"""What the engine process and its grammar child say to each other over one socket pair.

    engine process                     child
      Open      -------------------->            once: which engine over which vocabulary
                <--------------------  Opened    loaded and limited; if it cannot load, it ends
      Compile   -------------------->            one at a time
                <--------------------  Verdict

A frame is its length in 4 bytes, then one msgpack struct. The end of the stream ends the child.
"""

import importlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from ramify.srt.constrained.base import GrammarBackend, Prepared
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.grammar import GrammarSpec
from ramify.srt.tokenization.tokenizer import Tokenizer

LOADER = "ramify.srt.constrained.choose:load_backend"
MAX_FRAME_BYTES = 2**26  # a table of an automaton may come back
MAX_MESSAGE = 1000  # characters of an engine's words that reach a client
LENGTH_BYTES = 4

T = TypeVar("T")


class BackendSource(msgspec.Struct, frozen=True):
    """How any process gets the same engine over the same vocabulary.

    `name` is the engine's, `folder` holds the tokenizer; `vocab_size` is the width of the logits,
    `end_ids` end a text beside the tokenizer's own. `loader` is MODULE:FUNCTION.
    """

    name: str
    folder: str
    vocab_size: int
    end_ids: tuple[int, ...] = ()
    loader: str = LOADER

    def open(self) -> GrammarBackend:
        """The engine, loaded. Raises ModelLoadError or ConfigError."""
        module, function = self.loader.split(":")
        load: Callable[[str, Vocabulary], GrammarBackend] = getattr(
            importlib.import_module(module), function
        )
        tokenizer = Tokenizer.load(Path(self.folder), prefix_cache_bytes=0)
        return load(self.name, Vocabulary.of(tokenizer, self.vocab_size, self.end_ids))


class Open(msgspec.Struct, frozen=True):
    """The child's first frame. `memory_bytes`: how far its address space may grow once loaded;
    `grammar_bytes`: how much memory a compiled grammar may hold."""

    source: BackendSource
    memory_bytes: int
    grammar_bytes: int
    nice: int


class Opened(msgspec.Struct, frozen=True):
    """The child is ready."""


class Compile(msgspec.Struct, frozen=True):
    """One grammar. Past `timeout_s` the child ends itself, should nobody have killed it."""

    spec: GrammarSpec
    timeout_s: float


class Verdict(msgspec.Struct, frozen=True):
    """A grammar to build, that compiles and can be followed; or None, and GrammarError's words.

    `held_bytes` is the memory that it holds. `worn`: the child itself holds on to much of its
    memory; the next grammar should get a new one.
    """

    prepared: Prepared | None
    code: str = ""
    message: str = ""
    held_bytes: int = 0
    worn: bool = False


def send(end: socket.socket, message: msgspec.Struct, timeout_s: float | None = None) -> None:
    """Write one frame. Raises TimeoutError, or OSError when the other end is gone."""
    frame = msgspec.msgpack.encode(message)
    end.settimeout(timeout_s)
    end.sendall(len(frame).to_bytes(LENGTH_BYTES, "big") + frame)


def receive(end: socket.socket, kind: type[T], timeout_s: float | None = None) -> T:
    """Read one frame. Raises TimeoutError, EOFError at the end of the stream, OSError when it
    broke, and ValueError for a frame that is too long or no `kind`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    length = int.from_bytes(_read(end, LENGTH_BYTES, deadline), "big")
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return msgspec.msgpack.decode(_read(end, length, deadline), type=kind)


def _read(end: socket.socket, length: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < length:
        if deadline is not None:
            end.settimeout(max(deadline - time.monotonic(), 1e-3))
        else:
            end.settimeout(None)
        part = end.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
