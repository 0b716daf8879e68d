"""What every engine knows of a model's tokens: one table of bytes.

    pieces[i]    what token i adds to the text; b"" for a special token, for a hole, and for what
                 the head (the logits) is wider than the tokenizer: these are never allowed
    end_ids      end the output; allowed exactly where the grammar accepts

A special token has no bytes here, so no engine can take it for the text that its name spells.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from ramify.srt.errors import ConfigError, InvalidRequest
from ramify.srt.tokenization.tokenizer import Tokenizer

Encode = Callable[[str], list[int]]
Row = npt.NDArray[np.int32]  # of a bitmask

# Texts that a tokenizer which adds, drops or changes anything gives back changed.
PROBES = ("a", " a", "a  b\n\tc", '{"name": "x", "n": [1, 23]}', "é e\u0301 ﬁ", "日本 🙂")
SENTINEL = "\x02"  # what no piece of text merges with


def words(vocab_size: int) -> int:
    """Words of a bitmask row."""
    return -(-vocab_size // 32)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of one model. Plain values but for `encode`, the model's own way to write a text
    that follows another; without it no token is ever forced. `specials` are the special tokens by
    the bytes of their names."""

    pieces: tuple[bytes, ...]
    end_ids: tuple[int, ...]
    encode: Encode | None = field(default=None, repr=False)
    specials: Mapping[bytes, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.end_ids:
            raise ConfigError("grammars need a model that names an end-of-text token")

    @staticmethod
    def of(
        tokenizer: Tokenizer, head_size: int | None = None, end_ids: Iterable[int] = ()
    ) -> "Vocabulary":
        """The table of a tokenizer; `head_size` is the width of the logits.

        Raises ConfigError when no token ends a text.
        """
        width = tokenizer.vocab_size if head_size is None else head_size
        ends = dict.fromkeys([*tokenizer.eos_token_ids, *end_ids])
        blank = tokenizer.special_ids | ends.keys()
        pieces = tuple(
            b"" if i in blank or i >= tokenizer.vocab_size else tokenizer.token_bytes(i)
            for i in range(width)
        )
        inside = tuple(i for i in ends if 0 <= i < width)
        specials = {tokenizer.token_bytes(i): i for i in sorted(tokenizer.special_ids) if i < width}
        return Vocabulary(pieces, inside, _encoder(tokenizer, pieces), specials)

    @property
    def size(self) -> int:
        """Width of the logits."""
        return len(self.pieces)

    @property
    def row_words(self) -> int:
        """Words of a bitmask row."""
        return words(self.size)

    def new_row(self) -> Row:
        """A bitmask row that allows nothing."""
        return np.zeros(self.row_words, np.int32)

    @cached_property
    def text_row(self) -> Row:
        """The row of all tokens that add to a text; read-only."""
        return self.row_of(i for i, piece in enumerate(self.pieces) if piece)

    @cached_property
    def end_row(self) -> Row:
        """The row of the end tokens; read-only."""
        return self.row_of(self.end_ids)

    def row_of(self, tokens: Iterable[int]) -> Row:
        """The row of these tokens; read-only."""
        bits = np.zeros(self.row_words * 32, np.uint8)
        bits[list(tokens)] = 1
        row = np.packbits(bits, bitorder="little").view(np.int32)
        row.flags.writeable = False
        return row

    def is_text(self, token: int) -> bool:
        """Whether a token adds to a text."""
        return 0 <= token < self.size and self.pieces[token] != b""

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        """What tokens add to the text."""
        return b"".join(self.pieces[i] for i in tokens if 0 <= i < self.size)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal tables, for the keys of caches."""
        digest = sha256(repr((self.size, self.end_ids)).encode())
        for piece in self.pieces:
            digest.update(len(piece).to_bytes(4, "little") + piece)
        return digest.hexdigest()

    @cached_property
    def by_piece(self) -> dict[bytes, int]:
        """The first token of each piece."""
        found: dict[bytes, int] = {}
        for i, piece in enumerate(self.pieces):
            if piece:
                found.setdefault(piece, i)
        return found

    def write(self, text: str) -> list[int]:
        """Tokens that spell exactly `text`: the model's own, or else the longest piece first.

        The model's tokenizer writes another text where a special token's name is spelled, or a
        character that it does not take.
        """
        raw = text.encode("utf-8", "replace")
        tokens = _try(self.encode, text) if self.encode else []
        return tokens if tokens and self.bytes_of(tokens) == raw else self._longest_first(raw)

    def _longest_first(self, raw: bytes) -> list[int]:
        """Empty where some byte has no token."""
        tokens: list[int] = []
        at, longest = 0, self._longest
        while at < len(raw):
            ends = range(min(len(raw), at + longest), at, -1)
            end = next((end for end in ends if raw[at:end] in self.by_piece), None)
            if end is None:
                return []
            tokens.append(self.by_piece[raw[at:end]])
            at = end
        return tokens

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.pieces), default=0)


def _encoder(tokenizer: Tokenizer, pieces: tuple[bytes, ...]) -> Encode | None:
    """How the tokenizer writes a text in the middle of another; None if that cannot be found out.

    A byte-level tokenizer simply writes it. SentencePiece puts a space before a text: it is left
    behind with a sentinel in front, which is a token of its own.
    """

    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    head = _try(plain, SENTINEL)

    def behind(text: str) -> list[int]:
        tokens = plain(SENTINEL + text)
        return tokens[len(head) :] if tokens[: len(head)] == head else []

    for encode in (plain, behind):
        if all(_exact(encode, text, pieces) for text in PROBES):
            return encode
    return None


def _exact(encode: Encode, text: str, pieces: tuple[bytes, ...]) -> bool:
    tokens = _try(encode, text)
    spelled = b"".join(pieces[i] if i < len(pieces) else b"" for i in tokens)
    return spelled == text.encode()


def _try(encode: Encode, text: str) -> list[int]:
    """Nothing for a text that the tokenizer does not take: NUL, lone surrogates."""
    try:
        return encode(text)
    except InvalidRequest:
        return []
