"""Beam search gives what transformers gives: the rules on random models, then the real one."""

import itertools
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ramify.srt.beam_search import BeamOptions, Beams, beam_search, extend
from ramify.srt.engine import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from server_process import Server

# float32: a cached prefix shifts bfloat16 logits enough to order two beams otherwise.
OPTIONS = {"threads": 1, "max_total_tokens": 2048, "dtype": "float32"}
PROMPTS = [
    "The capital of France is",
    "Once upon a time",
    "def add(a, b):\n    ",
    "Water boils at",
    "My favourite colour is",
    "Q: What is 2 + 2?\nA:",
    "The opposite of hot",
    "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n",
    "In 1969, people",
    "Roses are red,",
]
PENALTIES = [1.0, 1.0, 0.0, 2.0, -1.0, 1.0, 0.5, 1.0, 1.0, 2.0]


# --- the rules: a random model whose texts end often ---


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def ours(model, prompt, options):
    """The ids and scores that `extend` finds over the model's own log-probabilities."""
    beams = Beams()
    while beams.running:
        ids = torch.tensor([[*prompt, *h.token_ids] for h in beams.running])
        with torch.inference_mode():
            logprobs = model(ids).logits[:, -1].log_softmax(-1)
        likeliest = logprobs.topk(options.n_candidates)
        pairs = zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        beams = extend(beams, [list(zip(*pair, strict=True)) for pair in pairs], options)
    return [(list(h.token_ids), options.score(h.logprob, len(h.token_ids))) for h in beams.finished]


def theirs(model, prompt, options):
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=options.beam_width,
        num_return_sequences=options.beam_width,
        max_new_tokens=options.max_new_tokens,
        do_sample=False,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        eos_token_id=list(options.eos_token_ids) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    made = out.sequences[:, len(prompt) :].tolist()
    return [
        (ended(ids, options.eos_token_ids), score)
        for ids, score in zip(made, out.sequences_scores.tolist(), strict=True)
    ]


def ended(ids, eos_token_ids):
    """The ids without the padding behind the first end token."""
    at = next((i for i, token in enumerate(ids) if token in eos_token_ids), len(ids) - 1)
    return ids[: at + 1]


@pytest.mark.parametrize("stopping", [False, True, "never"])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("ends", [(3,), (3, 7)])
def test_the_rules_are_those_of_transformers(tiny, stopping, penalty, ends):
    for width, first in itertools.product((2, 3), range(0, 12, 2)):
        options = BeamOptions(width, 10, ends, penalty, stopping)
        found, expected = ours(tiny, [first, 1], options), theirs(tiny, [first, 1], options)
        assert [ids for ids, _ in found] == [ids for ids, _ in expected]
        assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=1e-4)


# --- the real model, through the engine ---


@pytest.fixture(scope="module")
def engine():
    with Engine("smollm2", **OPTIONS) as made:
        yield made


@pytest.fixture(scope="module")
def reference(smollm2):
    return AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.float32)


@pytest.mark.model
@pytest.mark.parametrize(("prompt", "penalty"), list(zip(PROMPTS, PENALTIES, strict=True)))
def test_the_real_model_gives_what_transformers_gives(engine, reference, prompt, penalty):
    tokenizer = engine.get_tokenizer()
    ids = tokenizer.encode(prompt)
    options = BeamOptions(4, 16, tokenizer.eos_token_ids, penalty)
    found = beam_search(engine, prompt, max_new_tokens=16, length_penalty=penalty, n=4)
    expected = theirs(reference, ids, options)
    assert [reply["output_ids"] for reply in found] == [made for made, _ in expected]
    scores = [reply["meta_info"]["score"] for reply in found]
    assert scores == pytest.approx([s for _, s in expected], abs=1e-3)


