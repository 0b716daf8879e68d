"""Tokenizers built from GGUF metadata: splitting, merges by score, special tokens, BOS."""

import json

import pytest

from ramify.srt.errors import InvalidRequest, ModelLoadError
from ramify.srt.tokenization import Tokenizer
from ramify.srt.tokenization.from_gguf import merges_of_scores, write_tokenizer
from ramify.srt.tokenization.incremental import IncrementalDecoder
from ramify.srt.tokenization.pieces import BYTE_CHARACTERS

BYTES = list(BYTE_CHARACTERS)
WORDS = ["he", "ll", "hell", "hello", "12", "123", "1234", "Ġhello"]
MERGES = ["h e", "l l", "he ll", "hell o", "1 2", "12 3", "123 4", "Ġ hello"]
SPECIAL = ["<s>", "</s>", "<tool>"]
SPM = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{i:02X}>" for i in range(256)),
    "▁",
    "a",
    "b",
    "▁a",
    "ab",
    "▁ab",
]


def byte_level(pre="smollm", **more):
    tokens = [*SPECIAL, *BYTES, *WORDS]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 4, *[1] * (len(tokens) - 3)],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def sentencepiece(**more):
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": SPM,
        "tokenizer.ggml.scores": [0.0] * 259 + [-9.0, -8.0, -7.0, -1.0, -2.0, -3.0],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 6],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


@pytest.fixture
def built(tmp_path):
    def build(metadata):
        write_tokenizer(metadata, tmp_path)
        return Tokenizer.load(tmp_path)

    return build


def pieces(tokenizer, text):
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, add_special_tokens=False)]


@pytest.mark.parametrize(
    ("pre", "digits"),
    [
        ("smollm", ["1", "2", "3", "4"]),
        ("qwen2", ["1", "2", "3", "4"]),
        ("llama-bpe", ["123", "4"]),
        ("gpt-2", ["1234"]),
    ],
)
def test_splitters_differ_in_digits(built, pre, digits):
    tokenizer = built(byte_level(pre))
    assert pieces(tokenizer, "1234") == digits
    assert pieces(tokenizer, "hello hello") == ["hello", " hello"]


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe", "gpt-2", "default"])
@pytest.mark.parametrize(
    "text", ["a  b\n\n\tc ", "é日本😀", "don't I'LL", " hello\r\n", "x<tool>y", ""]
)
def test_every_text_survives_the_round_trip(built, pre, text):
    tokenizer = built(byte_level(pre))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_one_token_and_skipped_by_default(built):
    """USER_DEFINED tokens are one token too, but part of the text."""
    tokenizer = built(byte_level())
    ids = tokenizer.encode("<s>hello<tool></s>")
    assert [tokenizer.token_text(i) for i in ids] == ["<s>", "hello", "<tool>", "</s>"]
    assert tokenizer.decode(ids) == "hello<tool>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>hello<tool></s>"
    assert tokenizer.special_ids == {0, 1}


@pytest.mark.parametrize(
    ("metadata", "begins"),
    [
        (byte_level("smollm"), False),
        (byte_level("llama-bpe"), True),
        (byte_level("llama-bpe", add_bos_token=False), False),
        (byte_level("smollm", add_bos_token=True), True),
        (sentencepiece(), True),
    ],
)
def test_bos_is_added_where_the_model_wants_it(built, metadata, begins):
    tokenizer = built(metadata)
    assert (tokenizer.encode("a")[0] == tokenizer.bos_token_id) == begins
    assert tokenizer.encode("a", add_special_tokens=False)[0] != tokenizer.bos_token_id


def test_sentencepiece_merges_what_scores_best(built):
    """▁a scores above ab, so "ab" after a space is ▁a + b unless ▁ab can be made of them."""
    tokenizer = built(sentencepiece())
    assert pieces(tokenizer, "ab") == [" ab"]
    assert pieces(tokenizer, "b ab") == [" ", "b", " ab"]
    assert merges_of_scores(["a", "b", "ab", "aba", "c"], [0, 0, -2, -1, 0]) == [
        ("ab", "a"),
        ("a", "b"),
    ]


@pytest.mark.parametrize("text", ["ab a", "é", "a😀b", "日 本"])
def test_sentencepiece_spells_the_rest_in_bytes(built, text):
    tokenizer = built(sentencepiece())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    decoder = IncrementalDecoder(tokenizer)
    streamed = "".join(decoder.push([i]) for i in ids) + decoder.finish()
    assert streamed == " " + text  # the first space parts it from the prompt


def test_no_space_goes_in_front_where_the_file_says_so(built):
    tokenizer = built(sentencepiece(add_space_prefix=False))
    assert pieces(tokenizer, "ab") == ["ab"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_the_template_and_the_named_tokens_are_kept(built, tmp_path):
    template = "{{ bos_token }}{{ messages[0].content }}"
    metadata = byte_level() | {"tokenizer.chat_template": template}
    tokenizer = built(metadata)
    assert tokenizer.chat.render([{"role": "user", "content": "hi"}]) == "<s>hi"
    assert tokenizer.eos_token_ids == (1,)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "</s>"


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (byte_level("tekken"), "tekken"),
        (byte_level() | {"tokenizer.ggml.model": "t5"}, "t5"),
        ({"tokenizer.ggml.tokens": ["a"]}, "tokenizer.ggml.model"),
        ({}, "tokenizer.ggml.tokens"),
        (byte_level(merges=["h zz"]), "broken"),
        (byte_level(merges=["h"]), "broken"),
        (byte_level(token_type=[1]), "broken"),
        (byte_level(bos_token_id=10**6, add_bos_token=True), "broken"),
        (sentencepiece(scores=[0.0]), "broken"),
    ],
)
def test_other_tokenizers_are_refused_by_name(built, metadata, said):
    with pytest.raises(ModelLoadError, match=said):
        built(metadata)


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "nul \0"])
def test_text_that_is_not_unicode_is_refused(built, text):
    tokenizer = built(byte_level())
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.encode(text)
    assert caught.value.param == "text"
    with pytest.raises(InvalidRequest):
        tokenizer.encode_batch(["fine", text])


def test_a_batch_is_encoded_like_its_texts(built):
    tokenizer = built(byte_level("llama-bpe"))
    texts = ["hello", "", "<s>1234"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_ids_without_a_token_are_no_text_and_impossible_ids_are_refused(built):
    """A model's logits may be wider than its vocabulary."""
    tokenizer = built(byte_level())
    assert tokenizer.decode([10**6]) == tokenizer.token_text(10**6) == ""
    for ids in ([-1], [2**32]):
        with pytest.raises(InvalidRequest):
            tokenizer.decode(ids)


def test_half_a_character_has_a_readable_name(built):
    tokenizer = built(byte_level())
    first, *_ = tokenizer.encode("é")
    assert tokenizer.token_text(first) == "bytes:\\xc3"
    assert tokenizer.token_bytes(first) == b"\xc3"


def test_a_broken_or_missing_tokenizer_is_a_model_error(tmp_path):
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path)
