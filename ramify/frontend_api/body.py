"""From the bytes of a request to a checked value: strict JSON, then a pydantic schema.

Python's parser takes more than JSON allows (NaN, duplicate keys, lone surrogates); each of these
has been a way to make two parts of a system see two different requests. All are refused here.
"""

import asyncio
import json
import re
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from ramify.frontend_api.errors import BodyTimeout, WrongContentType, from_validation
from ramify.srt.errors import InvalidRequest

BODY_TIMEOUT_S = 60.0
THREAD_FROM_BYTES = 256 * 1024  # a larger body is checked beside the event loop

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_Schema = TypeVar("_Schema", bound=BaseModel)


async def read(request: Request, schema: type[_Schema]) -> _Schema:
    """The request's body as a `schema`. Raises RequestError naming what is wrong."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise WrongContentType("send the body as JSON with Content-Type: application/json")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await request.body()
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    if len(raw) > THREAD_FROM_BYTES:
        return await asyncio.to_thread(parse, raw, schema)
    return parse(raw, schema)


def parse(raw: bytes, schema: type[_Schema]) -> _Schema:
    """Bytes to a checked `schema`. Raises InvalidRequest."""
    value = strict_json(raw)
    if not isinstance(value, dict):
        raise _refused("the body must be a JSON object")
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise from_validation(error, value) from None


def strict_json(raw: bytes) -> Any:
    """The value of one JSON document in UTF-8. Raises InvalidRequest on anything JSON forbids."""
    if not raw.strip():
        raise _refused("the body is empty; it must be a JSON object")
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
        if _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise _refused("the body is not valid Unicode text in UTF-8") from None
    except RecursionError:
        raise _refused("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _refused(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:  # a number of thousands of digits
        raise _refused("the body holds a number that is too long") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise InvalidRequest(f"{twice[:80]!r} is given twice", code="invalid_json")
    return value


def _constant(name: str) -> Any:
    raise _refused(f"{name} is not a JSON number")


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_json")
