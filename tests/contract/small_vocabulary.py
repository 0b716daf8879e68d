"""A byte-level BPE tokenizer small enough to try every token, with all that makes masks go wrong:
tokens of several bytes, of parts of characters, special tokens, and a head that is too wide."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.tokenization.pieces import BYTE_CHARACTERS
from ramify.srt.tokenization.tokenizer import Tokenizer

WORDS = ("ab", "abc", "New", "City", "York", "name", "true", "false", "null", "age", "order", "Id")
SYNTAX = ("12", "19", "20", "éé", "日", "aa", "bb", '":', '",', '{"', '"}', '["', '"]', ':"', ',"')
SPACED = (" York", " City", '": ', '", ', '": "', ', "', ": ", "  ")
SPECIALS = ("<|end|>", "<|stop|>", "<|pad|>", "<tool>")
PADDING = 13
CHARACTERS = {byte: character for character, byte in BYTE_CHARACTERS.items()}


def small_tokenizer() -> Tokenizer:
    """Ids: 256 bytes, then merges, then SPECIALS; the first two of these end a text."""
    vocab = {CHARACTERS[byte]: byte for byte in range(256)}
    merges = []
    for word in (*WORDS, *SYNTAX, *SPACED):
        text = "".join(CHARACTERS[byte] for byte in word.encode())
        for end in range(2, len(text) + 1):
            if text[:end] not in vocab:
                vocab[text[:end]] = len(vocab)
                merges.append((text[: end - 1], text[end - 1]))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIALS))
    ends = tuple(backend.token_to_id(name) for name in SPECIALS[:2])
    return Tokenizer(backend, eos_token_ids=ends)


def small_vocabulary() -> Vocabulary:
    tokenizer = small_tokenizer()
    return Vocabulary.of(tokenizer, tokenizer.vocab_size + PADDING)


def bits(vocabulary: Vocabulary, row) -> list[int]:
    """The tokens whose bit is set, those past the head included."""
    return [i for i in range(len(row) * 32) if int(row[i // 32]) >> (i % 32) & 1]
