"""Beam search over HTTP: what is asked, the search above the engine's process, the answers.

A search runs one request of the engine for each hypothesis and step. All of them have the
namespace, priority, program and account of the one that the client sent; its `timeout_s` covers
the whole search.

    body --> Asked --> BeamSearch.run --> Search.replies --> native items | choices
                           |     ^
                           v     |  one step: all requests at once, the first error ends all
                          EngineClient
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
from fastapi import Request

from ramify.frontend_api import translate
from ramify.frontend_api.answers import Envelope, told_reason
from ramify.frontend_api.running import claimed, new_id, prepare, unless_gone
from ramify.frontend_api.schema import BEAM_OPTIONS, CompletionBody, GenerateBody
from ramify.frontend_api.service import Service
from ramify.frontend_api.translate import Rename, renamed
from ramify.srt.beam_search import MAX_BEAM_WIDTH, ONE_TOKEN, BeamOptions, Search, check_options
from ramify.srt.errors import InvalidRequest
from ramify.srt.intake import GenerateRequest
from ramify.srt.messages import Submit, pack_ids
from ramify.srt.replies import ABORTED, ReplyAssembler
from ramify.srt.sampling_params import SamplingParams

TAKEN = ("max_new_tokens", "ignore_eos")  # sampling options that a search has too
LEAST_TIME_S = 1e-6  # when none is left, the engine says so

Reply = dict[str, Any]
_Result = TypeVar("_Result")


# --- what is asked, pure --------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A prompt, and how to search. The types of the options are checked with their ranges."""

    request: GenerateRequest
    beam_width: Any
    length_penalty: Any = 1.0
    early_stopping: Any = False


def native_search(body: GenerateBody) -> Asked | None:
    """The search that a /generate body asks for; None when it asks for none.

    Raises InvalidRequest for what does not go together with a search.
    """
    given = body.sampling_params
    many = given if isinstance(given, list) else [given]
    beam = {k: v for params in many for k, v in params.items() if k in BEAM_OPTIONS}
    if not beam:
        return None
    if "beam_width" not in beam:
        raise _wrong("sampling_params.beam_width", "is needed for a beam search")
    if body.stream:
        raise _apart("stream")
    rest = [{k: v for k, v in params.items() if k not in BEAM_OPTIONS} for params in many]
    plain = body.model_copy(update={"sampling_params": rest if many is given else rest[0]})
    requests, _ = translate.native_requests(plain, max_batch=1)
    _check_alone(requests[0], translate.native_name)
    return Asked(requests[0], **beam)


def completion_search(body: CompletionBody) -> Asked | None:
    """The same for a /v1/completions body, where `n` is the width of the beam."""
    if not body.use_beam_search:
        return None
    logprobs = body.logprobs is not None
    for name, asks in (("stream", body.stream), ("echo", body.echo), ("logprobs", logprobs)):
        if asks:
            raise _apart(name)
    requests = translate.completion_requests(body.model_copy(update={"n": 1}))
    if len(requests) > 1:
        raise _wrong("prompt", "takes a single prompt with a beam search")
    _check_alone(requests[0], translate.completion_name)
    return Asked(requests[0], body.n, body.length_penalty)


def _check_alone(request: GenerateRequest, rename: Rename) -> None:
    """Raises InvalidRequest for an option that a search would not act on.

    A temperature of 0 is taken: a search draws nothing.
    """
    if request.grammar is not None:
        raise _apart(request.grammar.param)
    plain, given = GenerateRequest(), msgspec.structs.asdict(request.sampling)
    usual = msgspec.structs.asdict(SamplingParams()) | {name: given[name] for name in TAKEN}
    given |= {"temperature": given["temperature"] or usual["temperature"]}
    for name, field in (
        ("return_logprob", "return_logprob"),
        ("logprob_start_len", "logprob_start"),
        ("top_logprobs_num", "top_logprobs"),
        ("return_text_in_logprobs", "return_text_in_logprobs"),
        ("require_reasoning", "reasoning"),
    ):
        given[name], usual[name] = getattr(request, field), getattr(plain, field)
    for name, value in given.items():
        if value != usual[name]:
            raise _apart(rename(name))


def _apart(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name} does not go together with a beam search", param=name, code="unsupported_parameter"
    )


