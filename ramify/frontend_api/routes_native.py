"""SGLang's native routes: /generate and the routes that ask about or act on the engine."""

import asyncio
import contextlib
import dataclasses
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

import ramify
from ramify.frontend_api import beams, metrics, translate
from ramify.frontend_api import body as bodies
from ramify.frontend_api.answers import NativeAnswer
from ramify.frontend_api.running import follow, new_id, prepare, respond, translated
from ramify.frontend_api.schema import AbortBody, GenerateBody
from ramify.frontend_api.service import Counted, Service, Serving
from ramify.frontend_api.sse import JSON
from ramify.srt.errors import InvalidRequest, Unavailable
from ramify.srt.intake import GenerateRequest
from ramify.srt.replies import model_info
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.workers.client import WHY_NOT, State

HEALTH_TIMEOUT_S = 20.0
MAX_FLUSH_WAIT_S = 60.0
FLUSH_POLL_S = 0.05
METRICS_TIMEOUT_S = 5.0

router = APIRouter()


@router.api_route("/generate", methods=["POST", "PUT"], dependencies=[Counted])
async def generate(request: Request, service: Serving) -> Response:
    body = await bodies.read(request, GenerateBody)
    asked = beams.native_search(body)
    if asked is not None:
        name = translate.native_name
        return JSON(await beams.find(request, service, asked, name, made=new_id(), rid=body.rid))
    max_batch = service.serve_config.max_batch
    requests, single = await translated(body, lambda: translate.native_requests(body, max_batch))
    job = await prepare(service, requests, translate.native_name, made=new_id(), rid=body.rid)
    tells_all = service.serve_config.cache_preview
    answer = NativeAnswer(job.replies, job.names.ids, many=not single, tells_all=tells_all)
    return await respond(request, service, job, answer, stream=body.stream)


@router.post("/abort_request")
async def abort_request(request: Request, service: Serving) -> JSON:
    """End one request by the name its client gave it, or all of who asks.

    Unknown names are no error.
    """
    body = await bodies.read(request, AbortBody)
    ids = service.rids.everything() if body.abort_all else service.rids.find(body.rid)
    aborted = [request_id for request_id in ids if await service.abort(request_id)]
    return JSON({"aborted": len(aborted)})


@router.api_route("/flush_cache", methods=["GET", "POST"])
async def flush_cache(
    service: Serving, timeout: Annotated[float, Query(ge=0, le=MAX_FLUSH_WAIT_S)] = 0.0
) -> JSON:
    """Forget every cached prefix; waits up to `timeout` seconds for the engine to be idle."""
    deadline = service.clock.now() + timeout
    while not await service.client.flush():
        if service.clock.now() >= deadline:
            raise InvalidRequest(
                "the cache was not flushed: requests are running or waiting", code="engine_busy"
            )
        await asyncio.sleep(FLUSH_POLL_S)
    return JSON({"flushed": True})


@router.get("/health")
async def health(service: Serving) -> JSON:
    """200 when the engine takes requests. Asks nothing of the engine: it is cheap."""
    state = service.client.state
    if state is not State.READY:
        raise Unavailable(WHY_NOT[state], code=str(state))
    return JSON({"status": "ready"})


@router.get("/health_generate")
async def health_generate(service: Serving) -> JSON:
    """200 when the engine computes one token in time. Its prompt is cached apart from others."""
    probe = GenerateRequest(
        input_ids=[0], sampling=SamplingParams(max_new_tokens=1), namespace="health"
    )
    job = await prepare(service, [probe], str, made=new_id())
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            async for _ in follow(service, job.replies):
                pass
    except TimeoutError:
        raise Unavailable(f"no token within {HEALTH_TIMEOUT_S:g} s", code="engine_silent") from None
    return JSON({"status": "ready", "e2e_latency": job.replies[0].meta_info()["e2e_latency"]})


@router.get("/model_info")
@router.get("/get_model_info")
async def get_model_info(service: Serving) -> JSON:
    info = model_info(service.info, service.model_path, service.model_name, service.tokenizer)
    return JSON(info)


@router.get("/server_info")
@router.get("/get_server_info")
async def get_server_info(service: Serving) -> JSON:
    """All options, the engine's counters, and the invariants that are broken (none, we hope)."""
    return JSON(await server_info(service))


@router.get("/metrics")
async def get_metrics(service: Serving) -> Response:
    """For Prometheus. An engine that does not answer in time is down, and only that is told."""
    stats = None
    with contextlib.suppress(Unavailable, TimeoutError):
        async with asyncio.timeout(METRICS_TIMEOUT_S):
            stats = (await service.client.inspect(check=False)).stats
    page = metrics.text(metrics.families(service.metrics, stats))
    return Response(page, headers={"Content-Type": metrics.CONTENT_TYPE})


async def server_info(service: Service) -> dict[str, Any]:
    inspected = await service.client.inspect()
    stats = msgspec.to_builtins(inspected.stats)
    options = dataclasses.asdict(service.serve_config)
    del options["api_key"]  # nobody is told a key
    return {
        "version": ramify.__version__,
        "state": str(service.client.state),
        **options,
        **dataclasses.asdict(service.engine_config),
        "served_model_name": service.model_name,
        "model_info": msgspec.to_builtins(service.info),
        "stats": stats,
        "internal_states": [stats],  # where SGLang's clients look
        "violations": inspected.violations,
    }
