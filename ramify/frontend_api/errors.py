"""From exceptions to the one error body every route answers with.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

`param` is the dotted path of the wrong field. Nothing here repeats what the client sent beyond
short names, and an unexpected exception says nothing of itself: its trace goes to the log only.
"""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ramify.frontend_api.sse import JSON
from ramify.srt.errors import InvalidRequest, RequestError

log = logging.getLogger("ramify.http")

MAX_NAME_CHARS = 80  # of a client's field name that an error repeats


class InvalidKey(RequestError):
    """401: the request brings no key, or one that is not known."""

    status = 401
    kind = "authentication_error"


class BodyTooLarge(RequestError):
    """413: the request body is over the limit."""

    status = 413
    kind = "invalid_request_error"


class NotFound(RequestError):
    """404: the path is right, what it names does not exist."""

    status = 404
    kind = "invalid_request_error"


class WrongContentType(RequestError):
    """415: the body is not declared as JSON."""

    status = 415
    kind = "invalid_request_error"


class BodyTimeout(RequestError):
    """408: the body did not arrive in time."""

    status = 408
    kind = "invalid_request_error"


def error_body(error: RequestError) -> dict[str, Any]:
    """The JSON object of an error answer."""
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: RequestError) -> JSON:
    """The whole answer: status, body, and the header that says how to go on, where there is one."""
    retry_after_s = getattr(error, "retry_after_s", None)
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    if isinstance(error, InvalidKey):
        headers["WWW-Authenticate"] = "Bearer"
    return JSON(error_body(error), status_code=error.status, headers=headers)


# --- validation errors --------------------------------------------------------------------------

Path = tuple[str, ...]


def from_validation(error: ValidationError, body: Any) -> InvalidRequest:
    """The first wrong field of a body as an InvalidRequest with its dotted path.

    A union reports each of its branches: those of the same field that reach deepest into the body
    are the ones that explain the mistake, and their messages are joined by "or".
    """
    found = [(_path(item["loc"], item["type"], body), item) for item in error.errors()]
    field = found[0][0][:1]
    deepest = max(len(path) for path, _ in found if path[:1] == field)
    path = next(path for path, _ in found if path[:1] == field and len(path) == deepest)
    items = [item for other, item in found if other == path]
    first, param = items[0], ".".join(path)
    if first["type"] == "named":
        context = first["ctx"]
        param = ".".join((*path, context["param"]))
        return InvalidRequest(context["message"], param=param, code=context["code"])
    if first["type"] == "extra_forbidden":
        message = f"{param} is not a field we know; it would have no effect"
        return InvalidRequest(message, param=param, code="unknown_parameter")
    if first["type"] == "missing":
        return InvalidRequest(f"{param} is required", param=param, code="missing_parameter")
    reasons = " or ".join(dict.fromkeys(_plain(item["msg"]) for item in items))
    reasons = reasons.replace(" or should be ", " or ")
    return InvalidRequest(f"{param}: {reasons}", param=param or None, code="invalid_value")


def _path(loc: Sequence[int | str], kind: str, body: Any) -> Path:
    """The parts of `loc` that exist in the body: drops the union tags pydantic puts in between."""
    path: list[str] = []
    for place, part in enumerate(loc):
        missing = kind == "missing" and place == len(loc) - 1
        if _holds(body, part):
            body = body[part]
        elif not missing:
            continue
        path.append(str(part)[:MAX_NAME_CHARS])
    return tuple(path)


def _holds(body: Any, part: int | str) -> bool:
    if isinstance(body, dict):
        return part in body
    return isinstance(body, list) and isinstance(part, int) and part < len(body)


def _plain(message: str) -> str:
    """Pydantic's sentence in our form: lower case, without its prefix."""
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return message[:1].lower() + message[1:]


# --- handlers -----------------------------------------------------------------------------------


async def on_request_error(request: Request, error: Exception) -> JSON:
    """Answer an error raised on purpose."""
    assert isinstance(error, RequestError)
    return error_response(error)


async def on_http_exception(request: Request, error: Exception) -> JSON:
    """Answer what the router refuses: unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    method, path = request.method[:20], request.url.path[:MAX_NAME_CHARS]
    messages = {
        404: f"there is no route {path}",
        405: f"{path} does not take {method}",
    }
    refusal = InvalidRequest(messages.get(error.status_code, str(error.detail)))
    refusal.code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return JSON(error_body(refusal), status_code=error.status_code, headers=error.headers)


async def on_query_error(request: Request, error: Exception) -> JSON:
    """Answer a wrong parameter of the query string: bodies are read by `body`."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = str(first["loc"][-1])[:MAX_NAME_CHARS]
    message = f"{param}: {_plain(first['msg'])}"
    return error_response(InvalidRequest(message, param=param, code="invalid_value"))


async def on_unexpected(request: Request, error: Exception) -> JSON:
    """Answer a bug of ours without telling anything of it; the server logs the trace."""
    log.error("unexpected %s in %s", type(error).__name__, request.url.path[:MAX_NAME_CHARS])
    return error_response(RequestError("internal error; the server's log has the details"))
