"""From the engine's messages to the native reply of one sequence: text, stops, counts. Pure.

Tokens   --> decoder (ids to text) --> stop strings (hold back, match, trim) --> text
Finished --> finish_reason and the measured times
Rejected --> the error that it names
"""

from collections.abc import Callable, Iterable
from typing import Any

from ramify.srt.errors import Aborted, InvalidRequest, QueueFull, RequestError, Unavailable
from ramify.srt.ids import FinishReason
from ramify.srt.messages import (
    Finished,
    ModelInfo,
    Pinned,
    Rejected,
    Submit,
    TokenLogprob,
    Tokens,
    TreeShown,
)
from ramify.srt.reasoning import PARSERS, Splitter
from ramify.srt.tokenization.incremental import IncrementalDecoder
from ramify.srt.tokenization.stopping import StopStrings
from ramify.srt.tokenization.tokenizer import Tokenizer

ABORTED = {"type": "abort", "message": "the request was aborted"}
TIMEOUT = {
    "type": "abort",
    "message": "the request ran out of its timeout_s",
    "err_type": "timeout",
}
ERRORS: dict[str, type[RequestError]] = {
    kind.__name__: kind for kind in (InvalidRequest, QueueFull, Unavailable, Aborted)
}

MAX_PREVIEW_CHARS = 64  # of a node's text, where it is shown

Triple = list[Any]  # [logprob or None, token id, text or None]


