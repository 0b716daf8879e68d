"""A record of what an engine was asked and what it answered, from which both can be had again.

One JSON object a line, for each call of the core that changes what is decided later:

    {"call":"engine", ...}                                     how the engine was made; always first
    {"call":"submit","now":7.1,"request":{"request_id":"a","token_ids":[5,6], ...}}
    {"call":"step","now":[7.2,7.3],"tokens":{"a":[9]}}         the times at which the core looked
    {"call":"step","now":[7.4,7.5],"tokens":{"a":[2]},"ended":[{"request_id":"a", ...}]}
    {"call":"idle","n":31,"now":10.5}                          steps of an engine with nothing to do

Decisions depend on the calls, their order, the times that the core was told or read, and the tokens
that were sampled. All of these are here, so a replay decides the same. A step may answer what an
earlier one began (overlap): a line holds what its own call gave.
"""

import logging
import os
import weakref
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from ramify.srt.config import EngineConfig
from ramify.srt.errors import ConfigError
from ramify.srt.grammar import GrammarSpec
from ramify.srt.messages import (
    Finished,
    ModelInfo,
    Submit,
    pack_ids,
)
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.limits import SchedulerLimits

VERSION = 1

logger = logging.getLogger(__name__)


# --- lines ---------------------------------------------------------------------------------------


class Line(msgspec.Struct, frozen=True, tag_field="call", omit_defaults=True):
    """One line of a trace."""


class Header(Line, frozen=True, tag="engine", kw_only=True):
    """How the engine was made: all that its decisions depend on but the calls."""

    version: int
    config: EngineConfig
    info: ModelInfo
    limits: SchedulerLimits
    host_slots: int = 0  # pages of host memory behind the cache


class SubmitCall(Line, frozen=True, tag="submit"):
    """`request` is the `Submit` by field names, its prompt as a list of ids."""

    now: float
    request: dict[str, Any]
    rejected: bool = False

    @property
    def message(self) -> Submit:
        """The `Submit` again."""
        fields = dict(self.request)
        fields["token_ids"] = pack_ids(fields["token_ids"])
        fields["sampling"] = msgspec.convert(fields["sampling"], SamplingParams, str_keys=True)
        fields["grammar"] = msgspec.convert(fields.get("grammar"), GrammarSpec | None)
        return Submit(**fields)


class Answered(Line, frozen=True):
    """What a call gave: new tokens by request, and each `Finished` by field names."""

    tokens: dict[str, list[int]] = {}
    ended: list[dict[str, Any]] = []

    @property
    def finished(self) -> list[Finished]:
        """The `Finished` again."""
        return [Finished(**fields) for fields in self.ended]


class AbortCall(Answered, frozen=True, tag="abort", kw_only=True):
    """A request was to end at once."""

    now: float
    request_id: str


class StepCall(Answered, frozen=True, tag="step", kw_only=True):
    """One step. `now`: what the core's clock said, each time that it was asked."""

    now: tuple[float, ...]


class IdleSteps(Line, frozen=True, tag="idle"):
    """`n` steps in a row of an idle engine, none of which gave anything. `now`: the latest time."""

    n: int
    now: float


class FlushCall(Line, frozen=True, tag="flush"):
    """The cache was to be emptied."""

    done: bool


class PinCall(Line, frozen=True, tag="pin"):
    """A prefix was to be kept. `tokens`: how much of it was."""

    now: float
    token_ids: list[int]
    namespace: str
    ttl_s: float
    tokens: int


class UnpinCall(Line, frozen=True, tag="unpin"):
    """A pin was to be given up. `tokens`: how much it held."""

    now: float
    token_ids: list[int]
    namespace: str
    tokens: int


Call = SubmitCall | AbortCall | StepCall | IdleSteps | FlushCall | PinCall | UnpinCall

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Header | Call).decode


# --- files ---------------------------------------------------------------------------------------


class TraceFile:
    """A new file that only its owner may read: it holds prompts.

    `path`, or path.1, path.2, ... if that is there already: a file is one life of an engine, and
    none is ever overwritten. Raises ConfigError when no file can be made. Every line is in the file
    when `write` returns. What goes wrong later ends the trace, not the service.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path, fd = _create(Path(path))
        self._fd: int | None = fd
        self._close = weakref.finalize(self, os.close, fd)
        self.write(header)

    def write(self, line: Line) -> None:
        """Append one line."""
        if self._fd is None:
            return
        packed = encode(line) + b"\n"
        try:
            if os.write(self._fd, packed) == len(packed):
                return
            why = "no space is left"
        except OSError as error:
            why = str(error)
        logger.error("the trace %s ends here: %s", self.path, why)
        self._fd = None
        self._close()


def _create(wanted: Path) -> tuple[Path, int]:
    for n in count():
        path = wanted.with_name(f"{wanted.name}.{n}") if n else wanted
        try:
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except OSError as error:
            if not isinstance(error, FileExistsError) or not path.is_file():
                raise ConfigError(
                    f"record_trace must be a file that can be made: {error.strerror}: {path}"
                ) from error
    raise AssertionError("count() never ends")


@dataclass(frozen=True)
class Trace:
    """A trace that was read."""

    header: Header
    calls: list[Call]

    @property
    def finished(self) -> list[Finished]:
        """Every `Finished`, in the order in which they were given."""
        return [end for call in self.calls if isinstance(call, Answered) for end in call.finished]


def read(path: str | Path) -> Trace:
    """The trace in a file, up to its last whole line. Raises OSError, or ValueError with words."""
    header: Header | None = None
    calls: list[Call] = []
    with Path(path).open("rb") as file:
        for number, packed in enumerate(file, 1):
            if not packed.endswith(b"\n"):
                break  # the engine was killed while it wrote, or writes just now
            try:
                line = _decode(packed)
            except msgspec.DecodeError as error:
                raise ValueError(f"line {number} of {path} is not of a trace: {error}") from error
            if isinstance(line, Header) != (number == 1):
                raise ValueError(f"line {number} of {path}: a trace has one header, its first line")
            if isinstance(line, Header):
                header = line
            else:
                calls.append(line)
    if header is None:
        raise ValueError(f"{path} holds no trace")
    if header.version != VERSION:
        raise ValueError(f"{path} is a trace of version {header.version}, not {VERSION}")
    if calls and isinstance(calls[-1], IdleSteps):
        calls.pop()  # killed between it and the call that it was written for
    return Trace(header, calls)
