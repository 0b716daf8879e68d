"""Turning tokens into text while they come, without ever showing half a character.

Every token adds whole bytes, so the text so far is the bytes so far, read as UTF-8. Bytes at the
end that may still become a character wait for the next token; bytes that cannot are U+FFFD at
once. The cost of a token is its own length.
"""

import codecs
from collections.abc import Collection, Iterable

from ramify.srt.tokenization.tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes one growing sequence of token ids, the continuation of some prompt.

    All the text together is `tokenizer.decode` of all the ids, with two exceptions of
    SentencePiece tokenizers: the space before the first word is kept, since it parts it from the
    prompt, and each malformed byte run is shown as Unicode recommends.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        kept: Collection[str] = (),
    ) -> None:
        """The first arguments are those of `Tokenizer.decode`; the third one changes nothing.

        Special tokens that are spelled as one of `kept` are never skipped.
        """
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        if kept:
            spelled = {text.encode() for text in kept}
            self._skipped -= {i for i in self._skipped if tokenizer.token_bytes(i) in spelled}
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete, possibly none."""
        token_bytes = self._tokenizer.token_bytes
        return self._utf8.decode(b"".join(token_bytes(i) for i in ids if i not in self._skipped))

    def finish(self) -> str:
        """U+FFFD when the last token ended within a character, else nothing."""
        return self._utf8.decode(b"", final=True)
