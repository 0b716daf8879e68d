"""From what a user wrote to validated `Submit`s: the only gate of the runtime, pure and torch-free.

Everything a client controls is checked here, against the width of the model's logits and against
fixed limits, before a request gets an id. The engine may then trust what it receives.
"""

import difflib
import itertools
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from ramify.srt import constraints
from ramify.srt.checks import (
    check_bool,
    check_duration,
    check_int,
    check_short,
    check_unicode,
    invalid,
)
from ramify.srt.grammar import GrammarSpec
from ramify.srt.messages import ModelInfo, Submit, pack_ids
from ramify.srt.sampling_params import MAX_SEED, SamplingParams

MAX_CHARS_PER_TOKEN = 64  # a longer text is refused before it is tokenised
MAX_TOP_LOGPROBS = 20
MAX_NAMESPACE_CHARS = 256
SEED_STEP = 0x1E3779B97F4A7C15  # odd, so 2**63 sequences of one seed all differ
MAX_BATCH = 1024
MAX_ID_CHARS = 256
MAX_PRIORITY = 2**31 - 1
MAX_PROGRAM_ID_CHARS = 128
MAX_TREE_NODES = 1000

_FIELDS = {item.name: item for item in msgspec.structs.fields(SamplingParams)}
_OPTION_FIELDS = {
    "namespace": "namespace",
    "return_logprob": "return_logprob",
    "logprob_start_len": "logprob_start",
    "top_logprobs_num": "top_logprobs",
    "return_text_in_logprobs": "return_text_in_logprobs",
    "priority": "priority",
    "program_id": "program_id",
    "timeout_s": "timeout_s",
    "require_reasoning": "reasoning",
}


class TextEncoder(Protocol):
    """The half of a tokenizer that reads text."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt, as a user gave it. Exactly one of `text` and `input_ids` is set.

    `logprob_start` is the first prompt position whose log-probability is wanted; -1: none, only
    those of the output. It and `top_logprobs` act only with `return_logprob`. `priority`,
    `program_id` and `timeout_s` are those of `Submit`. The output keeps to the `grammar`, whose
    limits have been checked; with `reasoning` it begins with thinking, to which the grammar does
    not apply.
    """

    text: str | None = None
    input_ids: Sequence[int] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    namespace: str = ""
    return_logprob: bool = False
    logprob_start: int = -1
    top_logprobs: int = 0
    return_text_in_logprobs: bool = False
    priority: int = 0
    program_id: str = ""
    timeout_s: float | None = None
    grammar: GrammarSpec | None = None
    reasoning: bool = False


def seed_source(seed: int | None) -> Callable[[], int]:
    """Gives the seed of a request that brings none: always `seed`, or a fresh random one."""
    return (lambda: secrets.randbelow(MAX_SEED + 1)) if seed is None else (lambda: seed)


def id_source(rid: object = None) -> Callable[[], str]:
    """Gives the ids of one prompt's sequences: `rid`, `rid`_1, `rid`_2, ...; random without one.

    Raises InvalidRequest for an id that is no short text.
    """
    if rid is None:
        return lambda: uuid.uuid4().hex
    if not isinstance(rid, str) or not 1 <= len(rid) <= MAX_ID_CHARS:
        raise invalid("rid", f"must be a text of 1 to {MAX_ID_CHARS} characters")
    check_unicode("rid", rid)
    numbers = itertools.count()
    return lambda: f"{rid}_{i}" if (i := next(numbers)) else rid


def id_sources(rid: object, size: int | None) -> list[Callable[[], str]]:
    """An `id_source` for each prompt of a batch of `size`; None: there is a single prompt.

    For a batch, `rid` is a list with one for each, or a prefix. Raises InvalidRequest.
    """
    if size is None:
        return [id_source(rid)]
    if isinstance(rid, str):
        rid = [f"{rid}_{i}" for i in range(size)]
    return [id_source(one) for one in _each("rid", rid, size)]


# --- sampling parameters --------------------------------------------------------------------------


def sampling_params(
    raw: Mapping[str, Any] | None, defaults: SamplingParams | None = None
) -> SamplingParams:
    """The options in `raw` over `defaults`. Ranges are checked later, against the model.

    None for an option that is never null means its default; `stop` may be one string; keys of
    `logit_bias` may be strings, as JSON has them; constraints are left to `constraints`. Raises
    InvalidRequest naming the option.
    """
    defaults = defaults or SamplingParams()
    if raw is None:
        return defaults
    if not isinstance(raw, Mapping):
        raise invalid("sampling_params", "must be an object of options")
    given = {name: _option(name, value) for name, value in raw.items() if _is_given(name, value)}
    return msgspec.structs.replace(defaults, **given)


