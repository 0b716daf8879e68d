"""Pieces of generated text with their meta information, and how streams of them combine. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

# Lists with one entry for each generated token; in a stream they are cut like the text is.
TOKEN_LISTS = (
    "output_token_logprobs",
    "output_top_logprobs",
    "output_token_ids_logprobs",
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A text that was generated, whole or a piece of a stream, and what is known about it."""

    text: str
    meta: dict[str, Any] = field(default_factory=dict)


def increments(replies: Iterable[dict[str, Any]]) -> Iterator[Chunk]:
    """Streamed replies with cumulative text as chunks with what each one added.

    Lists of log-probabilities are cut to the tokens that are new since the last reply, whether the
    server sends them cumulatively or not: the new ones are the last ones either way.
    """
    length_chars = length_tokens = 0
    for reply in replies:
        meta = dict(reply["meta_info"])
        new = max(meta.get("completion_tokens", 0) - length_tokens, 0)
        for name in TOKEN_LISTS:
            if meta.get(name) is not None:
                meta[name] = meta[name][len(meta[name]) - min(new, len(meta[name])) :]
        yield Chunk(reply["text"][length_chars:], meta)
        length_chars = len(reply["text"])
        length_tokens += new


def joined(chunks: Iterable[Chunk]) -> Chunk:
    """The chunks of one stream as one: all the text, the last meta, all log-probabilities."""
    parts = list(chunks)
    meta = dict(parts[-1].meta) if parts else {}
    for name in TOKEN_LISTS:
        lists = [part.meta[name] for part in parts if part.meta.get(name) is not None]
        if lists:
            meta[name] = [entry for entries in lists for entry in entries]
    return Chunk("".join(part.text for part in parts), meta)


class Coalescer:
    """Holds back chunks without text, to give them out as part of the next one that has some."""

    def __init__(self) -> None:
        self._held: list[Chunk] = []

    def push(self, chunk: Chunk) -> Chunk | None:
        """The next chunk to give out, or None while there is no text."""
        self._held.append(chunk)
        return self.finish() if chunk.text else None

    def finish(self) -> Chunk | None:
        """What is still held back, or None."""
        held, self._held = self._held, []
        return joined(held) if held else None
