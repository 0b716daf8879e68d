"""A tokenizer whose ids are the bytes of UTF-8, so that a test can read ids as text."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ramify.srt.tokenization.chat_template import ChatTemplate
from ramify.srt.tokenization.tokenizer import Tokenizer

EOS = 1000  # the id that `fake_core` ends a sequence with
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


def byte_tokenizer(*specials: str) -> Tokenizer:
    """Ids 0 to 255 are bytes, `EOS` is a special token, those between decode to a "?".

    More special tokens are behind `EOS`.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    names |= {byte: chr(256 + i) for i, byte in enumerate(others)}  # byte-level BPE's alphabet
    vocab = {name: byte for byte, name in names.items()}
    vocab |= {f"?{i}": i for i in range(256, EOS)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", *specials])
    assert backend.token_to_id("<|end|>") == EOS
    return Tokenizer(backend, eos_token_ids=(EOS,), chat=ChatTemplate(CHAT))