def _is_given(name: object, value: object) -> bool:
    if name in constraints.NAMES:
        return False  # see `constraints.from_options`
    if name == "stop_regex":
        if value:
            raise invalid("stop_regex", "is not available: give the stop strings in stop")
        return False
    if name not in _FIELDS:
        near = difflib.get_close_matches(str(name), _FIELDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise invalid(str(name)[:64], f"is not a sampling option{hint}", code="unknown_parameter")
    return value is not None or type(None) in getattr(_FIELDS[str(name)].type, "__args__", ())


def _option(name: str, value: object) -> Any:
    """`value` as the type of the option `name`: no bool for a number, no float for an int."""
    if name == "stop" and isinstance(value, str):
        value = (value,)
    try:
        converted = msgspec.convert(value, _FIELDS[name].type, str_keys=name == "logit_bias")
    except msgspec.ValidationError as error:
        raise invalid(name, f"is of the wrong type: {error}") from error
    for text in converted if name == "stop" else ():
        check_unicode(name, text)
    return converted


# --- a batch of prompts ---------------------------------------------------------------------------


def generate_requests(
    *,
    text: object = None,
    input_ids: object = None,
    sampling: object = None,
    defaults: SamplingParams | None = None,
    max_batch: int = MAX_BATCH,
    **options: object,
) -> tuple[list[GenerateRequest], bool]:
    """The requests of one native call, and whether it asked for a single prompt.

    `text` is a string or a list of them, `input_ids` a list of ids or a list of such lists. Each
    of `sampling` (objects) and `options` (`namespace`, `return_logprob`, `logprob_start_len`,
    `top_logprobs_num`, `return_text_in_logprobs`, `priority`, `program_id`, `timeout_s`,
    `require_reasoning`) holds for all prompts, or is a list with one for each; None means its
    default. Raises InvalidRequest.
    """
    if (text is None) == (input_ids is None):
        raise invalid("text", "or input_ids must be given, and not both")
    name, prompts = ("text", text) if input_ids is None else ("input_ids", input_ids)
    single = not isinstance(prompts, list | tuple) or (
        name == "input_ids" and not (prompts and isinstance(prompts[0], list | tuple))
    )
    many: Sequence[Any] = [prompts] if single else prompts  # type: ignore[assignment]
    if not 1 <= len(many) <= max_batch:
        raise invalid(name, f"takes 1 to {max_batch} prompts, got {len(many)}")
    size = None if single else len(many)
    params = _sampled(sampling, defaults, size)
    for key in options:
        if key not in _OPTION_FIELDS:
            raise invalid(key, "is not an option of a request", code="unknown_parameter")
    spread = {_OPTION_FIELDS[key]: _each(key, value, size) for key, value in options.items()}
    requests = []
    for i, prompt in enumerate(many):
        given = {key: values[i] for key, values in spread.items() if values[i] is not None}
        given |= {"sampling": params[i][0], "grammar": params[i][1]}
        requests.append(GenerateRequest(**{name: prompt}, **given))
    return requests, single


def _sampled(
    sampling: Any, defaults: SamplingParams | None, size: int | None
) -> Sequence[tuple[SamplingParams, GrammarSpec | None]]:
    """The options and the constraint of each prompt: read once where all have the same."""

    def read(raw: Any) -> tuple[SamplingParams, GrammarSpec | None]:
        return sampling_params(raw, defaults), constraints.from_options(raw or {})

    if isinstance(sampling, list | tuple):
        return [read(raw) for raw in _each("sampling_params", sampling, size)]
    return [read(sampling)] * (size or 1)


def _each(name: str, value: Any, size: int | None) -> Sequence[Any]:
    """One value for each prompt. `size` None: there is one prompt, and lists are not taken."""
    if size is None or not isinstance(value, list | tuple):
        return [value] * (size or 1)
    if len(value) != size:
        raise invalid(name, f"must hold one entry for each of the {size} prompts")
    return value


# --- one prompt -----------------------------------------------------------------------------------


def prefix_ids(
    text: str | None,
    input_ids: Sequence[int] | None,
    namespace: str,
    tokenizer: TextEncoder | None,
    info: ModelInfo,
) -> bytes:
    """The packed tokens of a prefix to pin or unpin: those that a request with it begins with.

    A text's last token may be another one once the text goes on. Raises InvalidRequest.
    """
    check_short("namespace", namespace, MAX_NAMESPACE_CHARS)
    request = GenerateRequest(text=text, input_ids=input_ids)
    return pack_ids(tuple(_prompt_ids(request, tokenizer, info)))


def check_ttl(ttl_s: float) -> None:
    """Raises InvalidRequest for a time that no prefix can be pinned for."""
    check_duration("ttl_s", ttl_s)


def check_tree_limit(limit: int) -> None:
    """Raises InvalidRequest for a number of nodes that is not shown at once."""
    check_int("limit", limit, 1, MAX_TREE_NODES)


def to_submits(
    request: GenerateRequest,
    tokenizer: TextEncoder | None,
    info: ModelInfo,
    new_id: Callable[[], str],
    new_seed: Callable[[], int],
    account: str = "",
) -> list[Submit]:
    """One validated `Submit` for each of the request's `n` sequences.

    Sequence i samples with (seed + i * SEED_STEP) mod 2**63: the first keeps the seed itself, so
    it gives the same tokens whatever `n` is. Raises InvalidRequest naming the field.
    """
    request.sampling.validate(info.vocab_size)
    _check_extras(request)
    if request.reasoning and info.reasoning_parser is None:
        raise invalid("require_reasoning", "needs an engine with a reasoning_parser")
    if request.grammar is not None and tokenizer is None:
        raise invalid(request.grammar.param, "needs a tokenizer, and this model has none")
    token_ids = _prompt_ids(request, tokenizer, info)
    most = _max_new_tokens(request.sampling, len(token_ids), info.context_length)
    if request.logprob_start >= len(token_ids):
        right = f"must be less than the {len(token_ids)} tokens of the prompt"
        raise invalid("logprob_start_len", f"{right}, got {request.logprob_start}")
    seed = request.sampling.sampling_seed
    seed = new_seed() if seed is None else seed
    packed = pack_ids(tuple(token_ids))
    return [
        Submit(
            request_id=new_id(),
            token_ids=packed,
            sampling=msgspec.structs.replace(
                request.sampling,
                n=1,
                max_new_tokens=most,
                sampling_seed=(seed + i * SEED_STEP) & MAX_SEED,
            ),
            namespace=request.namespace,
            return_logprob=request.return_logprob,
            logprob_start=request.logprob_start if request.return_logprob else -1,
            top_logprobs=request.top_logprobs if request.return_logprob else 0,
            priority=request.priority,
            program_id=request.program_id,
            timeout_s=request.timeout_s,
            account=account,
            grammar=request.grammar,
            reasoning=request.reasoning,
        )
        for i in range(request.sampling.n)
    ]


def _check_extras(request: GenerateRequest) -> None:
    for name, value, low, high in (
        ("logprob_start_len", request.logprob_start, -1, 2**31 - 1),
        ("top_logprobs_num", request.top_logprobs, 0, MAX_TOP_LOGPROBS),
        ("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY),
    ):
        check_int(name, value, low, high)
    check_bool("return_logprob", request.return_logprob)
    check_bool("require_reasoning", request.reasoning)
    check_short("namespace", request.namespace, MAX_NAMESPACE_CHARS)
    check_short("program_id", request.program_id, MAX_PROGRAM_ID_CHARS)
    if request.timeout_s is not None:
        check_duration("timeout_s", request.timeout_s)


def _prompt_ids(
    request: GenerateRequest, tokenizer: TextEncoder | None, info: ModelInfo
) -> Sequence[int]:
    if (request.text is None) == (request.input_ids is None):
        raise invalid("text", "or input_ids must be given, and not both")
    if request.input_ids is not None:
        ids = _checked_ids(request.input_ids, info)
        name = "input_ids"
    else:
        ids = _tokenised(request.text, tokenizer, info)
        name = "text"
    if not ids:
        raise invalid(name, "must hold at least one token", code="empty_prompt")
    _check_length(name, len(ids), info.context_length)
    return ids


def _checked_ids(ids: Sequence[int], info: ModelInfo) -> Sequence[int]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
        raise invalid("input_ids", "must be a list of token ids")
    _check_length("input_ids", len(ids), info.context_length)
    for place, token_id in enumerate(ids):
        if type(token_id) is not int or not 0 <= token_id < info.vocab_size:
            right = f"takes integers from 0 to {info.vocab_size - 1}"
            raise invalid("input_ids", f"{right}, got {token_id!r:.40} at position {place}")
    return ids


def _tokenised(text: object, tokenizer: TextEncoder | None, info: ModelInfo) -> list[int]:
    if not isinstance(text, str):
        raise invalid("text", "must be a text")
    if tokenizer is None:
        raise invalid("text", "cannot be read: this model has no tokenizer; send input_ids")
    most = MAX_CHARS_PER_TOKEN * info.context_length
    if len(text) > most:
        right = f"may hold at most {most} characters for a context of {info.context_length} tokens"
        raise invalid("text", f"{right}, got {len(text)}", code="context_length_exceeded")
    check_unicode("text", text)
    return tokenizer.encode(text)


def _check_length(name: str, length: int, context_length: int) -> None:
    if length >= context_length:
        what = f"holds {length} tokens, but the context is {context_length}"
        raise invalid(
            name, f"{what}: send at most {context_length - 1}", code="context_length_exceeded"
        )


def _max_new_tokens(sampling: SamplingParams, prompt_length: int, context_length: int) -> int:
    room = context_length - prompt_length
    most = room if sampling.max_new_tokens is None else sampling.max_new_tokens
    if most > room:
        what = f"of {most} and a prompt of {prompt_length} tokens exceed the context"
        right = f"of {context_length}; at most {room} fit"
        raise invalid("max_new_tokens", f"{what} {right}", code="context_length_exceeded")
    if sampling.min_new_tokens > most:
        raise invalid("min_new_tokens", f"may be at most {most} here")
    return most
