"""Everything that crosses a process, and nothing else does: tagged msgpack structs, never pickle.

    Hello, Submit, Abort, Flush, Inspect, Pin, Unpin, ShowTree           frontend --> engine
    Ready, Tokens, Finished, Rejected, Flushed, Inspected, Pinned, TreeShown     frontend <-- engine

Every `Submit` is answered by any number of `Tokens` and then exactly one `Finished` or `Rejected`.
An engine answers a step with one frame that holds a list of messages. Field order is the wire
format: append only.
"""

from array import array

import msgspec

from ramify.srt.errors import RequestError
from ramify.srt.grammar import GrammarSpec
from ramify.srt.sampling_params import SamplingParams


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of everything that crosses a process."""


def pack_ids(token_ids: list[int] | tuple[int, ...]) -> bytes:
    """Token ids as little-endian uint32, 4 bytes each. Raises OverflowError outside uint32."""
    return array("I", token_ids).tobytes()


def unpack_ids(packed: bytes) -> list[int]:
    """The inverse of `pack_ids`."""
    return array("I", packed).tolist()


# --- frontend to engine -------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """A frontend asks to be told when the model is ready. Answered by `Ready`."""


class Submit(Message, frozen=True):
    """One sequence to generate. `sampling.n` is 1 here: the frontend has expanded it.

    `logprob_start` is the first prompt position whose log-probability is wanted, -1 for none.
    Requests of different `namespace`s never share cached tokens. A larger `priority` goes first
    under the priority policies. Requests of one `program_id` belong together; "" is a program of
    its own. With `timeout_s`, the request is ended that many seconds after its arrival. `account`
    names the API key that it came with: accounts share the engine fairly. An output keeps to the
    `grammar`, with `reasoning` from where its thinking ends.
    """

    request_id: str
    token_ids: bytes  # pack_ids of the prompt
    sampling: SamplingParams
    namespace: str = ""
    return_logprob: bool = False
    logprob_start: int = -1
    top_logprobs: int = 0
    priority: int = 0
    program_id: str = ""
    timeout_s: float | None = None
    account: str = ""
    grammar: GrammarSpec | None = None
    reasoning: bool = False


class Abort(Message, frozen=True):
    """End a request now. Unknown or finished ids are ignored."""

    request_id: str


class Flush(Message, frozen=True):
    """Forget every cached prefix. Answered by `Flushed`; refused while requests run or wait."""

    call_id: int


class Inspect(Message, frozen=True):
    """Ask for the engine's counters. Answered by `Inspected`.

    With `check`, its invariants are checked too, which takes time that grows with the cache.
    """

    call_id: int
    check: bool = True


class Pin(Message, frozen=True):
    """Keep the computed part of a prefix from eviction for a time. Answered by `Pinned`."""

    call_id: int
    token_ids: bytes  # pack_ids
    namespace: str
    ttl_s: float


class Unpin(Message, frozen=True):
    """Give up the pin of exactly this prefix. Answered by `Pinned` with what was unpinned."""

    call_id: int
    token_ids: bytes
    namespace: str


class ShowTree(Message, frozen=True):
    """Ask for the nodes of the tree, most recently used first. Answered by `TreeShown`."""

    call_id: int
    limit: int


# --- engine to frontend -------------------------------------------------------------------------


class ModelInfo(msgspec.Struct, frozen=True):
    """What a frontend must know of the model to validate requests."""

    vocab_size: int  # width of the logits: the largest id that may be sent is one less
    context_length: int  # prompt and new tokens together, bounded by the model and by the pool
    eos_token_ids: tuple[int, ...]
    dtype: str
    device: str
    architecture: str
    weight_bytes: int
    kv_pool_tokens: int
    load_s: float
    reasoning_parser: str | None = None  # a name in `reasoning.PARSERS`


class Ready(Message, frozen=True):
    """The model is loaded and the engine takes requests."""

    info: ModelInfo
    pid: int


class TokenLogprob(Message, frozen=True):
    """One token's log-probability under the model's own (unpenalised, untempered) distribution.

    `logprob` is None for the very first prompt token, which nothing predicts.
    """

    logprob: float | None
    token_id: int
    top: list[tuple[float, int]] = []  # (logprob, token id), likeliest first


class Tokens(Message, frozen=True):
    """New tokens of a request. `prompt_logprobs` comes once, with the first of them."""

    request_id: str
    token_ids: list[int]
    cached_tokens: int
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


class Finished(Message, frozen=True):
    """The request is over. `matched` is the end token or stop id that ended it, if one did.

    `ttft_s` and `queue_s` are seconds from arrival to the first token and to the first admission.
    """

    request_id: str
    reason: str  # a FinishReason
    matched: int | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    retractions: int
    queue_s: float
    ttft_s: float
    miss_reason: str | None = None  # why prompt tokens were computed: see PrefixCache.miss_reason
    host_tokens: int = 0  # of the cached tokens, those that came from host memory, ...
    disk_tokens: int = 0  # ... and those that came from disk
    jump_forward_tokens: int = 0  # completion tokens that the grammar gave without sampling
    unenforced: list[str] = []  # what a schema asks and nobody saw to


class Rejected(Message, frozen=True):
    """The request was not taken. `kind` is the name of a class in `errors`."""

    request_id: str
    kind: str
    message: str
    param: str | None = None
    code: str | None = None


def rejected(submit: Submit, error: RequestError) -> Rejected:
    """The answer to a request that is not taken."""
    kind = type(error).__name__
    return Rejected(submit.request_id, kind, error.message, error.param, error.code)


class Flushed(Message, frozen=True):
    """Answer to `Flush`. `done` is False when requests were running or waiting."""

    call_id: int
    done: bool


class EngineStats(msgspec.Struct, frozen=True):
    """Counters since the start, and gauges of now."""

    running: int
    waiting: int
    pages_total: int
    pages_free: int
    pages_evictable: int
    cached_tokens_held: int  # tokens the tree holds now
    steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    retractions: int
    evicted_tokens: int
    host_tokens: int = 0  # cached tokens that came back from host memory, ...
    disk_tokens: int = 0  # ... and from disk
    host_pages: int = 0  # pages that host memory holds now, ...
    disk_pages: int = 0  # ... and that the disk holds
    tier_losses: int = 0  # pages that could not be kept, and files that could not be used
    jump_forward_tokens: int = 0
    stale_rows: int = 0  # computed for requests that had ended meanwhile: see `overlap`


class Inspected(Message, frozen=True):
    """Answer to `Inspect`. `violations` says in words which invariants are broken."""

    call_id: int
    stats: EngineStats
    violations: list[str]


class Pinned(Message, frozen=True):
    """Answer to `Pin` and `Unpin`: how many tokens it was about. `error`: why a pin was refused."""

    call_id: int
    tokens: int
    error: str | None = None


class TreeNode(msgspec.Struct, frozen=True):
    """One node as users may see it. `idle` is in ticks of the cache since its last use."""

    number: int
    parent: int  # the parent's number; 0 for a child of a root
    namespace: str
    start: int
    token_ids: list[int]  # the first of its tokens
    n_tokens: int
    n_pages: int
    hits: int
    locks: int
    pins: int
    idle: int


class TreeShown(Message, frozen=True):
    """Answer to `ShowTree`. `total` is how many nodes there are, shown or not."""

    call_id: int
    total: int
    nodes: list[TreeNode]


ToEngine = Hello | Submit | Abort | Flush | Inspect | Pin | Unpin | ShowTree
ToFrontend = Ready | Tokens | Finished | Rejected | Flushed | Inspected | Pinned | TreeShown

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_to_frontend = msgspec.msgpack.Decoder(list[ToFrontend]).decode