@pytest.mark.model
def test_each_step_computes_one_token_for_each_beam(engine):
    """All else is a hit in the cache: that is what makes the search cheap."""
    assert engine.flush_cache()
    ids = list(range(100, 200))
    for cached in (0, 99):
        (reply,) = beam_search(
            engine, input_ids=ids, beam_width=3, max_new_tokens=8, eos_token_ids=()
        )
        meta = reply["meta_info"]
        assert (meta["cached_tokens"], meta["prompt_tokens"]) == (cached, 100)
        assert meta["computed_tokens"] == 100 - cached + 7 * 3
    assert engine.server_info()["violations"] == []


@pytest.mark.model
def test_a_reply_is_text_and_says_why_it_ended(engine):
    prompt = "The capital of France is"
    best, second = beam_search(engine, prompt, beam_width=4, max_new_tokens=4, n=2)
    assert "Paris" in best["text"] + second["text"]
    score = best["meta_info"]["score"]
    assert score >= second["meta_info"]["score"]
    assert best["meta_info"]["cumulative_logprob"] == pytest.approx(4 * score)
    assert best["meta_info"]["finish_reason"] == {"type": "length", "length": 4}
    end = best["output_ids"][1]
    made = beam_search(engine, prompt, max_new_tokens=4, eos_token_ids=[end], n=4)
    stopped = next(r for r in made if r["output_ids"][-1] == end)
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": end}
    assert stopped["text"] == engine.get_tokenizer().decode(stopped["output_ids"][:-1])


# --- the real model, over HTTP ---


@pytest.fixture(scope="module")
def server(smollm2):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    server = Server("smollm2", *options)
    yield server
    assert server.stop() == 0


@pytest.mark.model
@pytest.mark.parametrize(("prompt", "penalty"), list(zip(PROMPTS, PENALTIES, strict=True))[::2])
def test_over_http_it_is_the_same_search(engine, server, prompt, penalty):
    """The same ids, texts, scores and counts as the function above an engine in this process."""
    options = {"beam_width": 4, "max_new_tokens": 12, "length_penalty": penalty}
    assert engine.flush_cache()
    assert server.client.post("/flush_cache", params={"timeout": 10}).is_success
    expected = beam_search(engine, prompt, n=4, **options)
    found = server.generate(text=prompt, sampling_params=options).json()
    same = ("output_ids", "text")
    assert [[r[k] for k in same] for r in found] == [[r[k] for k in same] for r in expected]
    for reply, other in zip(found, expected, strict=True):
        meta, wanted = reply["meta_info"], other["meta_info"]
        for name in ("finish_reason", "prompt_tokens", "cached_tokens", "computed_tokens"):
            assert meta[name] == wanted[name], name
        assert meta["score"] == pytest.approx(wanted["score"], abs=1e-4)
    completion = {"model": "smollm2", "prompt": prompt, "max_tokens": 12, "n": 4}
    completion |= {"use_beam_search": True, "length_penalty": penalty}
    choices = server.post("/v1/completions", **completion).json()["choices"]
    assert [choice["text"] for choice in choices] == [reply["text"] for reply in expected]


@pytest.mark.model
def test_over_http_a_beam_may_be_wider_than_log_probabilities_are_told(server):
    sampling = {"beam_width": 64, "max_new_tokens": 3}
    found = server.generate(text="Roses are red,", sampling_params=sampling).json()
    assert len({tuple(reply["output_ids"]) for reply in found}) == 64
    scores = [reply["meta_info"]["score"] for reply in found]
    assert scores == sorted(scores, reverse=True)
    assert server.stats()["running"] == 0


@pytest.mark.model
def test_a_client_that_leaves_in_the_middle_gives_all_pages_back(server):
    sampling = {"beam_width": 8, "max_new_tokens": 1000}
    body = {"text": "Once upon a time", "sampling_params": sampling}
    with pytest.raises(httpx.ReadTimeout):
        server.client.post("/generate", json=body, timeout=1.0)
    time.sleep(0.5)
    first = server.stats()
    assert (first["running"], first["waiting"]) == (0, 0)
    assert first["pages_free"] + first["pages_evictable"] == first["pages_total"]
    time.sleep(0.3)
    assert server.stats()["steps"] == first["steps"], "no further step came"