def _wrong(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {what}", param=name, code="invalid_value")


# --- the search -----------------------------------------------------------------------------------


async def find(
    request: Request,
    service: Service,
    asked: Asked,
    rename: Rename,
    *,
    made: str,
    rid: str | list[str] | None,
) -> list[Reply]:
    """The native replies to a search, best first; it ends when the client goes away.

    Ended by its time or by /abort_request, it gives the hypotheses that there are by then. Raises
    RequestError with the client's field names.
    """
    try:
        options = _options(service, asked)
    except InvalidRequest as error:
        raise renamed(error, rename) from None
    job = await prepare(service, [asked.request], rename, made=made, rid=rid)
    first = job.replies[0].submit
    search = BeamSearch(service, first, options)
    with claimed(service, job), service.holding(first.request_id, search.abort):
        replies = await unless_gone(request, search.run())
    latency_s = service.clock.now() - search.started_s
    for reply in replies:
        meta = reply["meta_info"]
        if not service.serve_config.cache_preview:
            meta["cache_miss_reason"] = told_reason(meta["cache_miss_reason"])
        meta |= {"id": job.names.ids[0], "e2e_latency": latency_s}
    return replies


def _options(service: Service, asked: Asked) -> BeamOptions:
    """The checked options. Without a limit on new tokens the context is the limit."""
    info, sampling = service.info, asked.request.sampling
    most = sampling.max_new_tokens
    options = BeamOptions(
        asked.beam_width,
        info.context_length if most is None else most,
        () if sampling.ignore_eos else info.eos_token_ids,
        asked.length_penalty,
        asked.early_stopping,
    )
    check_options(options, min(MAX_BEAM_WIDTH, service.serve_config.max_batch), info.vocab_size)
    return options


class BeamSearch:
    """A search above the engine's process. `first` is the client's request, as checked."""

    def __init__(self, service: Service, first: Submit, options: BeamOptions) -> None:
        limit = first.sampling.max_new_tokens
        assert limit is not None, "the intake has set it"
        self.started_s = service.clock.now()
        self._service, self._first = service, first
        self._search = Search(replace(options, max_new_tokens=limit), len(first.token_ids) // 4)
        self._top = min(options.n_candidates, service.info.vocab_size)
        self._open: list[str] = []

    async def run(self) -> list[Reply]:
        """Search to the end. Cancelled, or at an error, it aborts what runs."""
        search, metrics = self._search, self._service.metrics
        with metrics.counted(lambda: [search.finish_reason(found) for found in search.best()]):
            while not search.over:
                await self._step()
        replies = search.replies(self._service.tokenizer)
        metrics.missed(replies[0]["meta_info"]["cache_miss_reason"])
        return replies

    async def abort(self) -> None:
        """End the search with what there is, also when it is between two steps."""
        self._search.cut = dict(ABORTED)
        for request_id in self._open:
            await self._service.client.abort(request_id)

    async def _step(self) -> None:
        asked = [self._ask(found.token_ids) for found in self._search.beams.running]
        self._open = [assembler.submit.request_id for assembler in asked]
        await together([self._service.client.complete(assembler) for assembler in asked])
        self._search.take([assembler.meta_info() for assembler in asked])

    def _ask(self, token_ids: Sequence[int]) -> ReplyAssembler:
        """The request for the likeliest tokens after a hypothesis."""
        first, now = self._first, self._service.clock.now()
        left_s = None
        if first.timeout_s is not None:
            left_s = max(self.started_s + first.timeout_s - now, LEAST_TIME_S)
        submit = of_step(first, token_ids, self._top, left_s)
        return ReplyAssembler(submit, None, self._service.info, now=now)


def of_step(first: Submit, token_ids: Sequence[int], top: int, left_s: float | None) -> Submit:
    """What the engine is asked about one hypothesis of the request `first`.

    It is queued, charged and cached as the client's request is.
    """
    return msgspec.structs.replace(
        first,
        request_id=new_id(),
        token_ids=first.token_ids + pack_ids(tuple(token_ids)),
        sampling=ONE_TOKEN,
        return_logprob=True,
        top_logprobs=top,
        timeout_s=left_s,
    )


async def together(works: Sequence[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """The results of all, run at once. The first error, or cancellation, ends all of them."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- OpenAI's answer ------------------------------------------------------------------------------


def completion(envelope: Envelope, replies: Sequence[Reply]) -> dict[str, Any]:
    """The body of /v1/completions: a choice for each hypothesis, best first, with its `score`.

    `usage` counts the tokens of the choices; those of hypotheses that were given up are in none.
    """
    metas = [reply["meta_info"] for reply in replies]
    choices = [
        {
            "index": place,
            "text": reply["text"],
            "logprobs": None,
            "finish_reason": reply["meta_info"]["finish_reason"]["type"],
            "matched_stop": reply["meta_info"]["finish_reason"].get("matched"),
            "score": reply["meta_info"]["score"],
        }
        for place, reply in enumerate(replies)
    ]
    prompt, made = metas[0]["prompt_tokens"], sum(meta["completion_tokens"] for meta in metas)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": metas[0]["cached_tokens"]},
    }
    return envelope.body("text_completion", choices) | {"usage": usage}
