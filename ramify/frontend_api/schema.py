"""What clients may send: pydantic models of every request body, strict about types and names.

A field is in one of three classes. Declared fields act. `NO_OPS` are known to clients and change
nothing at the values listed: those are taken, any other value is refused by name. Every other
field is refused too: what would be ignored in silence is a wrong answer that looks right.

`null` means "not given", for every field.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ramify.frontend_api.field_types import (
    Accepts,
    Duration,
    FlatIds,
    Identifier,
    Ids,
    LogitBias,
    Priority,
    ProgramId,
    Prompt,
    Salt,
    Text,
)
from ramify.srt.intake import MAX_TREE_NODES

MAX_MESSAGES = 8192
MAX_PARTS = 1024
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
BEAM_OPTIONS = ("beam_width", "length_penalty", "early_stopping")  # of the sampling_params


def anything(value: Any) -> bool:
    return True


def only(*values: Any) -> Accepts:
    """Accepts exactly these values; True is not 1 here."""
    return lambda given: any(type(given) is type(value) and given == value for value in values)


# Asks for something we do not have, unless empty.
UNSUPPORTED: dict[str, Accepts] = {
    "stop_regex": only("", []),
    "lora_path": only(""),
    "session_params": only({}),
    "custom_logit_processor": only(""),
    "custom_params": only({}),
    "return_hidden_states": only(False),
}
OPENAI_NO_OPS: dict[str, Accepts] = UNSUPPORTED | {
    "user": anything,
    "metadata": anything,
    "safety_identifier": anything,
    "prompt_cache_key": anything,
    "store": only(False),
    "service_tier": only("auto", "default"),
}
COMPLETION_NO_OPS: dict[str, Accepts] = OPENAI_NO_OPS | {"suffix": only("")}
CHAT_NO_OPS: dict[str, Accepts] = OPENAI_NO_OPS | {
    "tools": only([]),
    "tool_choice": only("none", "auto"),
    "parallel_tool_calls": only(True, False),
    "functions": only([]),
    "function_call": only("none", "auto"),
    "modalities": only(["text"]),
    "audio": only(),
    "prediction": only(),
    "web_search_options": only(),
    "verbosity": only("medium"),
    "stream_reasoning": only(True),
    "chat_template": only(),
}
MESSAGE_NO_OPS: dict[str, Accepts] = {
    "refusal": only(""),
    "annotations": only([]),
    "audio": only(),
    "function_call": only(),
    "tool_calls": only([]),
}


class Body(BaseModel):
    """Base of all bodies: exact types, finite numbers, no unknown names."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
    no_ops: ClassVar[dict[str, Accepts]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_what_has_no_effect(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, accepts in cls.no_ops.items():
            if data.get(name) is not None and not accepts(data[name]):
                raise wrong(name, f"{name} is not supported", "unsupported_parameter")
        known = cls.model_fields.keys() | cls.no_ops.keys()
        return {
            name: value
            for name, value in data.items()
            if name not in cls.no_ops and not (value is None and name in known)
        }


def wrong(param: str, message: str, code: str = "invalid_value") -> PydanticCustomError:
    """A mistake that no single field can know alone, named after the field to change."""
    return PydanticCustomError(
        "named", "{message}", {"message": message, "param": param, "code": code}
    )


# --- building blocks ----------------------------------------------------------------------------


def _check_one(text: object, input_ids: object) -> None:
    if (text is None) == (input_ids is None):
        raise wrong("text", "give exactly one of text and input_ids")


class StreamOptions(Body):
    """`include_usage` adds a last chunk with the usage; `continuous_usage_stats` one per chunk."""

    no_ops = {"include_obfuscation": only(False)}

    include_usage: bool = False
    continuous_usage_stats: bool = False


# --- native routes ------------------------------------------------------------------------------


class GenerateBody(Body):
    """POST /generate. Ranges are checked where the runtime's requests are made.

    An option that takes a list too takes one entry for each prompt of a batch. With `beam_width`
    among the `sampling_params` it is a beam search: see `beams`.
    """

    no_ops = UNSUPPORTED

    text: Text | None = None
    input_ids: Ids | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] = {}
    rid: Identifier | list[Identifier] | None = None
    stream: bool = False
    return_logprob: bool | list[bool] = False
    logprob_start_len: int | list[int] = -1
    top_logprobs_num: int | list[int] = 0
    return_text_in_logprobs: bool = False
    require_reasoning: bool | list[bool] = False
    extra_key: Salt = ""
    cache_salt: Salt = ""
    priority: Priority = 0
    program_id: ProgramId = ""
    timeout_s: Duration | None = None

    @field_validator("sampling_params")
    @classmethod
    def _null_is_not_given(cls, value: Any) -> Any:
        """Drop it for the options of a search: of its own options the runtime knows best."""
        if isinstance(value, list):
            return [cls._null_is_not_given(params) for params in value]
        return {k: v for k, v in value.items() if v is not None or k not in BEAM_OPTIONS}

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        _check_one(self.text, self.input_ids)
        return self


class PrefixBody(Body):
    """POST /cache/unpin: a prefix, named as a request that begins with it names it."""

    text: str | None = None
    input_ids: FlatIds | None = None
    extra_key: Salt = ""
    cache_salt: Salt = ""

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        _check_one(self.text, self.input_ids)
        return self


class PinBody(PrefixBody):
    """POST /cache/pin: a prefix, and for how many seconds it is kept."""

    ttl_s: Duration


class TreeQuery(BaseModel):
    """GET /cache/tree: how many nodes are shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: Annotated[int, Field(ge=1, le=MAX_TREE_NODES)] = 100


class AbortBody(Body):
    """POST /abort_request: one request by its rid, or all."""

    rid: Identifier = ""
    abort_all: bool = False

    @model_validator(mode="after")
    def _something(self) -> Self:
        if bool(self.rid) == self.abort_all:
            raise wrong("rid", "give either rid, or abort_all as true")
        return self


# --- OpenAI routes ------------------------------------------------------------------------------


class Sampled(Body):
    """What both OpenAI routes take. Ranges are checked once, where SamplingParams are made."""

    model: Identifier
    n: int = 1
    seed: int | None = None
    stop: str | list[str] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    logit_bias: LogitBias = {}
    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    # extensions
    rid: Identifier | list[Identifier] | None = None
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: list[int] = []
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    cache_salt: Salt = ""
    extra_key: Salt = ""
    priority: Priority = 0
    program_id: ProgramId = ""
    timeout_s: Duration | None = None
    # what the output keeps to, at most one of them: read by `structured`
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    regex: Any = None
    json_schema: Any = None
    ebnf: Any = None
    structural_tag: Any = None

    @model_validator(mode="after")
    def _options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "stream_options is only allowed with stream")
        return self


class CompletionBody(Sampled):
    """POST /v1/completions."""

    no_ops = COMPLETION_NO_OPS

    prompt: Prompt
    max_tokens: int = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = None
    best_of: int | None = None
    use_beam_search: bool = False  # `n` is its width
    length_penalty: float = 1.0

    @model_validator(mode="after")
    def _penalty_needs_search(self) -> Self:
        if "length_penalty" in self.model_fields_set and not self.use_beam_search:
            raise wrong("length_penalty", "length_penalty needs use_beam_search to be true")
        return self

    @model_validator(mode="after")
    def _best_of_is_n(self) -> Self:
        if self.best_of not in (None, self.n):
            raise wrong("best_of", "best_of is only supported equal to n", "unsupported_parameter")
        return self


class TextPart(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One turn. Which roles a model takes is for its template to say."""

    no_ops = MESSAGE_NO_OPS

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS)]
    reasoning_content: str | None = None
    name: Identifier | None = None
    tool_call_id: Identifier | None = None


class TemplateOptions(Body):
    """What a client may tell the chat template."""

    enable_thinking: bool | None = None


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    no_ops = CHAT_NO_OPS

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    separate_reasoning: bool = True
    reasoning_effort: Literal["none"] | None = None
    chat_template_kwargs: TemplateOptions = TemplateOptions()

    @property
    def enable_thinking(self) -> bool | None:
        """What the client says of thinking; None: what the model's template does by itself."""
        said = self.chat_template_kwargs.enable_thinking
        return False if said is None and self.reasoning_effort == "none" else said

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise wrong("max_tokens", "give only one of max_tokens and max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "top_logprobs needs logprobs to be true")
        if self.reasoning_effort == "none" and self.chat_template_kwargs.enable_thinking:
            raise wrong("reasoning_effort", "reasoning_effort is none, but thinking is enabled")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise wrong(
                "continue_final_message",
                "continue_final_message needs a last message of the assistant",
            )
        return self
