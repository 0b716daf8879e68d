"""What the routes need, in one value: the engine, the tokenizer, the options, names in use,
counts."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Annotated

from fastapi import Depends, Request

from ramify.frontend_api.keys import Keys
from ramify.frontend_api.metrics import Metrics
from ramify.srt.clock import Clock, MonotonicClock
from ramify.srt.config import EngineConfig, ServeConfig
from ramify.srt.errors import InvalidRequest, Unavailable
from ramify.srt.messages import ModelInfo
from ramify.srt.tokenization.tokenizer import Tokenizer
from ramify.srt.workers.client import WHY_NOT, EngineClient


class Rids:
    """Names that clients gave to requests in flight. The runtime itself uses ids of ours only.

    Each account has its own: what one calls its requests says nothing to another.
    """

    def __init__(self) -> None:
        self._request_ids: dict[str, list[str]] = {}
        self._others: dict[str, Rids] = {}

    def of(self, account: str) -> "Rids":
        """Those of an account; "" is who comes without a key."""
        return self._others.setdefault(account, Rids()) if account else self

    @contextmanager
    def claim(self, names: dict[str, list[str]]) -> Iterator[None]:
        """Hold `names` of requests. Raises InvalidRequest when one of them is in use."""
        for name in names:
            if name in self._request_ids:
                raise InvalidRequest(
                    "rid is in use by a request in flight", param="rid", code="rid_in_use"
                )
        self._request_ids |= names
        try:
            yield
        finally:
            for name in names:
                del self._request_ids[name]

    def find(self, name: str) -> list[str]:
        """Our ids of the requests called `name`; empty when there are none."""
        return self._request_ids.get(name, [])

    def everything(self) -> list[str]:
        """Our ids of all requests in flight."""
        return list(dict.fromkeys(chain.from_iterable(self._request_ids.values())))


@dataclass(frozen=True)
class Service:
    """Everything a route uses. `tokenizer` is None for a model that only takes token ids.

    `keys` is None when everybody may come. `account` and `rids` are those of who asks.
    """

    client: EngineClient
    tokenizer: Tokenizer | None
    model_name: str
    model_path: str
    engine_config: EngineConfig
    serve_config: ServeConfig
    new_seed: Callable[[], int]
    created_s: int  # Unix time, for OpenAI's `created` of the model
    keys: Keys | None = None
    account: str = ""
    clock: Clock = field(default_factory=MonotonicClock)
    rids: Rids = field(default_factory=Rids)
    metrics: Metrics = field(default_factory=Metrics)
    searches: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)

    @property
    def info(self) -> ModelInfo:
        """The model's facts. Raises Unavailable before it was first loaded."""
        if self.client.info is None:
            raise Unavailable(WHY_NOT[self.client.state], code=str(self.client.state))
        return self.client.info

    @contextmanager
    def holding(self, search_id: str, abort: Callable[[], Awaitable[None]]) -> Iterator[None]:
        """Know a beam search, of many requests of the engine, while it runs, and how to end it."""
        self.searches[search_id] = abort
        try:
            yield
        finally:
            del self.searches[search_id]

    async def abort(self, request_id: str) -> bool:
        """End a request or a search: who waits for it is answered. False for an unknown id."""
        if request_id in self.searches:
            await self.searches[request_id]()
            return True
        return await self.client.abort(request_id)

    def check_model(self, name: str) -> None:
        """Raises InvalidRequest unless `name` is the model we serve."""
        if name != self.model_name:
            raise InvalidRequest(
                f"the model {name[:80]!r} does not exist; this server has {self.model_name!r}",
                param="model",
                code="model_not_found",
            )


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    account = getattr(request.state, "account", "")  # `auth.KeyCheck` has set it
    if not account:
        return service
    return replace(service, account=account, rids=service.rids.of(account))


Serving = Annotated[Service, Depends(_service)]


async def _counted(service: Serving) -> AsyncIterator[None]:
    try:
        yield
    except Exception as error:
        service.metrics.failed(error)
        raise


Counted = Depends(_counted)  # for routes whose errors are counted