class ReplyAssembler:
    """Folds the messages about one `Submit` into its reply.

    When a stop string matches, `wants_abort` becomes True: the caller sends an `Abort`, goes on
    reading to the `Finished`, and the tokens that still come in between are ignored. Stop strings
    are looked for in the text after the first `min_new_tokens` - 1 tokens.

    An end token (an end-of-sequence or stop id) gives no text: whether it ended the request is
    known at the next message, so it is held until then. Without a tokenizer all text is "".

    Of an output that begins with thinking the text is whole: markers are text too, special tokens
    or not. `splitter` tells the two apart.
    """

    def __init__(
        self,
        submit: Submit,
        tokenizer: Tokenizer | None,
        info: ModelInfo,
        *,
        now: float,
        return_text_in_logprobs: bool = False,
    ) -> None:
        sampling = submit.sampling
        self.submit = submit
        self.wants_abort = False
        self.finished: Finished | None = None
        self._tokenizer = tokenizer
        self._started_s = now
        self._now_s = now
        self._with_texts = return_text_in_logprobs
        self._end_ids = {*sampling.stop_token_ids}
        self._end_ids.update(() if sampling.ignore_eos else info.eos_token_ids)
        self._held_id: int | None = None
        self._markers = PARSERS[info.reasoning_parser or ""] if submit.reasoning else None
        self._thinking = self.splitter()
        self._reasoning_tokens = 0
        self._decoder: IncrementalDecoder | None = None
        if tokenizer is not None:
            self._decoder = IncrementalDecoder(
                tokenizer,
                sampling.skip_special_tokens,
                sampling.spaces_between_special_tokens,
                kept=(self._markers.begin, self._markers.end) if self._markers else (),
            )
        self._stops = StopStrings(sampling.stop, sampling.no_stop_trim)
        self._matched_stop: str | None = None
        self._text: list[str] = []
        self._told = 0  # pieces of `_text` that `delta` has given out
        self._output_ids: list[int] = []
        self._cached_tokens = 0
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob] = []

    # --- messages in ---

    def push(self, message: Tokens | Finished | Rejected, now: float) -> None:
        """Fold in the next message. A `Rejected` raises the RequestError that it names."""
        self._now_s = now
        if isinstance(message, Rejected):
            raise error_of(message)
        if isinstance(message, Finished):
            self._finish(message)
        elif not self.wants_abort:
            self._take(message)

    def _take(self, message: Tokens) -> None:
        self._cached_tokens = message.cached_tokens
        self._prompt_logprobs += message.prompt_logprobs or ()
        for place, token_id in enumerate(message.token_ids):
            self._output_ids.append(token_id)
            if message.logprobs is not None:
                self._logprobs.append(message.logprobs[place])
            self._read(token_id)
            if self._matched_stop is not None:
                self.wants_abort = True
                return

    def _read(self, token_id: int) -> None:
        self._release_held()
        if token_id in self._end_ids and not self.submit.sampling.no_stop_trim:
            self._held_id = token_id
        elif self._decoder is not None:
            text = self._decoder.push([token_id])
            self._count_thinking(text)
            self._emit(text)

    def _count_thinking(self, text: str) -> None:
        """Count up to the token that completes the end marker, or up to now."""
        if self._thinking is not None:
            before = self._thinking.thinking
            self._thinking.push(text)
            if before or self._thinking.thinking:
                self._reasoning_tokens = len(self._output_ids)

    def _release_held(self) -> None:
        """The token after an end token shows that it ended nothing: it is text like any other."""
        if self._held_id is not None and self._decoder is not None:
            self._emit(self._decoder.push([self._held_id]))
        self._held_id = None

    def _emit(self, text: str) -> None:
        if self._matched_stop is not None:
            return
        if len(self._output_ids) >= self.submit.sampling.min_new_tokens:
            text, self._matched_stop = self._stops.push(text)
        if text:
            self._text.append(text)

    def _finish(self, message: Finished) -> None:
        if self._held_id != message.matched:
            self._release_held()
        if self._matched_stop is None and self._decoder is not None:
            self._emit(self._decoder.finish())
        if self._matched_stop is None:
            self._text.append(self._stops.finish())
        self._cached_tokens = message.cached_tokens
        self.finished = message

    # --- the reply out ---

    @property
    def text(self) -> str:
        """All the text so far, without what may yet turn out to be a stop string."""
        return "".join(self._text)

    def delta(self) -> str:
        """The text since the last call."""
        new = "".join(self._text[self._told :])
        self._told = len(self._text)
        return new

    def splitter(self) -> Splitter | None:
        """A new splitter for this text; None where no thinking is expected.

        What a grammar does not apply to is thinking, whether it says so or not.
        """
        if self._markers is None:
            return None
        inside = self._markers.starts_inside or self.submit.grammar is not None
        return Splitter(self._markers, inside=inside)

    @property
    def reasoning_tokens(self) -> int:
        """How many of the `output_ids` are thinking, with its markers; 0 where none is expected."""
        return self._reasoning_tokens

    @property
    def output_ids(self) -> list[int]:
        """The generated ids, up to and with the one that ended the request."""
        return self._output_ids

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.submit.token_ids) // 4

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the cache."""
        return self._cached_tokens

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start to the last message."""
        return self._now_s - self._started_s

    @property
    def finish_reason(self) -> dict[str, Any] | None:
        """SGLang's object, or None while the request runs."""
        if self.finished is None:
            return None
        if self._matched_stop is not None:
            return {"type": "stop", "matched": self._matched_stop}
        if self.finished.reason == FinishReason.STOP:
            return {"type": "stop", "matched": self.finished.matched}
        if self.finished.reason == FinishReason.LENGTH:
            return {"type": "length", "length": len(self._output_ids)}
        if self.finished.reason == FinishReason.TIMEOUT:
            return dict(TIMEOUT)
        return dict(ABORTED)

    @property
    def output_logprobs(self) -> list[TokenLogprob]:
        """One for each of `output_ids`; empty when they were not asked for."""
        return self._logprobs

    @property
    def prompt_logprobs(self) -> list[TokenLogprob]:
        """One for each prompt token from `logprob_start` on; empty when not asked for."""
        return self._prompt_logprobs

    @property
    def unenforced(self) -> list[str]:
        """What a schema asks and nobody saw to; known at the end."""
        return [] if self.finished is None else self.finished.unenforced

    def reply(self) -> dict[str, Any]:
        """The native reply as of the last message: text and ids so far are cumulative."""
        return {
            "text": self.text,
            "output_ids": list(self._output_ids),
            "meta_info": self.meta_info(),
        }

    def meta_info(self) -> dict[str, Any]:
        """Counts, times in seconds, and the log-probabilities that were asked for.

        `cache_miss_reason` is None while the request runs, and when nothing was missed;
        `cached_tokens_details` and `jump_forward_tokens` are None while it runs.
        """
        finished = self.finished
        meta: dict[str, Any] = {
            "id": self.submit.request_id,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self._output_ids),
            "cached_tokens": self._cached_tokens,
            "cached_tokens_details": None if finished is None else sources(finished),
            "computed_tokens": self.prompt_tokens - self._cached_tokens,
            "cache_miss_reason": None if finished is None else finished.miss_reason,
            "jump_forward_tokens": None if finished is None else finished.jump_forward_tokens,
            "e2e_latency": self.elapsed_s,
        }
        if finished is not None:
            meta["num_retractions"] = finished.retractions
            meta["queue_time"] = finished.queue_s
            meta["ttft"] = finished.ttft_s
            if self.submit.grammar is not None:
                meta["unenforced_keywords"] = finished.unenforced
        if self.submit.reasoning:
            meta["reasoning_tokens"] = self._reasoning_tokens
        if self.submit.return_logprob:
            meta |= self._logprob_info()
        return meta

    def _logprob_info(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "input_token_logprobs": self._triples(self._prompt_logprobs),
            "output_token_logprobs": self._triples(self._logprobs),
            "output_token_logprobs_length": len(self._logprobs),
        }
        if self.submit.top_logprobs:
            info["input_top_logprobs"] = self._tops(self._prompt_logprobs)
            info["output_top_logprobs"] = self._tops(self._logprobs)
        return info

    def _triples(self, logprobs: Iterable[TokenLogprob]) -> list[Triple]:
        return [[item.logprob, item.token_id, self._name(item.token_id)] for item in logprobs]

    def _tops(self, logprobs: Iterable[TokenLogprob]) -> list[list[Triple] | None]:
        """The likeliest tokens at each place; None for the first prompt token."""
        return [
            None if item.logprob is None else [[lp, i, self._name(i)] for lp, i in item.top]
            for item in logprobs
        ]

    def _name(self, token_id: int) -> str | None:
        if not self._with_texts or self._tokenizer is None:
            return None
        return self._tokenizer.token_text(token_id)


