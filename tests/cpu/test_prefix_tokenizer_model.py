"""Remembered parts on the embedded model's own tokenizer: nasty texts get the ids of the whole."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.srt.tokenization import Tokenizer
from ramify.srt.tokenization.prefix_tokenizer import PrefixTokenizer
from ramify.srt.tokenization.tokenizer import LONG_TEXT

pytestmark = pytest.mark.model

PIECES = [
    *(
        "The",
        " quick",
        "brown fox",
        "don't",
        " I'LL",
        "naïve",
        "e\u0301",
        "русский",
        "日本語",
        "한글",
    ),
    *(" ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", "\u200b", "\u2028"),
    *("1", "1234", " 3.14", "½", "٣", "!", "...", "'", "'s", "😀", "👩‍👩‍👧", "\u0301", "\ufeff"),
    *("<|im_start|>", "<|im_end|>", "<|im_", "end|>", "<repo_name>", "<|endoftext|>", "<|", "|>"),
    *("def f(x):\n    return x\n", "{'a': [1, 2]}", "https://x.org/a?b=c", "CamelCase", "x_y"),
]
texts = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


@pytest.fixture(scope="module")
def backend(smollm2):
    return tokenizers.Tokenizer.from_file(str(smollm2.path / "tokenizer.json"))


@pytest.fixture(scope="module")
def every_cut(backend):
    return PrefixTokenizer.over(backend, 1024 * 1024, part_chars=1)


@given(shared=texts, ends=st.lists(texts, min_size=1, max_size=3), at=st.integers(0, 200))
@settings(max_examples=300)
def test_ids_are_those_of_the_whole_text(backend, every_cut, shared, ends, at):
    """A part at every cut, and prompts that share a beginning in any place."""
    for end in ends:
        text = shared[:at] + end
        assert every_cut.encode(text) == backend.encode(text).ids


@given(pieces=st.lists(st.sampled_from(PIECES), min_size=40, max_size=40), at=st.integers(0, 6000))
@settings(max_examples=30)
def test_long_prompts_are_the_same_with_and_without(smollm2, both, pieces, at):
    on, off = both
    text = ("".join(pieces) * LONG_TEXT)[: LONG_TEXT + at]
    assert on.encode(text) == on.encode(text) == off.encode(text)


@pytest.fixture(scope="module")
def both(smollm2):
    return Tokenizer.load(smollm2.path), Tokenizer.load(smollm2.path, prefix_cache_bytes=0)
