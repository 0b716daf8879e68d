"""Who may ask: the check of API keys in front of all routes."""

from starlette.types import ASGIApp, Receive, Scope, Send

from ramify.frontend_api.errors import InvalidKey, error_response
from ramify.frontend_api.keys import Keys
from ramify.frontend_api.metrics import Metrics

OPEN_PATHS = ("/health", "/health_generate")  # for what watches over the server


class KeyCheck:
    """ASGI middleware: refuses with 401 who brings no key, before any of the body is read.

    Where it lets a request pass, the request's `state.account` is the name of its key.
    """

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        account = self._keys.account(_bearer(scope))
        if account is None:
            error = InvalidKey(
                "send a valid key: Authorization: Bearer KEY", code="invalid_api_key"
            )
            self._metrics.failed(error)
            await error_response(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["account"] = account
        await self._app(scope, receive, send)


def _bearer(scope: Scope) -> bytes:
    """The key that a request brings; empty when it brings none, or several."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, key = (values[0] if len(values) == 1 else b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""
