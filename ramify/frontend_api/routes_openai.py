"""OpenAI's routes: models, completions, chat completions."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ramify.frontend_api import beams, translate
from ramify.frontend_api import body as bodies
from ramify.frontend_api.answers import ChatAnswer, CompletionAnswer, Envelope
from ramify.frontend_api.errors import NotFound
from ramify.frontend_api.running import THREAD_FROM_CHARS, new_id, prepare, respond, translated
from ramify.frontend_api.schema import ChatBody, CompletionBody, Sampled, StreamOptions
from ramify.frontend_api.service import Counted, Service, Serving
from ramify.frontend_api.sse import JSON
from ramify.srt.errors import InvalidRequest
from ramify.srt.intake import MAX_CHARS_PER_TOKEN, GenerateRequest

router = APIRouter(prefix="/v1")


@router.get("/models")
async def models(service: Serving) -> JSON:
    return JSON({"object": "list", "data": [_card(service)]})


@router.get("/models/{name:path}")
async def model(name: str, service: Serving) -> JSON:
    if name != service.model_name:
        raise NotFound(f"there is no model {name[:80]!r}", param="model", code="model_not_found")
    return JSON(_card(service))


@router.post("/completions", dependencies=[Counted])
async def completions(request: Request, service: Serving) -> Response:
    body = await bodies.read(request, CompletionBody)
    service.check_model(body.model)
    made = f"cmpl-{new_id()}"
    asked = beams.completion_search(body)
    if asked is not None:
        name = translate.completion_name
        found = await beams.find(request, service, asked, name, made=made, rid=body.rid)
        return JSON(beams.completion(_envelope(body, made), found))
    requests = await translated(body, lambda: translate.completion_requests(body))
    job = await prepare(service, requests, translate.completion_name, made=made, rid=body.rid)
    answer = CompletionAnswer(
        _envelope(body, made),
        job.replies,
        [_echo(service, prompt) if body.echo else "" for prompt in requests for _ in range(body.n)],
        service.tokenizer,
        body.logprobs,
    )
    return await respond(request, service, job, answer, stream=body.stream)


@router.post("/chat/completions", dependencies=[Counted])
async def chat_completions(request: Request, service: Serving) -> Response:
    body = await bodies.read(request, ChatBody)
    service.check_model(body.model)
    ids = await _chat_ids(service, body)
    parser = service.info.reasoning_parser
    chat = await translated(body, lambda: translate.chat_request(body, ids, parser))
    made = f"chatcmpl-{new_id()}"
    job = await prepare(service, [chat], translate.chat_name(body), made=made, rid=body.rid)
    answer = ChatAnswer(
        _envelope(body, made),
        job.replies,
        service.tokenizer,
        body.logprobs,
        separate_reasoning=body.separate_reasoning,
    )
    return await respond(request, service, job, answer, stream=body.stream)


async def _chat_ids(service: Service, body: ChatBody) -> list[int]:
    """The prompt of a conversation, by the model's own template. Raises InvalidRequest."""
    tokenizer = service.tokenizer
    if tokenizer is None or tokenizer.chat is None:
        raise InvalidRequest("this model has no chat template", param="messages", code="no_chat")
    template, messages = tokenizer.chat, translate.chat_messages(body.messages)

    def ids() -> list[int]:
        text = template.render(
            messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            **translate.template_variables(body),
        )
        most = MAX_CHARS_PER_TOKEN * service.info.context_length
        if len(text) > most:
            raise InvalidRequest(
                f"messages make {len(text)} characters; at most {most} can fit the context",
                param="messages",
                code="context_length_exceeded",
            )
        return tokenizer.encode(text, add_special_tokens=False)

    chars = sum(len(message["content"]) for message in messages)
    try:
        return await asyncio.to_thread(ids) if chars > THREAD_FROM_CHARS else ids()
    except InvalidRequest as error:
        raise translate.renamed(error, translate.chat_name(body)) from None


def _echo(service: Service, prompt: GenerateRequest) -> str:
    """The text of a prompt, for `echo`."""
    if prompt.text is not None:
        return prompt.text
    return service.tokenizer.decode(list(prompt.input_ids or ())) if service.tokenizer else ""


def _envelope(body: Sampled, made: str) -> Envelope:
    return Envelope(
        id=body.rid if isinstance(body.rid, str) else made,
        model=body.model,
        created_s=int(time.time()),
        n=body.n,
        options=body.stream_options or StreamOptions(),
    )


def _card(service: Service) -> dict[str, Any]:
    info = service.client.info
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created_s,
        "owned_by": "ramify",
        "root": service.model_name,
        "parent": None,
        "max_model_len": info.context_length if info else None,
    }
