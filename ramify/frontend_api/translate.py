"""From checked bodies to the runtime's requests. Pure: no I/O, no tokenizer, no engine.

The runtime speaks its own names (`max_new_tokens`); an error about one of them is told to the
client under the name the client used: that is what `renamed` is for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ramify.frontend_api.schema import (
    ChatBody,
    ChatMessage,
    CompletionBody,
    GenerateBody,
    Sampled,
)
from ramify.frontend_api.structured import READERS, grammar_of
from ramify.srt import constraints
from ramify.srt.errors import InvalidRequest
from ramify.srt.grammar import GrammarSpec
from ramify.srt.intake import (
    MAX_NAMESPACE_CHARS,
    GenerateRequest,
    generate_requests,
    sampling_params,
)
from ramify.srt.reasoning import PARSERS, Markers
from ramify.srt.sampling_params import SamplingParams

Rename = Callable[[str], str]

# Options of the OpenAI bodies that have the runtime's name; the others are in OPENAI_NAMES.
SHARED = (
    "n",
    "stop",
    "stop_token_ids",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "ignore_eos",
    "skip_special_tokens",
    "no_stop_trim",
)
OPENAI_NAMES = {
    "sampling_seed": "seed",
    "min_new_tokens": "min_tokens",
    "top_logprobs_num": "logprobs",
    "namespace": "cache_salt",
}
MAX_GRAMMAR_CHARS = 16 * 2**20  # of all sequences of one body


def renamed(error: InvalidRequest, rename: Rename) -> InvalidRequest:
    """The same error about the field as the client knows it."""
    if error.param is None:
        return error
    param = rename(error.param)
    message = error.message
    if message.startswith(error.param):
        message = param + message.removeprefix(error.param)
    return InvalidRequest(message, param=param, code=error.code)


def namespace(extra_key: str, cache_salt: str) -> str:
    """One namespace of two keys, such that no two pairs give the same. Raises InvalidRequest."""
    if not extra_key and not cache_salt:
        return ""
    joined = f"{len(extra_key)}:{extra_key}{cache_salt}"
    if len(joined) > MAX_NAMESPACE_CHARS:
        most = MAX_NAMESPACE_CHARS - 4
        raise InvalidRequest(
            f"extra_key and cache_salt take at most {most} characters together",
            param="cache_salt" if cache_salt else "extra_key",
            code="invalid_value",
        )
    return joined


@dataclass(frozen=True)
class Names:
    """What the client calls its sequences: one id each, prompt by prompt, and names for groups."""

    ids: list[str]
    groups: dict[str, list[int]]  # name to the places of its sequences


def names(rid: str | list[str] | None, made: str, sizes: Sequence[int]) -> Names:
    """The names of a request whose prompts have `sizes` sequences; `made` is used without `rid`.

    A batch takes a list of ids, or one as a prefix. Every id is a name, and so are each prompt's
    id and the prefix: all may be given to /abort_request. Raises InvalidRequest.
    """
    if isinstance(rid, list):
        if len(rid) != len(sizes) or len(set(rid)) != len(rid):
            right = f"takes one string, or {len(sizes)} different ones: one for each prompt"
            raise InvalidRequest(f"rid {right}", param="rid", code="invalid_value")
        bases = rid
    else:
        base = rid or made
        bases = [base] if len(sizes) == 1 else [f"{base}_{place}" for place in range(len(sizes))]
    ids: list[str] = []
    groups: dict[str, list[int]] = {}
    for base, size in zip(bases, sizes, strict=True):
        places = list(range(len(ids), len(ids) + size))
        ids += [base] if size == 1 else [f"{base}_{j}" for j in range(size)]
        groups[base] = places
        groups |= {ids[place]: [place] for place in places}
    if not isinstance(rid, list):
        groups[rid or made] = list(range(len(ids)))
    return Names(ids, groups)


def check_batch(sizes: Sequence[int], max_batch: int, n_name: str) -> None:
    """Raises InvalidRequest when a body asks for more sequences than the server takes at once."""
    if sum(sizes) > max_batch:
        raise InvalidRequest(
            f"the prompts and n make {sum(sizes)} sequences; at most {max_batch} are taken at once",
            param=n_name if len(sizes) == 1 else None,
            code="batch_too_large",
        )


def check_grammars(requests: Sequence[GenerateRequest]) -> None:
    """Raises InvalidRequest when the constraints of all sequences are too much to send on."""
    size = sum(len(r.grammar.text) * r.sampling.n for r in requests if r.grammar is not None)
    if size > MAX_GRAMMAR_CHARS:
        right = f"make {size} characters for all sequences; at most {MAX_GRAMMAR_CHARS} are taken"
        raise InvalidRequest(f"the constraints {right}", code="grammar_too_large")


# --- native -------------------------------------------------------------------------------------


def native_requests(body: GenerateBody, max_batch: int) -> tuple[list[GenerateRequest], bool]:
    """One request for each prompt of a /generate body, and whether the reply is one object."""
    try:
        requests, single = generate_requests(
            text=body.text,
            input_ids=body.input_ids,
            sampling=body.sampling_params,
            max_batch=max_batch,
            namespace=namespace(body.extra_key, body.cache_salt),
            return_logprob=body.return_logprob,
            logprob_start_len=body.logprob_start_len,
            top_logprobs_num=body.top_logprobs_num,
            return_text_in_logprobs=body.return_text_in_logprobs,
            require_reasoning=body.require_reasoning,
            **_scheduling(body),
        )
    except InvalidRequest as error:
        raise renamed(error, native_name) from None
    requests = [_named_natively(request) for request in requests]
    return requests, single and requests[0].sampling.n == 1


def _named_natively(request: GenerateRequest) -> GenerateRequest:
    """The same, its constraint named as the client knows it: the engine's errors say that name."""
    if request.grammar is None:
        return request
    param = native_name(request.grammar.param)
    return replace(request, grammar=msgspec.structs.replace(request.grammar, param=param))


