"""Values to bytes: JSON answers and server-sent events.

JSON has no NaN and no infinity; the encoder writes null for them.
"""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class JSON(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _encode(content)


def event(value: Any) -> bytes:
    """One server-sent event: JSON never holds a bare line break, so one `data:` line is enough."""
    return b"data: " + _encode(value) + b"\n\n"


class EventStream(StreamingResponse):
    """Sends `events` as they come and closes the generator whatever happens.

    A client that goes away cancels the sending; closing the generator then ends the work behind it.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
