"""From folded replies to what a route sends: whole bodies, and the events of a stream. Pure.

A stream asks `moved(place)` whenever the sequence at `place` has moved on, and `closing()` at the
end; without a stream `whole()` is asked once, when all sequences are over.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ramify.frontend_api.schema import StreamOptions
from ramify.srt.messages import TokenLogprob
from ramify.srt.reasoning import Parts
from ramify.srt.replies import ReplyAssembler

LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON does not have

Replies = Sequence[ReplyAssembler]


class TokenReader(Protocol):
    """The half of a tokenizer that names tokens."""

    def token_text(self, token_id: int) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class Answer(Protocol):
    """What a route makes of its sequences."""

    def moved(self, place: int) -> list[dict[str, Any]]: ...

    def closing(self) -> list[dict[str, Any]]: ...

    def whole(self) -> Any: ...


@dataclass(frozen=True)
class NativeAnswer:
    """/generate: cumulative replies, a list of them when `many`; events then carry `index`.

    `tells_all`: a client may know what other namespaces hold.
    """

    replies: Replies
    ids: Sequence[str]
    many: bool
    tells_all: bool = False

    def moved(self, place: int) -> list[dict[str, Any]]:
        reply = self._reply(place)
        return [reply | {"index": place}] if self.many else [reply]

    def closing(self) -> list[dict[str, Any]]:
        return []

    def whole(self) -> Any:
        replies = [self._reply(place) for place in range(len(self.replies))]
        return replies if self.many else replies[0]

    def _reply(self, place: int) -> dict[str, Any]:
        reply = self.replies[place].reply()
        meta = reply["meta_info"]
        meta["id"] = self.ids[place]
        if not self.tells_all:
            meta["cache_miss_reason"] = told_reason(meta["cache_miss_reason"])
        return reply


def told_reason(reason: str | None) -> str | None:
    """Why something was not cached, as a client may know it.

    That another namespace has it would tell a client what those have sent from whom namespaces
    keep it apart. Operators find that reason among the metrics, or let everybody know it.
    """
    return "never seen" if reason == "namespace" else reason


# --- OpenAI -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Envelope:
    """What every OpenAI body repeats. `n` sequences belong to each prompt."""

    id: str
    model: str
    created_s: int
    n: int
    options: StreamOptions = field(default_factory=StreamOptions)

    def body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        }

    def chunk(self, kind: str, choice: dict[str, Any], replies: Replies) -> dict[str, Any]:
        """One event. With usage asked for, `usage` is there in all, and null before the last."""
        body = self.body(kind, [choice])
        if choice["finish_reason"] is not None:
            body |= unenforced([replies[choice["index"]]])
        if self.options.continuous_usage_stats:
            return body | {"usage": usage(replies, self.n)}
        return body | {"usage": None} if self.options.include_usage else body

    def closing(self, kind: str, replies: Replies) -> list[dict[str, Any]]:
        if not self.options.include_usage:
            return []
        return [self.body(kind, []) | {"usage": usage(replies, self.n)}]


def usage(replies: Replies, n: int) -> dict[str, Any]:
    """Token counts of all sequences. A prompt counts once, however many sequences it has."""
    groups = [replies[first : first + n] for first in range(0, len(replies), n)]
    prompt = sum(group[0].prompt_tokens for group in groups)
    cached = sum(min(reply.cached_tokens for reply in group) for group in groups)
    completion = sum(len(reply.output_ids) for reply in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    } | _reasoning_details(replies)


def _reasoning_details(replies: Replies) -> dict[str, Any]:
    """How many tokens are thinking; no field where none was expected."""
    counts = [reply.reasoning_tokens for reply in replies if reply.submit.reasoning]
    return {"completion_tokens_details": {"reasoning_tokens": sum(counts)}} if counts else {}


def unenforced(replies: Replies) -> dict[str, Any]:
    """What a lenient schema asks and nobody saw to; no field where all was seen to."""
    keywords = dict.fromkeys(keyword for reply in replies for keyword in reply.unenforced)
    return {"unenforced_keywords": list(keywords)} if keywords else {}


def ending(reply: ReplyAssembler) -> dict[str, Any]:
    """The fields of a choice that say why it ended; null while it runs."""
    reason = reply.finish_reason or {}
    return {"finish_reason": reason.get("type"), "matched_stop": reason.get("matched")}


@dataclass
class _Told:
    """What a stream has said of one sequence."""

    opened: bool = False
    logprobs: int = 0
    offset: int = 0  # characters, for text_offset


class CompletionAnswer:
    """/v1/completions. `echoes` are the prompts' texts, empty where there is no echo."""

    kind = "text_completion"

    def __init__(
        self,
        envelope: Envelope,
        replies: Replies,
        echoes: Sequence[str],
        tokens: TokenReader | None,
        top: int | None,
    ) -> None:
        self._envelope, self._replies, self._echoes = envelope, replies, echoes
        self._tokens, self._top = tokens, top
        self._told = [_Told() for _ in replies]

    def moved(self, place: int) -> list[dict[str, Any]]:
        reply, told = self._replies[place], self._told[place]
        text = reply.delta() if told.opened else self._echoes[place] + reply.delta()
        logprobs = self._new_logprobs(place)
        told.opened = True
        if not text and not logprobs and reply.finished is None:
            return []
        choice = self._choice(place, text, logprobs)
        return [self._envelope.chunk(self.kind, choice, self._replies)]

    def closing(self) -> list[dict[str, Any]]:
        return self._envelope.closing(self.kind, self._replies)

    def whole(self) -> dict[str, Any]:
        choices = [
            self._choice(place, self._echoes[place] + reply.text, self._new_logprobs(place))
            for place, reply in enumerate(self._replies)
        ]
        body = self._envelope.body(self.kind, choices)
        counts = {"usage": usage(self._replies, self._envelope.n)}
        return body | counts | unenforced(self._replies)

    def _choice(self, place: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        choice = {"index": place, "text": text, "logprobs": logprobs}
        return choice | ending(self._replies[place])

    def _new_logprobs(self, place: int) -> dict[str, Any] | None:
        if self._top is None or self._tokens is None:
            return None
        told, reply = self._told[place], self._replies[place]
        items = [*reply.prompt_logprobs, *reply.output_logprobs]
        new = items[told.logprobs :]
        told.logprobs = len(items)
        if not new:
            return None
        texts = [self._tokens.token_text(item.token_id) for item in new]
        offsets = []
        for text in texts:
            offsets.append(told.offset)
            told.offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [_finite(item.logprob) for item in new],
            "top_logprobs": self._tops(new, texts) if self._top else None,
            "text_offset": offsets,
        }

    def _tops(
        self, items: Sequence[TokenLogprob], texts: Sequence[str]
    ) -> list[dict[str, float | None] | None]:
        """The likeliest tokens at each place with the one taken; of equal texts the likeliest."""
        assert self._tokens is not None
        tops: list[dict[str, float | None] | None] = []
        for item, text in zip(items, texts, strict=True):
            if item.logprob is None:
                tops.append(None)
                continue
            top: dict[str, float | None] = {}
            for logprob, token_id in item.top:
                top.setdefault(self._tokens.token_text(token_id), _finite(logprob))
            top.setdefault(text, _finite(item.logprob))
            tops.append(top)
        return tops


