"""The table of token bytes: what is blank, what is masked, and how texts are written."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from ramify.srt.constrained.base import compile_grammar
from ramify.srt.constrained.choose import load_backend
from ramify.srt.constrained.vocabulary import Vocabulary
from ramify.srt.errors import ConfigError
from ramify.srt.tokenization.tokenizer import Tokenizer

PIECES = (b"a", b"ab", b"b", b"", b"", b"\xe2\x82", b"\xac")
END = 3


def vocabulary() -> Vocabulary:
    return Vocabulary(PIECES, (END,))


def test_blank_tokens_are_no_text():
    found = vocabulary()
    assert [i for i in range(-1, 9) if found.is_text(i)] == [0, 1, 2, 5, 6]
    assert found.text_row.tolist() == [0b1100111]
    assert found.end_row.tolist() == [0b1000]
    assert found.row_words == 1


def test_special_tokens_are_known_by_name_and_are_no_text():
    """Those that the logits are too narrow for are no tokens."""
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>", "◁/think▷", "<far>"])
    found = Vocabulary.of(Tokenizer(backend, eos_token_ids=(2,)), 4)
    assert found.specials == {b"<end>": 2, "◁/think▷".encode(): 3}
    assert not found.is_text(3)


def test_without_a_tokenizer_a_text_is_its_longest_pieces():
    found = vocabulary()
    assert found.write("aab") == [0, 1]
    assert found.bytes_of(found.write("€b")) == "€b".encode()
    assert found.write("xyz") == []


def test_the_model_way_of_writing_is_only_taken_if_it_spells_the_text():
    wrong = Vocabulary(PIECES, (END,), lambda text: [END])
    assert wrong.write("ab") == [1]
    slow = Vocabulary(PIECES, (END,), lambda text: [0, 2])
    assert slow.write("ab") == [0, 2]


def test_a_model_without_an_end_has_no_grammars():
    with pytest.raises(ConfigError, match="end-of-text"):
        Vocabulary(PIECES, ())


def test_equal_tables_have_equal_fingerprints():
    assert vocabulary().fingerprint == vocabulary().fingerprint
    assert vocabulary().fingerprint != Vocabulary(PIECES, (4,)).fingerprint
    assert vocabulary().fingerprint != Vocabulary(PIECES[::-1], (END,)).fingerprint


def sentencepiece() -> Tokenizer:
    """Puts a space before every text, and spells what it has no piece for in bytes."""
    vocab = {"<unk>": 0, "</s>": 1} | {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
    for piece in ("▁", "a", "b", "▁a", "ab"):
        vocab[piece] = len(vocab)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[("▁", "a"), ("a", "b")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "</s>"])
    return Tokenizer(backend, eos_token_ids=(1,))


def test_sentencepiece_writes_no_space_in_the_middle_of_a_text():
    found = Vocabulary.of(sentencepiece(), 300)
    assert found.size == 300
    assert found.pieces[1] == b""
    assert found.pieces[299] == b""
    assert found.encode is not None
    assert [found.pieces[i] for i in found.write("ab a")] == [b"ab", b" a"]
    backend = load_backend("llguidance", found)
    from ramify.srt.grammar import GrammarSpec

    matcher = compile_grammar(
        backend, GrammarSpec("choice", json.dumps(["ab a", "ab b"]))
    ).new_matcher()
    assert matcher.forced()[:1] == found.write("ab")


def test_an_unknown_engine_is_refused_by_name():
    with pytest.raises(ConfigError, match="'other' is none of auto, llguidance"):
        load_backend("other", vocabulary())
