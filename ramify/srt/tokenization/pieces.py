"""What each token adds to the text, in bytes.

Two ways of writing bytes as tokens cover the models we run:

    byte-level      every byte is a printable character ("Ġ" is a space); bytes join freely
    sentencepiece   "▁" is a space, a byte that no piece has is spelt "<0xE2>"
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tokenizers

from ramify.srt.errors import ModelLoadError

SENTENCEPIECE_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_characters() -> dict[str, int]:
    """The alphabet of byte-level tokens: printable Latin-1 as it is, the rest from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): b for i, b in enumerate(moved)}


BYTE_CHARACTERS = _byte_characters()


@dataclass(frozen=True)
class Pieces:
    """How the tokens of one tokenizer spell bytes."""

    byte_level: bool

    @staticmethod
    def of(backend: tokenizers.Tokenizer) -> "Pieces":
        """Read it off the tokenizer's decoder. Raises ModelLoadError for other kinds."""
        state = b"{}" if backend.decoder is None else backend.decoder.__getstate__()
        steps = set(_types(json.loads(state)))
        if "ByteLevel" in steps:
            return Pieces(byte_level=True)
        if steps & {"ByteFallback", "Metaspace"} and steps <= SENTENCEPIECE_STEPS:
            return Pieces(byte_level=False)
        raise ModelLoadError(
            f"the tokenizer's decoder ({', '.join(sorted(steps)) or 'none'}) is not supported: "
            "byte-level and SentencePiece tokenizers are"
        )

    def to_bytes(self, token: str) -> bytes:
        """The bytes a token stands for."""
        if not self.byte_level:
            byte = BYTE_TOKEN.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
        try:
            return bytes([BYTE_CHARACTERS[character] for character in token])
        except KeyError:  # an added token, written as plain text
            return token.encode()


def _types(decoder: dict[str, Any]) -> Iterator[str]:
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _types(step)
    elif "type" in decoder:
        yield decoder["type"]
