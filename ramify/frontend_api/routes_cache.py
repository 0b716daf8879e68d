"""Routes that act on the cache of prefixes and look at it.

They reveal sizes, and contents only where the operator has asked for it (`cache_preview`).
"""

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request

from ramify.frontend_api import body as bodies
from ramify.frontend_api import translate
from ramify.frontend_api.running import THREAD_FROM_CHARS
from ramify.frontend_api.schema import PinBody, PrefixBody, TreeQuery
from ramify.frontend_api.service import Service, Serving
from ramify.frontend_api.sse import JSON
from ramify.srt.errors import InvalidRequest
from ramify.srt.intake import prefix_ids
from ramify.srt.replies import cache_tree, pinned_tokens

router = APIRouter(prefix="/cache")


@router.post("/pin")
async def pin(request: Request, service: Serving) -> JSON:
    """Keep the computed part of a prefix from eviction for a time. Computes nothing."""
    body = await bodies.read(request, PinBody)
    token_ids, namespace = await _prefix(service, body)
    answer = await service.client.pin(token_ids, namespace, body.ttl_s)
    return JSON({"pinned_tokens": pinned_tokens(answer)})


@router.post("/unpin")
async def unpin(request: Request, service: Serving) -> JSON:
    """Give up the pin of exactly this prefix; 0 tokens when there is none."""
    token_ids, namespace = await _prefix(service, await bodies.read(request, PrefixBody))
    answer = await service.client.unpin(token_ids, namespace)
    return JSON({"unpinned_tokens": pinned_tokens(answer)})


@router.get("/tree")
async def tree(service: Serving, query: Annotated[TreeQuery, Query()]) -> JSON:
    """The most recently used nodes of the tree; with what they hold, if the operator allows it."""
    shown = await service.client.show_tree(query.limit)
    return JSON(cache_tree(shown, _text(service) if service.serve_config.cache_preview else None))


def _text(service: Service) -> Callable[[list[int]], str]:
    """Gives the text of tokens, special ones too; "" for a model without a tokenizer."""
    tokenizer = service.tokenizer
    if tokenizer is None:
        return lambda ids: ""
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)


async def _prefix(service: Service, body: PrefixBody) -> tuple[bytes, str]:
    """Packed tokens and namespace of a prefix. Raises InvalidRequest with the client's names."""
    namespace = translate.namespace(body.extra_key, body.cache_salt)

    def ids() -> bytes:
        return prefix_ids(body.text, body.input_ids, namespace, service.tokenizer, service.info)

    try:
        long = len(body.text or "") > THREAD_FROM_CHARS
        return (await asyncio.to_thread(ids) if long else ids()), namespace
    except InvalidRequest as error:
        raise translate.renamed(error, translate.native_name) from None
