"""Long texts tokenised by remembered parts: the ids are always those of the whole text."""

import re
import threading
import unicodedata

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from ramify.srt.tokenization import Tokenizer, prefix_tokenizer
from ramify.srt.tokenization.from_gguf import _SPLITTERS
from ramify.srt.tokenization.pieces import BYTE_CHARACTERS
from ramify.srt.tokenization.prefix_tokenizer import LETTERS, PrefixTokenizer
from ramify.srt.tokenization.tokenizer import LONG_TEXT

KINDS = sorted(_SPLITTERS)
MIB = 1024 * 1024
# Merges across every kind of boundary, so that a word which is split wrongly shows in the ids.
PAIRS = [
    *("a b", "ab a", "b Ġ", "a Ġ", "Ġ a", "Ġ b", "Ġa b", "Ġ Ġ", "ĠĠ Ġ", "ĠĠ a", "Ċ Ċ", "Ġ Ċ"),
    *("Ċ Ġ", "a Ċ", "Ċ a", "č Ċ", "a č", "1 2", "12 1", "Ġ 1", "1 Ġ", "a 1", "1 a", "' s"),
    *("' l", "'l l", "s Ġ", "! Ċ", "! !", "Ġ !", "ĉ a", "a ĉ", "Ã ©", "Ì ģ", "e Ì", "< |"),
]
NASTY = [
    *(
        "a",
        "ab",
        "aba",
        "s",
        "é",
        "e\u0301",
        "\u0301",
        "日本",
        "한",
        "\u1112\u1161\u11ab",
        "Ж",
        "ß",
    ),
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2028", "\u200b"),
    *("1", "12", "1212", "½", "²", "٣", "!", "!!", "'", "'s", "'S", "'ll", "don't", "’s", "_"),
    *("😀", "👩‍👩‍👧", "\ufeff", "\u212b", "ſ", "<s>", "</s>", "<tool>", "<s", "s>", "<|", "|>"),
]
texts = st.lists(st.sampled_from(NASTY), min_size=5, max_size=40).map("".join)


