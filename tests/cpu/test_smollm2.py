"""The embedded model against transformers, and against itself under every way to schedule it."""

import sys
from pathlib import Path

import pytest
import torch
import transformers

from ramify.srt.engine import Engine

sys.path.insert(0, str(Path(__file__).parent))
from prompt_errors import prompt_errors

pytestmark = pytest.mark.model

TEXT = """The river came down from the hills in spring and carried the winter with it: branches,
fence posts, once a whole boat without a name. Old Marta kept a list of what it brought. She wrote
in pencil, in the margins of a seed catalogue, and she never threw a year away. When the children
asked what the list was for, she said that somebody ought to know what had been lost upstream,
even if nobody downstream was going to give it back. In the ninth year she found the bell. """
LENGTHS = [5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 24, 31, 32, 33, 48, 64, 100, 255, 500, 1000]
GREEDY = {"temperature": 0.0, "max_new_tokens": 32, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(smollm2):
    with Engine("smollm2", dtype="float32", kv_cache_gb=0.5) as engine:
        yield engine


@pytest.fixture(scope="module")
def oracle(smollm2):
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.path, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def prompts(engine):
    """Twenty prompts of 5 to 1,000 tokens that share no prefix longer than a few tokens."""
    ids = engine.get_tokenizer().encode(TEXT * 14)
    return [ids[7 * k : 7 * k + n] for k, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def continuations(engine, prompts):
    """What the engine generates, all at once: chunked, batched, with prefixes shared."""
    replies = engine.generate(input_ids=prompts, sampling_params=GREEDY)
    return [reply["output_ids"] for reply in replies]


def test_greedy_tokens_equal_transformers_on_twenty_prompts(oracle, prompts, continuations):
    """Each token is the likeliest after all before it, so by induction all equal greedy search."""
    for prompt, tokens in zip(prompts, continuations, strict=True):
        with torch.no_grad():
            logits = oracle(torch.tensor([[*prompt, *tokens]])).logits[0]
        assert tokens == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert len(tokens) == 32


def test_greedy_tokens_equal_transformers_generate(oracle, prompts, continuations):
    """The same by transformers' own `generate`, with its cache, on some of the prompts."""
    for i in (0, 8, 16):
        ids = torch.tensor([prompts[i]])
        out = oracle.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=32,
            max_new_tokens=32,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert continuations[i] == out[0, len(prompts[i]) :].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"disable_radix_cache": True},
        {"chunked_prefill_size": 8192},
        {"chunked_prefill_size": 37, "max_running_requests": 8},
        {"max_running_requests": 1},
        {"page_size": 1},
        {"attention_backend": "reference"},
    ],
    ids=lambda options: ", ".join(f"{k}={v}" for k, v in options.items()),
)
def test_scheduling_does_not_change_the_tokens(options, prompts, continuations):
    """Cached or not, chunked or whole, alone or in a batch, by either kernels: the same in fp32."""
    some = [9, 3, 17, 0, 12, 16, 5, 15]
    with Engine("smollm2", dtype="float32", kv_cache_gb=0.3, **options) as other:
        replies = other.generate(input_ids=[prompts[i] for i in some], sampling_params=GREEDY)
        assert [r["output_ids"] for r in replies] == [continuations[i] for i in some]
        assert other.server_info()["violations"] == []


def test_a_cached_prompt_gives_the_tokens_of_an_uncached_one(engine, prompts, continuations):
    again = engine.generate(input_ids=prompts[17], sampling_params=GREEDY)
    assert again["meta_info"]["cached_tokens"] == len(prompts[17]) - 1
    assert again["output_ids"] == continuations[17]


def test_bfloat16_is_as_close_to_fp32_as_transformers_bfloat16_is(smollm2, oracle, prompts):
    """The yardstick is what the number type itself costs: transformers' own bf16 against fp32."""
    peer = transformers.AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.bfloat16)
    some = [prompts[i] for i in (13, 15, 16, 17, 18)]
    with Engine("smollm2", dtype="bfloat16", kv_cache_gb=0.2) as engine:
        error, peer_error = prompt_errors(engine, some, oracle, peer)
    assert error.mean() < 1.1 * peer_error.mean()
    assert error.max() < 1.5 * peer_error.max()
    assert error.mean() < 0.1


def test_deterministic_mode_gives_the_same_bits_however_it_is_scheduled(prompts):
    """In bf16 too: cached or not, alone or together, chunked anyhow, on one thread or two."""
    some = [prompts[i] for i in (17, 9, 3, 16, 12, 17)]
    trunk = prompts[18][:300]
    some += [[*trunk, k, k + 1] for k in range(5)]
    seen = []
    for options in (
        {"disable_radix_cache": True, "max_running_requests": 1, "threads": 1},
        {"chunked_prefill_size": 64, "max_running_requests": 16, "threads": 2},
        {"chunked_prefill_size": 1024, "page_size": 8, "threads": 1},
    ):
        with Engine("smollm2", dtype="bfloat16", deterministic=True, **options) as engine:
            replies = engine.generate(input_ids=some, sampling_params=GREEDY, return_logprob=True)
            seen.append([r["meta_info"]["output_token_logprobs"] for r in replies])
    assert seen[0] == seen[1] == seen[2]


def test_hits_follow_the_cached_token_contract(engine):
    """After a flush: 0, 100, 4999, 499, 5000 for prompts of ids 0 .. n - 1."""
    assert engine.flush_cache()
    seen = []
    for n in (100, 5000, 5000, 500, 5500):
        reply = engine.generate(input_ids=list(range(n)), sampling_params={"max_new_tokens": 1})
        seen.append(reply["meta_info"]["cached_tokens"])
    assert seen == [0, 100, 4999, 499, 5000]


def test_the_next_turn_finds_prompt_and_answer(engine):
    """Generated tokens are cached like prompts, all but the last, which was never computed."""
    first = engine.generate("Tell me a story.", {"max_new_tokens": 20, "ignore_eos": True})
    ids = [*engine.get_tokenizer().encode("Tell me a story."), *first["output_ids"], 5, 6]
    second = engine.generate(input_ids=ids, sampling_params={"max_new_tokens": 1})
    assert second["meta_info"]["cached_tokens"] == len(ids) - 3
