"""Runs the sequences of one HTTP request: all at once, ended when the client goes away.

prepare    requests to assemblers: tokenise (in a thread when long), check, give ids
follow     run them; tell which has moved on; the first error ends all
respond    wait for the first message, then answer whole or as a stream: an error that comes
           before the first byte has its own status
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from ramify.frontend_api.answers import Answer
from ramify.frontend_api.errors import error_body
from ramify.frontend_api.schema import GenerateBody, Sampled
from ramify.frontend_api.service import Service
from ramify.frontend_api.sse import DONE, JSON, EventStream, event
from ramify.frontend_api.translate import (
    Names,
    Rename,
    check_batch,
    check_grammars,
    constrained,
    names,
    renamed,
)
from ramify.srt.errors import InvalidRequest, RequestError
from ramify.srt.intake import GenerateRequest, to_submits
from ramify.srt.replies import ReplyAssembler

THREAD_FROM_CHARS = 20_000  # a longer text is tokenised beside the event loop

_Result = TypeVar("_Result")


class ClientGone(RequestError):
    """The client closed the connection: nobody reads the answer."""

    status = 499


# --- before -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """The sequences of one HTTP request, prompt by prompt, and what the client calls them."""

    replies: list[ReplyAssembler]
    names: Names


async def translated(body: GenerateBody | Sampled, work: Callable[[], _Result]) -> _Result:
    """What `work` makes of a body: beside the event loop when there are constraints to check."""
    return await asyncio.to_thread(work) if constrained(body) else work()


async def prepare(
    service: Service,
    requests: Sequence[GenerateRequest],
    rename: Rename,
    *,
    made: str,
    rid: str | list[str] | None = None,
) -> Job:
    """Tokenise, check and name all sequences. Raises RequestError with the client's field names."""
    sizes = [request.sampling.n for request in requests]
    check_batch(sizes, service.serve_config.max_batch, rename("n"))
    check_grammars(requests)
    named = names(rid, made, sizes)
    chars = sum(len(request.text or "") for request in requests)
    many = len(requests) > 1

    def assemble() -> list[ReplyAssembler]:
        return [
            reply
            for place, request in enumerate(requests)
            for reply in _assemblers(service, request, rename, place if many else None)
        ]

    replies = await asyncio.to_thread(assemble) if chars > THREAD_FROM_CHARS else assemble()
    return Job(replies, named)


def _assemblers(
    service: Service, request: GenerateRequest, rename: Rename, place: int | None
) -> list[ReplyAssembler]:
    info, now = service.info, service.clock.now()
    try:
        submits = to_submits(
            request, service.tokenizer, info, new_id, service.new_seed, service.account
        )
    except InvalidRequest as error:
        raise renamed(error, lambda param: _in_batch(rename(param), param, place)) from None
    return [
        ReplyAssembler(
            submit,
            service.tokenizer,
            info,
            now=now,
            return_text_in_logprobs=request.return_text_in_logprobs,
        )
        for submit in submits
    ]


def new_id() -> str:
    """A request id of ours: clients cannot guess or choose those of others."""
    return uuid.uuid4().hex


def _in_batch(param: str, native: str, place: int | None) -> str:
    """The path of a prompt within its batch."""
    return param if place is None or native not in ("text", "input_ids") else f"{param}.{place}"


# --- during -------------------------------------------------------------------------------------


async def follow(
    service: Service, assemblers: Sequence[ReplyAssembler]
) -> AsyncGenerator[list[int], None]:
    """Run all sequences; gives the places of those that moved on since the last time.

    A reader that is slow gets fewer, larger steps: nothing piles up for it. Closing the generator,
    or an error of one sequence, aborts the sequences that still run.
    """
    moved: asyncio.Queue[int | asyncio.Task[None]] = asyncio.Queue()

    async def run(place: int) -> None:
        with service.metrics.watch(assemblers[place]) as watch:
            async with aclosing(service.client.follow(assemblers[place])) as steps:
                async for _ in steps:
                    watch.moved()
                    moved.put_nowait(place)

    tasks = [asyncio.create_task(run(place)) for place in range(len(assemblers))]
    for task in tasks:
        task.add_done_callback(moved.put_nowait)
    running = len(tasks)
    try:
        while running:
            items = [await moved.get()]
            while not moved.empty():
                items.append(moved.get_nowait())
            places = [item for item in dict.fromkeys(items) if isinstance(item, int)]
            for item in items:
                if isinstance(item, asyncio.Task):
                    item.result()
                    running -= 1
            if places:
                yield places
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `work`, which is cancelled when the client goes away. Raises ClientGone."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client closed the connection")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.wait({working, gone})


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- after --------------------------------------------------------------------------------------


async def respond(
    request: Request,
    service: Service,
    job: Job,
    answer: Answer,
    *,
    stream: bool,
) -> Response:
    """Run the job and answer, as a stream or whole. Raises RequestError before the first byte."""
    steps = _named(service, job)
    if not stream:
        async with aclosing(steps):
            await unless_gone(request, _exhaust(steps))
        return JSON(answer.whole())
    try:
        first = await unless_gone(request, anext(steps))
    except BaseException:
        await steps.aclose()
        raise
    return EventStream(_events(service, first, steps, answer))


def claimed(service: Service, job: Job) -> AbstractContextManager[None]:
    """Holds the names of a job while it runs. Raises InvalidRequest when one is in use."""
    ids = [reply.submit.request_id for reply in job.replies]
    groups = {name: [ids[place] for place in places] for name, places in job.names.groups.items()}
    return service.rids.claim(groups)


async def _named(service: Service, job: Job) -> AsyncGenerator[list[int], None]:
    with claimed(service, job):
        async with aclosing(follow(service, job.replies)) as steps:
            async for places in steps:
                yield places


async def _exhaust(steps: AsyncGenerator[list[int], None]) -> None:
    async for _ in steps:
        pass


async def _events(
    service: Service, first: list[int], steps: AsyncGenerator[list[int], None], answer: Answer
) -> AsyncGenerator[bytes, None]:
    """The events of a stream; one write for all that is known at a time."""
    async with aclosing(steps):
        try:
            yield _join(answer, first)
            async for places in steps:
                yield _join(answer, places)
            yield b"".join(map(event, answer.closing()))
        except RequestError as error:
            service.metrics.failed(error)
            yield event(error_body(error))
        yield DONE


def _join(answer: Answer, places: list[int]) -> bytes:
    return b"".join(event(value) for place in places for value in answer.moved(place))