def backend_of(kind, begins=False):
    """A tiny tokenizer split as the GGUF kind is, with every merge that could betray a cut."""
    tokens = ["<s>", "</s>", "<tool>", *BYTE_CHARACTERS]
    merges = [tuple(pair.split(" ")) for pair in PAIRS]
    tokens += dict.fromkeys(left + right for left, right in merges)
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, ignore_merges=kind == "llama-bpe")
    )
    backend.normalizer = normalizers.NFC() if kind == "qwen2" else None
    backend.pre_tokenizer = _SPLITTERS[kind]()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens[:2]])
    backend.add_tokens([AddedToken("<tool>", normalized=True)])
    if begins:
        backend.post_processor = TemplateProcessing(
            single=["<s>", "$A", "</s>"], special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return backend


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_whole_text(kind):
    """With a part at every cut there is, and prompts that share a beginning in any place."""
    backend = backend_of(kind)
    ours = PrefixTokenizer.over(backend, MIB, part_chars=1)

    @given(shared=texts, ends=st.lists(texts, min_size=1, max_size=3), at=st.integers(0, 60))
    def check(shared, ends, at):
        for end in ends:
            text = shared[:at] + end
            assert ours.encode(text) == backend.encode(text).ids

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_of_pieces_is_exact(kind):
    """Not by chance: side by side, and before and behind a word with its space."""
    backend = backend_of(kind)
    ours = PrefixTokenizer.over(backend, MIB, part_chars=1)
    for left in NASTY:
        for right in NASTY:
            for middle in ("", "ab ", "ab\n", "ab\t", "ab\r"):
                text = f"a{left}{middle}{right}ab"
                assert ours.encode(text) == backend.encode(text).ids


@pytest.mark.parametrize("begins", [False, True])
def test_special_tokens_go_around_the_whole(begins):
    backend = backend_of("llama-bpe", begins)
    ours = PrefixTokenizer.over(backend, MIB, part_chars=1)
    for special in (False, True):
        for text in ("", "ab ab ab", " ", "<s>ab ab</s>"):
            want = backend.encode(text, add_special_tokens=special).ids
            assert ours.encode(text, special) == want


def test_letters_of_cuts_are_letters_that_nfc_leaves_alone():
    """What the reasoning rests on, for each of them."""
    letters = [chr(i) for i in range(0x10000) if re.match(f"[{LETTERS}]", chr(i))]
    assert len(letters) > 30_000
    assert all(unicodedata.category(c).startswith("L") for c in letters)
    assert all(unicodedata.normalize("NFC", c) == c for c in letters)
    assert not any(unicodedata.combining(c) for c in letters)


class Recording:
    """Tokenises a text to its characters and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, text):
        self.asked.append(text)
        return [ord(c) for c in text]


def words(n, word="word"):
    return " ".join(f"{word}{chr(97 + i % 26)}" for i in range(n))


def test_only_the_tail_of_a_known_beginning_is_tokenised():
    tokenise = Recording()
    ours = PrefixTokenizer(tokenise, MIB)
    ours.encode(words(1000))
    tokenise.asked.clear()
    text = words(1000) + ": and a new question?"
    assert ours.encode(text) == [ord(c) for c in text]
    assert sum(map(len, tokenise.asked)) < 2 * prefix_tokenizer.PART_CHARS


def test_memory_is_bounded_and_the_parts_used_last_stay():
    tokenise = Recording()
    ours = PrefixTokenizer(tokenise, 100_000)
    kept = words(500)
    for i in range(40):
        ours.encode(words(500, f"other{chr(97 + i % 26)}{chr(97 + i // 26)}"))
        ours.encode(kept)
        assert 0 < ours.bytes_used <= 100_000
    tokenise.asked.clear()
    ours.encode(kept)
    assert len(tokenise.asked) == 1, "the tail alone"
    ours.encode(words(500, "othera"))
    assert len(tokenise.asked) > 4, "the first one is long forgotten"


def test_a_part_as_large_as_the_memory_is_not_kept():
    ours = PrefixTokenizer(Recording(), 10_000)
    ours.encode("x" * 20_000 + " tail")
    assert ours.bytes_used == 0


def test_threads_get_exact_ids_and_leave_the_bound_intact():
    backend = backend_of("smollm")
    ours = PrefixTokenizer.over(backend, 20_000, part_chars=32)
    prompts = [words(50, "ab " * (i % 7)) for i in range(14)]
    expected = [backend.encode(text).ids for text in prompts]
    wrong = []

    def work():
        for _ in range(30):
            wrong.extend(t for t, e in zip(prompts, expected, strict=True) if ours.encode(t) != e)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 0 <= ours.bytes_used <= 20_000


def changed(**stages):
    backend = backend_of("smollm")
    for name, stage in stages.items():
        setattr(backend, name, stage)
    return backend


def with_token(token):
    backend = backend_of("smollm")
    backend.add_tokens([token])
    return backend


@pytest.mark.parametrize(
    "backend",
    [
        changed(normalizer=normalizers.NFKC()),
        changed(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        changed(pre_tokenizer=pre_tokenizers.Split(Regex(r"\w+\s"), "isolated")),
        changed(pre_tokenizer=pre_tokenizers.Metaspace()),
        changed(pre_tokenizer=pre_tokenizers.Digits()),
        changed(model=models.BPE(vocab={"a": 0}, merges=[], dropout=0.5)),
        changed(model=models.WordLevel({"a": 0}, unk_token="a")),
        with_token(AddedToken("a b")),
        with_token(AddedToken("<x>", lstrip=True)),
        with_token(AddedToken("<x>", rstrip=True)),
        with_token(AddedToken("<x>", single_word=True)),
        tokenizers.Tokenizer(models.BPE()),
    ],
)
def test_tokenizers_that_might_reach_over_a_cut_are_left_alone(backend):
    assert PrefixTokenizer.over(backend, MIB) is None


@pytest.mark.parametrize("kind", KINDS)
def test_encode_uses_it_for_long_texts_only_and_nothing_when_off(kind):
    backend = backend_of(kind)
    text = words(LONG_TEXT)
    expected = backend.encode(text).ids
    on, off = Tokenizer(backend), Tokenizer(backend, prefix_cache_bytes=0)
    on.encode("ab ab" * 300)
    assert on._prefixes.bytes_used == 0
    for _ in range(2):
        assert on.encode(text) == off.encode(text) == expected
    assert on._prefixes.bytes_used > 0
    assert off._prefixes is None