def native_name(param: str) -> str:
    """A field of the runtime as /generate names it: what is no field of the body is an option."""
    if param == "namespace":
        return "cache_salt"
    named = param in GenerateBody.model_fields or param.startswith("sampling_params.")
    return param if named else f"sampling_params.{param}"


def _scheduling(body: GenerateBody | Sampled) -> dict[str, Any]:
    """What a body says of when its requests run: the same fields on all routes."""
    return {name: getattr(body, name) for name in ("priority", "program_id", "timeout_s")}


def _split(prompt: str | list[str] | list[int] | list[list[int]]) -> list[Any]:
    """The prompts of a body: a string or a flat list of ids is one prompt."""
    one = isinstance(prompt, str) or isinstance(prompt[0], int)
    return [prompt] if one else list(prompt)


# --- OpenAI -------------------------------------------------------------------------------------


def completion_requests(body: CompletionBody) -> list[GenerateRequest]:
    """One request for each prompt of a /v1/completions body."""
    sampling = _openai_sampling(body, body.max_tokens, "max_tokens")
    grammar = _grammar(body)
    return [
        GenerateRequest(
            text=prompt if isinstance(prompt, str) else None,
            input_ids=None if isinstance(prompt, str) else prompt,
            sampling=sampling,
            namespace=namespace(body.extra_key, body.cache_salt),
            return_logprob=body.logprobs is not None,
            logprob_start=0 if body.echo and body.logprobs is not None else -1,
            top_logprobs=body.logprobs or 0,
            grammar=grammar,
            **_scheduling(body),
        )
        for prompt in _split(body.prompt)
    ]


def completion_name(param: str) -> str:
    """A field of the runtime as /v1/completions names it."""
    names = {"text": "prompt", "input_ids": "prompt", "max_new_tokens": "max_tokens"}
    return (OPENAI_NAMES | names | {"beam_width": "n"}).get(param, param)


def chat_request(
    body: ChatBody, prompt_ids: Sequence[int], reasoning_parser: str | None = None
) -> GenerateRequest:
    """The request of a chat body whose messages became `prompt_ids`."""
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return GenerateRequest(
        input_ids=prompt_ids,
        sampling=_openai_sampling(body, limit, _limit_name(body)),
        namespace=namespace(body.extra_key, body.cache_salt),
        return_logprob=body.logprobs,
        top_logprobs=body.top_logprobs,
        grammar=_grammar(body),
        reasoning=reasoning_parser is not None and _thinks(body, PARSERS[reasoning_parser]),
        **_scheduling(body),
    )


def _thinks(body: ChatBody, markers: Markers) -> bool:
    """Whether the answer begins with thinking. A message to continue may have ended it."""
    if body.enable_thinking is False:
        return False
    return not (body.continue_final_message and markers.end in _content(body.messages[-1]))


def template_variables(body: ChatBody) -> dict[str, Any]:
    """What the chat template is told beside the messages."""
    said = body.enable_thinking
    return {} if said is None else {"enable_thinking": said}


def chat_name(body: ChatBody) -> Rename:
    """Gives a field of the runtime as this chat body names it."""
    names = {"text": "messages", "input_ids": "messages", "max_new_tokens": _limit_name(body)}
    return lambda param: (OPENAI_NAMES | names).get(param, param)


def chat_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as a chat template reads them: text parts of one message are joined by a line."""
    return [
        message.model_dump(exclude={"content"}, exclude_none=True) | {"content": _content(message)}
        for message in messages
    ]


def _content(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content)


def _limit_name(body: ChatBody) -> str:
    return "max_tokens" if body.max_tokens is not None else "max_completion_tokens"


def _openai_sampling(body: Sampled, limit: int | None, limit_name: str) -> SamplingParams:
    raw = {name: getattr(body, name) for name in SHARED}
    raw |= {
        "max_new_tokens": limit,
        "min_new_tokens": body.min_tokens,
        "sampling_seed": body.seed,
    }
    try:
        return sampling_params(raw)
    except InvalidRequest as error:
        names = OPENAI_NAMES | {"max_new_tokens": limit_name}
        raise renamed(error, lambda param: names.get(param, param)) from None


def _grammar(body: Sampled) -> GrammarSpec | None:
    return grammar_of({name: getattr(body, name) for name in READERS})


def constrained(body: GenerateBody | Sampled) -> bool:
    """Whether a body may constrain its output; to read that takes time that grows with it."""
    if isinstance(body, Sampled):
        return any(getattr(body, name) is not None for name in READERS)
    given = body.sampling_params
    many = given if isinstance(given, list) else [given]
    return any(name in params for params in many for name in constraints.NAMES)
