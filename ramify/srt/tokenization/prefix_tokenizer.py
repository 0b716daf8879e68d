r"""Tokenising long texts in parts that are remembered: a known beginning costs a lookup.

    The quick brown ... dog| jumps over the ... end|\nand so on
    `------- part -------´ `------- part -------´ `- tail -´

A cut is after a letter and before ASCII whitespace. There, and whatever else the text holds,
ids(text) = ids(left) + ids(right), because no stage of the tokenizers that we accept reaches over:

    added tokens   none has whitespace behind its first character, none minds its neighbours
    NFC            ASCII whitespace combines with nothing before it, and the letter stays a letter
    splitting      no pattern matches whitespace behind a letter, so a word ends at the cut
                   whatever follows; none looks behind, so the next starts there whatever came
    BPE            merges inside words

So the ids of a part never depend on its place, and any text that holds the same part may use them.
Where the cuts are depends only on the text up to them, so texts that begin alike have parts alike.
The ids are exact; only the time taken may tell that a part was seen before.
"""

import json
import re
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import tokenizers
from tokenizers import models

from ramify.srt.tokenization.from_gguf import LLAMA3_WORDS, QWEN2_WORDS

PART_CHARS = 512  # a part ends at the first cut after so many characters
ENTRY_BYTES = 256  # what an entry costs beside its text and ids
WHITESPACE = " \t\n\r"
# Latin, Cyrillic, kana, Han, Hangul: letters in all versions of Unicode, and the same in NFC.
LETTERS = (
    "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0400-\u0481"
    "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
)
CUT = re.compile(f"(?<=[{LETTERS}])[{WHITESPACE}]")


class PrefixTokenizer:
    """Encodes texts by a tokenizer that allows cuts, and remembers the ids of their parts.

    Keeps at most `max_bytes`, the parts used last. Threads may share it.
    """

    def __init__(
        self,
        tokenise: Callable[[str], Sequence[int]],
        max_bytes: int,
        before: Sequence[int] = (),
        after: Sequence[int] = (),
        part_chars: int = PART_CHARS,
    ) -> None:
        """`tokenise` gives the ids of a text without the special ones put `before` and `after`."""
        self._tokenise = tokenise
        self._max_bytes = max_bytes
        self._before, self._after = before, after
        self._part_chars = part_chars
        self._lock = threading.Lock()
        self._parts: OrderedDict[str, array[int]] = OrderedDict()  # least recently used first
        self._bytes = 0

    @staticmethod
    def over(
        backend: tokenizers.Tokenizer, max_bytes: int, part_chars: int = PART_CHARS
    ) -> "PrefixTokenizer | None":
        """One for this tokenizer, or None when it is not known to allow cuts."""
        ends = _ends(backend) if allows_cuts(backend) else None
        if ends is None:
            return None

        def tokenise(text: str) -> list[int]:
            ids: list[int] = backend.encode(text, add_special_tokens=False).ids
            return ids

        return PrefixTokenizer(tokenise, max_bytes, *ends, part_chars=part_chars)

    @property
    def bytes_used(self) -> int:
        """About what the remembered parts take in memory."""
        return self._bytes

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of the text, the same as the tokenizer gives for the whole of it."""
        ids = array("I", self._before if add_special_tokens else ())
        parts, tail = self._cut(text)
        for part in parts:
            ids.extend(self._ids(part))
        ids.extend(self._tokenise(tail))
        ids.extend(self._after if add_special_tokens else ())
        return ids.tolist()

    def _cut(self, text: str) -> tuple[list[str], str]:
        """The parts and what follows the last cut."""
        parts, at = [], 0
        while found := CUT.search(text, at + self._part_chars):
            parts.append(text[at : found.start()])
            at = found.start()
        return parts, text[at:]

    def _ids(self, part: str) -> "array[int]":
        with self._lock:
            ids = self._parts.get(part)
            if ids is not None:
                self._parts.move_to_end(part)
                return ids
        ids = array("I", self._tokenise(part))  # outside the lock: other threads go on
        self._remember(part, ids)
        return ids

    def _remember(self, part: str, ids: "array[int]") -> None:
        """Keep a part unless it would take the place of most others."""
        if _cost(part, ids) > self._max_bytes // 4:
            return
        with self._lock:
            if part in self._parts:  # another thread was faster
                return
            self._parts[part] = ids
            self._bytes += _cost(part, ids)
            while self._bytes > self._max_bytes:
                self._bytes -= _cost(*self._parts.popitem(last=False))


def _cost(part: str, ids: "array[int]") -> int:
    return sys.getsizeof(part) + ids.itemsize * len(ids) + ENTRY_BYTES


# --- which tokenizers allow cuts ------------------------------------------------------------------


def allows_cuts(backend: tokenizers.Tokenizer) -> bool:
    """True when all the stages of a tokenizer are known to stop at cuts, as drawn above."""
    model = backend.model
    return (
        isinstance(model, models.BPE)
        and not model.dropout
        and _state(backend.normalizer).get("type", "NFC") == "NFC"
        and _splits_words(backend)
        and all(_stays_within(token) for token in backend.get_added_tokens_decoder().values())
    )


def _splits_words(backend: tokenizers.Tokenizer) -> bool:
    """True for steps that we know, one of which parts letters from whitespace."""
    splitter = _state(backend.pre_tokenizer)
    steps = splitter["pretokenizers"] if splitter.get("type") == "Sequence" else [splitter]
    kinds = [_kind(step) for step in steps]
    return "words" in kinds and "unknown" not in kinds


def _kind(step: dict[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return "words" if regex else "bytes"
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}:
            known = pattern in (LLAMA3_WORDS, QWEN2_WORDS) and not step["invert"]
            return "words" if known else "unknown"
        case {"type": "Digits"}:
            return "digits"
    return "unknown"


def _stays_within(token: tokenizers.AddedToken) -> bool:
    """True for a token that no cut can part and whose neighbours do not matter."""
    spans = any(space in token.content[1:] for space in WHITESPACE)
    return not (spans or token.lstrip or token.rstrip or token.single_word)


def _ends(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]] | None:
    """The special ids put before and behind every text; None when they cannot be told."""
    whole = backend.encode("a")
    inner = backend.encode("a", add_special_tokens=False).ids
    marked = list(zip(whole.ids, whole.special_tokens_mask, strict=True))
    before = [i for i, _ in takewhile(lambda pair: pair[1], marked)]
    after = [i for i, _ in takewhile(lambda pair: pair[1], reversed(marked))][::-1]
    return (before, after) if [*before, *inner, *after] == whole.ids else None


def _state(stage: Any) -> dict[str, Any]:
    """A stage of a tokenizer as tokenizer.json has it; empty when there is none."""
    found: dict[str, Any] = {} if stage is None else json.loads(stage.__getstate__())
    return found
