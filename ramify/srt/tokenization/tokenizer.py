"""Text to token ids and back, by Hugging Face's `tokenizers`.

Text that spells a special token ("<|im_end|>") becomes that token, as it does in transformers: in
a chat message too. Who serves users that must not write special tokens has to filter them.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from ramify.srt.errors import InvalidRequest, ModelLoadError
from ramify.srt.tokenization.chat_template import ChatTemplate
from ramify.srt.tokenization.pieces import Pieces
from ramify.srt.tokenization.prefix_tokenizer import PrefixTokenizer

LONG_TEXT = 2000  # characters from which remembering the parts of a text pays
PREFIX_CACHE_BYTES = 16 * 1024 * 1024


class Tokenizer:
    """One model's tokenizer, its chat template, and the ids that end a text.

    Threads may share it. Up to `prefix_cache_bytes` of parts of long texts are remembered, so that
    a text that begins like an earlier one is encoded faster, to the same ids; 0 remembers nothing.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: tuple[int, ...] = (),
        bos_token_id: int | None = None,
        chat: ChatTemplate | None = None,
        prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._pieces = Pieces.of(backend)
        self._prefixes = (
            PrefixTokenizer.over(backend, prefix_cache_bytes) if prefix_cache_bytes else None
        )
        self.eos_token_ids = eos_token_ids
        self.bos_token_id = bos_token_id
        self.chat = chat
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @staticmethod
    def load(folder: Path, prefix_cache_bytes: int = PREFIX_CACHE_BYTES) -> "Tokenizer":
        """The tokenizer of a model folder. Raises ModelLoadError naming what cannot be used.

        Needs no torch, and transformers only where there is no tokenizer.json.
        """
        backend = _backend(folder)
        config = _read_json(folder / "tokenizer_config.json")
        bos, eos = _token(config.get("bos_token")), _token(config.get("eos_token"))
        ends = [] if eos is None else [backend.token_to_id(eos)]
        for name in ("config.json", "generation_config.json"):
            named = _read_json(folder / name).get("eos_token_id")
            ends += named if isinstance(named, list) else [named]
        template = _template(folder, config)
        return Tokenizer(
            backend,
            eos_token_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
            bos_token_id=None if bos is None else backend.token_to_id(bos),
            chat=None if template is None else ChatTemplate(template, bos or "", eos or ""),
            prefix_cache_bytes=prefix_cache_bytes,
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Raises InvalidRequest for text that is not Unicode.

        `add_special_tokens` puts BOS in front where the model wants one; a rendered chat template
        has brought its own.
        """
        _check_text(text)
        if self._prefixes is not None and len(text) >= LONG_TEXT:
            return self._prefixes.encode(text, add_special_tokens)
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` for many texts at once, on several threads."""
        for text in texts:
            _check_text(text)
        found = self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in found]

    def decode(
        self,
        ids: list[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """The text of token ids. Ids outside the vocabulary, which padded models have, are nothing.

        Bytes that are not UTF-8 become U+FFFD. `spaces_between_special_tokens` is taken for the
        sake of callers and changes nothing, as in all tokenizers of this kind.
        Raises InvalidRequest for ids that no token could have.
        """
        if any(not 0 <= i < 2**32 for i in ids):
            raise InvalidRequest("token ids are from 0 to 4294967295", param="token_ids")
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, in UTF-8: possibly a part of a character."""
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        return b"" if token is None else self._pieces.to_bytes(token)

    def token_text(self, token_id: int) -> str:
        """A token as a readable piece, `bytes:\\xe2\\x80` where it is a part of a character."""
        piece = self.token_bytes(token_id)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise InvalidRequest("text must not hold NUL characters", param="text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("text must not hold lone surrogates", param="text") from error


def _backend(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return _converted(folder)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ModelLoadError(f"{path} cannot be read: {error}") from error


def _converted(folder: Path) -> tokenizers.Tokenizer:
    """A tokenizer.model (SentencePiece) as transformers converts it."""
    if not (folder / "tokenizer.model").is_file():
        raise ModelLoadError(f"{folder} has no tokenizer.json")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ModelLoadError(
            f"{folder} has no tokenizer.json; install transformers to convert its tokenizer.model"
        ) from error
    try:
        return AutoTokenizer.from_pretrained(folder).backend_tokenizer
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise ModelLoadError(f"{folder}/tokenizer.model cannot be converted: {error}") from error


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or a text or a list of named ones in the config."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    found = config.get("chat_template") or _read_json(folder / "chat_template.json").get(
        "chat_template"
    )
    if isinstance(found, list):
        by_name = {entry["name"]: entry["template"] for entry in found}
        found = by_name.get("default")
    return found


def _token(value: Any) -> str | None:
    """A token in tokenizer_config.json: a string, or an object with its content."""
    return value.get("content") if isinstance(value, dict) else value


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
