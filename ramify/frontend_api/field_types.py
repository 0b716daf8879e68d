"""Types of single HTTP fields: what a value may be, whatever body it stands in."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator

from ramify.srt.checks import MAX_DURATION_S
from ramify.srt.intake import MAX_PRIORITY, MAX_PROGRAM_ID_CHARS

MAX_ID_CHARS = 256
UINT32 = 2**32

Accepts = Callable[[Any], bool]


def _texts(value: Any) -> bool:
    """True for a string or a list of strings."""
    if isinstance(value, list):
        return bool(value) and all(type(item) is str for item in value)
    return isinstance(value, str)


def _ids(value: Any) -> bool:
    """True for a list of token ids or a list of such lists. The model's width is checked later."""
    if not isinstance(value, list) or not value:
        return False
    if isinstance(value[0], list):
        return all(_flat_ids(item) for item in value)
    return _flat_ids(value)


def _flat_ids(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(type(item) is int and 0 <= item < UINT32 for item in value)


def _takes(right: str, *accepts: Accepts) -> PlainValidator:
    """A check by hand: a union of types would try, and report, all of its branches."""

    def check(value: Any) -> Any:
        if not any(accept(value) for accept in accepts):
            raise ValueError(f"takes {right}, not empty")
        return value

    return PlainValidator(check)


TEXTS = "a string or a list of strings"
IDS = "a list of token ids or a list of such lists"
Text = Annotated[str | list[str], _takes(TEXTS, _texts)]
Ids = Annotated[list[int] | list[list[int]], _takes(IDS, _ids)]
FlatIds = Annotated[list[int], _takes("a list of token ids", _flat_ids)]
Prompt = Annotated[
    str | list[str] | list[int] | list[list[int]], _takes(f"{TEXTS}, or {IDS}", _texts, _ids)
]
Identifier = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
Salt = Annotated[str, Field(max_length=MAX_ID_CHARS)]
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
ProgramId = Annotated[str, Field(max_length=MAX_PROGRAM_ID_CHARS)]
Duration = Annotated[float, Field(gt=0, le=MAX_DURATION_S)]


def _bias(value: dict[str, float]) -> dict[str, float]:
    if not all(key.isascii() and key.isdigit() and len(key) <= 10 for key in value):
        raise ValueError("takes an object from token ids, as strings of digits, to numbers")
    return value


LogitBias = Annotated[dict[str, float], Field(max_length=1024), AfterValidator(_bias)]