def sources(finished: Finished) -> dict[str, int]:
    """Where the cached tokens of a request were found."""
    host, disk = finished.host_tokens, finished.disk_tokens
    return {"device": finished.cached_tokens - host - disk, "host": host, "disk": disk}


def error_of(rejected: Rejected) -> RequestError:
    """The error that a `Rejected` names, to be raised."""
    kind = ERRORS.get(rejected.kind, RequestError)
    return kind(rejected.message, param=rejected.param, code=rejected.code)


def model_info(
    info: ModelInfo, model_path: str, served_model_name: str, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """What `GET /model_info` and `Engine.model_info` answer."""
    chat = tokenizer.chat if tokenizer is not None else None
    return {
        "model_path": model_path,
        "served_model_name": served_model_name,
        "chat_template": chat.source if chat is not None else None,
        "bos_token": _token(tokenizer, None if tokenizer is None else tokenizer.bos_token_id),
        "eos_token": _token(tokenizer, next(iter(info.eos_token_ids), None)),
        "eos_token_ids": list(info.eos_token_ids),
        "vocab_size": info.vocab_size,
        "context_length": info.context_length,
        "architecture": info.architecture,
        "dtype": info.dtype,
        "device": info.device,
        "is_generation": True,
        "reasoning_parser": info.reasoning_parser,
    }


def pinned_tokens(answer: Pinned) -> int:
    """How many tokens were pinned or unpinned. Raises InvalidRequest when the engine refused."""
    if answer.error is not None:
        raise InvalidRequest(answer.error, code="pin_refused")
    return answer.tokens


def cache_tree(
    shown: TreeShown, preview: Callable[[list[int]], str] | None = None
) -> dict[str, Any]:
    """What `GET /cache/tree` and `Engine.cache_tree` answer: the shape of the tree, no contents.

    What others wrote and the keys of their namespaces stay hidden: no token ids, and namespaces
    are numbered as they come, the one without a key as 0. With `preview`, which gives the text of
    tokens, each node has its first MAX_PREVIEW_CHARS characters and its namespace by name.
    """
    numbers = {"": 0}
    for node in shown.nodes:
        numbers.setdefault(node.namespace, len(numbers))
    nodes = [
        {
            "number": node.number,
            "parent": node.parent,
            "namespace": numbers[node.namespace] if preview is None else node.namespace,
            "start": node.start,
            "tokens": node.n_tokens,
            "pages": node.n_pages,
            "hits": node.hits,
            "locks": node.locks,
            "pins": node.pins,
            "idle": node.idle,
        }
        | ({} if preview is None else {"text": preview(node.token_ids)[:MAX_PREVIEW_CHARS]})
        for node in shown.nodes
    ]
    return {"total_nodes": shown.total, "nodes": nodes}


def _token(tokenizer: Tokenizer | None, token_id: int | None) -> str | None:
    return None if tokenizer is None or token_id is None else tokenizer.token_text(token_id)
