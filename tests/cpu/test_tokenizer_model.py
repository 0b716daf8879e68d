"""The embedded model, from its name to text: conversion, tokenizer and template in full."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.srt.models.config import ModelConfig
from ramify.srt.tokenization import Tokenizer
from ramify.srt.tokenization.incremental import IncrementalDecoder
from ramify.srt.weights.reader import open_source
from ramify.srt.weights.source import prepare

pytestmark = pytest.mark.model

TEXTS = [
    "Hello, world!",
    "  two  spaces\tand\ttabs\n\n\nnew lines \r\n",
    "Numbers 1234567890, 3.14, 1e-5",
    "naïve café, Grüße, Ελληνικά, русский, 日本語の文章, العربية",
    "emoji 😀👩‍👩‍👧 and combining e\u0301",
    "I'll don't WE'RE they've",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "",
    " ",
    "\u200b\ufeff",
]
CHAT = [
    {"role": "user", "content": "Name three colours."},
    {"role": "assistant", "content": "Red, green"},
]


@pytest.fixture(scope="module")
def folder():
    return prepare("smollm2")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder.path)


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder.path)


def test_the_folder_describes_the_model(folder, tokenizer):
    config = ModelConfig.from_hf(folder.config(), folder.generation_config())
    assert (config.n_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert config.tie_embeddings
    assert config.eos_token_ids == tokenizer.eos_token_ids == (2,)
    assert tokenizer.vocab_size == config.vocab_size == 49152
    source = open_source(folder)
    assert source.read("model.norm.weight", (576,)).dtype == torch.bfloat16
    assert not source.has("lm_head.weight")


def test_transformers_reads_the_folder_and_makes_sense(folder, theirs):
    """The order of rotary pairs is right: with a wrong one the text is noise."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
    given_ids = theirs("The capital of France is", return_tensors="pt")
    out = model.generate(**given_ids, max_new_tokens=3, do_sample=False)
    assert theirs.decode(out[0]).startswith("The capital of France is Paris")


@pytest.mark.parametrize("text", TEXTS)
def test_texts_get_the_ids_that_transformers_gives(tokenizer, theirs, text):
    ids = tokenizer.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
    ],
)
def test_conversations_get_the_text_that_transformers_gives(tokenizer, theirs, options):
    ours = tokenizer.chat.render(CHAT, **options)
    assert ours == theirs.apply_chat_template(CHAT, tokenize=False, **options)
    assert ours.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


@pytest.fixture(scope="module")
def broken(tokenizer):
    """Tokens that are a part of a character: few of all, so random ids would seldom meet two."""
    return [
        i for i in range(tokenizer.vocab_size) if tokenizer.token_text(i).startswith("bytes:\\x")
    ]


@given(data=st.data(), skip=st.booleans())
@settings(max_examples=300, deadline=None)
def test_streamed_text_is_the_text(tokenizer, broken, data, skip):
    """Any ids, in any pieces: all the deltas together are the decoding of all the ids."""
    one = st.one_of(
        st.sampled_from(broken),
        st.integers(0, tokenizer.vocab_size - 1),
        st.sampled_from([0, 1, 2, 60000]),
    )
    pieces = data.draw(st.lists(st.lists(one, max_size=4), max_size=12))
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip)
    streamed = "".join([*map(decoder.push, pieces), decoder.finish()])
    assert streamed == tokenizer.decode([i for piece in pieces for i in piece], skip)


def test_no_half_character_is_ever_shown(tokenizer):
    text = "日本語😀é👩‍👩‍👧ȹ"
    decoder = IncrementalDecoder(tokenizer)
    deltas = [decoder.push([i]) for i in tokenizer.encode(text)]
    assert len(deltas) > len(text)
    assert "\ufffd" not in "".join(deltas)
    assert "".join(deltas) == text
    assert decoder.finish() == ""


def test_every_token_has_bytes_that_add_up(tokenizer):
    """What a token is said to add is what the decoder makes of it."""
    for i in range(0, tokenizer.vocab_size, 37):
        whole = tokenizer.decode([i], skip_special_tokens=False)
        assert tokenizer.token_bytes(i).decode(errors="replace") == whole