class ChatAnswer:
    """/v1/chat/completions. With `separate_reasoning`, an answer that begins with thinking has that
    as `reasoning_content`."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(
        self,
        envelope: Envelope,
        replies: Replies,
        tokens: TokenReader | None,
        logprobs: bool,
        *,
        separate_reasoning: bool = True,
    ) -> None:
        self._envelope, self._replies = envelope, replies
        self._tokens, self._logprobs = tokens, logprobs
        self._splitters = [reply.splitter() if separate_reasoning else None for reply in replies]
        self._told = [_Told() for _ in replies]

    def moved(self, place: int) -> list[dict[str, Any]]:
        reply, told = self._replies[place], self._told[place]
        events = []
        if not told.opened:
            told.opened = True
            events.append(self._chunk(place, {"role": "assistant", "content": ""}))
        parts, logprobs = self._new_parts(place), self._new_logprobs(place)
        if parts.reasoning:
            events.append(self._chunk(place, {"reasoning_content": parts.reasoning}, logprobs))
            logprobs = None
        if parts.content or logprobs:
            events.append(self._chunk(place, {"content": parts.content}, logprobs))
        if reply.finished is not None:
            events.append(self._chunk(place, {}, ending=ending(reply)))
        return events

    def closing(self) -> list[dict[str, Any]]:
        return self._envelope.closing(self.chunk_kind, self._replies)

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": place,
                "message": self._message(place),
                "logprobs": self._new_logprobs(place),
            }
            | ending(reply)
            for place, reply in enumerate(self._replies)
        ]
        body = self._envelope.body(self.kind, choices)
        counts = {"usage": usage(self._replies, self._envelope.n)}
        return body | counts | unenforced(self._replies)

    def _message(self, place: int) -> dict[str, Any]:
        parts = self._new_parts(place)
        message = {"role": "assistant", "content": parts.content, "refusal": None}
        separate = self._splitters[place] is not None
        return message | ({"reasoning_content": parts.reasoning or None} if separate else {})

    def _new_parts(self, place: int) -> Parts:
        """The text since the last time, by kind. What a splitter holds comes at the end."""
        reply, splitter = self._replies[place], self._splitters[place]
        if splitter is None:
            return Parts("", reply.delta())
        new = splitter.push(reply.delta())
        return new.with_more(splitter.finish()) if reply.finished is not None else new

    def _chunk(
        self,
        place: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        ending: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": place, "delta": delta, "logprobs": logprobs}
        choice |= ending or {"finish_reason": None, "matched_stop": None}
        return self._envelope.chunk(self.chunk_kind, choice, self._replies)

    def _new_logprobs(self, place: int) -> dict[str, Any] | None:
        told, items = self._told[place], self._replies[place].output_logprobs
        new = items[told.logprobs :]
        told.logprobs = len(items)
        if not self._logprobs or self._tokens is None or not new:
            return None
        return {"content": [self._entry(item) for item in new], "refusal": None}

    def _entry(self, item: TokenLogprob) -> dict[str, Any]:
        tops = [self._named(token_id, logprob) for logprob, token_id in item.top]
        return self._named(item.token_id, item.logprob) | {"top_logprobs": tops}

    def _named(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        assert self._tokens is not None
        return {
            "token": self._tokens.token_text(token_id),
            "logprob": _finite(logprob),
            "bytes": list(self._tokens.token_bytes(token_id)),
        }


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
