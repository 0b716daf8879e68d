"""A server over its public HTTP API, through one pool of connections."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ramify.lang.backends.local import EngineBackend
from ramify.lang.errors import BackendError

if TYPE_CHECKING:
    import ssl

    import httpx

CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 2.0  # less than servers keep idle connections, so that we never write to a dead one
MAX_CONNECTIONS = 1024
MAX_IDLE_CONNECTIONS = 256
DONE = "[DONE]"


class HttpEngine:
    """The shape of an engine over HTTP. Safe to use from many threads."""

    def __init__(
        self, base_url: str, api_key: str | None, verify: str | bool | None, timeout_s: float | None
    ) -> None:
        import httpx  # only programs that talk to a server pay for it

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(
            base_url=base_url.rstrip("/"),
            headers=headers,
            verify=_verification(verify),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=MAX_IDLE_CONNECTIONS,
                keepalive_expiry=KEEP_ALIVE_S,
            ),
        )

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | None = None,
        *,
        input_ids: list[int] | list[list[int]] | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """POST /generate. Raises BackendError."""
        body = {"text": prompt, "input_ids": input_ids, "sampling_params": sampling_params}
        body |= {"stream": stream or None} | options
        body = {name: value for name, value in body.items() if value is not None}
        return self._stream(body) if stream else self._json("POST", "/generate", body)

    def model_info(self) -> dict[str, Any]:
        """GET /model_info."""
        info: dict[str, Any] = self._json("GET", "/model_info")
        return info

    def server_info(self) -> dict[str, Any]:
        """GET /server_info."""
        info: dict[str, Any] = self._json("GET", "/server_info")
        return info

    def flush_cache(self) -> bool:
        """POST /flush_cache. False when the server refuses, as it does while requests run."""
        return bool(self._request("POST", "/flush_cache").is_success)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = self._request(method, path, body)
        if not response.is_success:
            raise error_of(response.status_code, response.text)
        return response.json()

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> "httpx.Response":
        import httpx

        try:
            return self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(path, error) from error

    def _stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        import httpx

        try:
            with self._client.stream("POST", "/generate", json=body) as response:
                if not response.is_success:
                    raise error_of(response.status_code, response.read().decode(errors="replace"))
                yield from events(response.iter_lines())
        except httpx.HTTPError as error:
            raise self._unreachable("/generate", error) from error

    def _unreachable(self, path: str, error: Exception) -> BackendError:
        url = f"{self._client.base_url}".rstrip("/") + path
        return BackendError(f"no answer from {url}: {error or type(error).__name__}")


class RuntimeEndpoint(EngineBackend):
    """A server as a backend.

    `verify` is the path of a CA file, or False to trust any certificate. `timeout_s` limits how
    long the server may be silent, not the whole request; None: for ever. Raises BackendError when
    the server cannot be reached.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | bool | None = None,
        chat_template_name: str | None = None,
        *,
        timeout_s: float | None = 600.0,
    ) -> None:
        self.base_url = base_url
        engine = HttpEngine(base_url, api_key, verify, timeout_s)
        super().__init__(engine, chat_template_name)
        try:
            _ = self.model_info  # fail here, not at the first message of the first program
        except BackendError:
            engine.close()
            raise
        self._http = engine

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "RuntimeEndpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The replies of a stream of server-sent events. Raises BackendError for an error event.

    A stream that ends without its end mark was cut off, which is an error as well.
    """
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == DONE:
            return
        event = json.loads(data)
        if "error" in event:
            raise error_of(None, data)
        yield event
    raise BackendError("the stream ended early: the server went away")


def error_of(status: int | None, body: str) -> BackendError:
    """The error that a reply names; the bare body when it is not in our form."""
    try:
        error = json.loads(body)["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        return BackendError(f"the server answered {status}: {body[:500]}", status=status)
    return BackendError(message, param=error.get("param"), code=error.get("code"), status=status)


def _verification(verify: str | bool | None) -> "ssl.SSLContext | bool":
    if isinstance(verify, str):
        import ssl

        return ssl.create_default_context(cafile=verify)
    return verify is not False
