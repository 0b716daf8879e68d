"""Thinking before a constraint, on the embedded model and end to end.

The model is no reasoning model, but it goes on as a prompt does: examples in which each answer is
thought about first make it think, end its thinking by a marker of three tokens, and answer.
"""

import json
import re
import sys
from pathlib import Path

import openai
import pytest
from pydantic import BaseModel

from ramify.srt.engine import Engine
from ramify.srt.reasoning import PARSERS, split

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import serving

pytestmark = pytest.mark.model

OPTIONS = {
    "threads": 1,
    "max_total_tokens": 8192,
    "deterministic": True,
    "reasoning_parser": "deepseek-r1",
}
SUM = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "sure": {"enum": ["certainly", "perhaps"]}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}
TAG = {
    "type": "structural_tag",
    "format": {
        "type": "tag",
        "begin": "<n>",
        "content": {"type": "regex", "pattern": "[0-9]{1,2}"},
        "end": "</n>",
    },
}
EXAMPLES = [
    (f"What is {a}+{b}?", f"{a} and {b} make {a + b}.", str(a + b)) for a, b in ((2, 3), (4, 1))
]


def asked(a: int, b: int) -> str:
    """A prompt that ends inside a thinking block."""
    told = [f"Question: {q}\n<think>{why}</think>{so}\n\n" for q, why, so in EXAMPLES]
    return "".join(told) + f"Question: What is {a}+{b}?\n<think>"


PROMPTS = [asked(a, b) for a in range(1, 5) for b in range(2, 5)]
RULES = [{"json_schema": SUM}, {"regex": "[A-Z]{3}-[0-9]"}, {"ebnf": 'root ::= "yes" | "no"'}]


def right(rule: dict, text: str) -> bool:
    if "json_schema" in rule:
        given = json.loads(text)
        return set(given) == {"sum", "sure"} and isinstance(given["sum"], int)
    return re.fullmatch(rule.get("regex", "yes|no"), text) is not None


def parts(reply: dict) -> tuple[str, str]:
    return split(reply["text"], PARSERS["deepseek-r1"], inside=True)


def params(**more) -> list[dict]:
    """One for each prompt, the rules in turn."""
    base = {"max_new_tokens": 60, "temperature": 0}
    return [base | RULES[i % len(RULES)] | more for i in range(len(PROMPTS))]


def said(engine: Engine, sampling, **options) -> list[tuple]:
    """What an engine answers, and nothing of how it got there."""
    assert engine.flush_cache()
    options = {"require_reasoning": True} | options
    replies = engine.generate(PROMPTS, sampling, **options)
    assert engine.server_info()["violations"] == []
    return [
        (
            reply["text"],
            reply["output_ids"],
            reply["meta_info"]["finish_reason"],
            reply["meta_info"]["reasoning_tokens"],
            reply["meta_info"].get("output_token_logprobs"),
        )
        for reply in replies
    ]


@pytest.fixture(scope="module")
def engine():
    with Engine("smollm2", **OPTIONS) as engine:
        yield engine


@pytest.fixture(scope="module")
def wanted():
    """What the prompts are answered with, token by token."""
    with Engine("smollm2", jump_forward=False, **OPTIONS) as engine:
        yield said(engine, params(), return_logprob=True)
        assert engine.server_info()["stats"]["jump_forward_tokens"] == 0


def test_the_constraint_starts_where_thinking_ends(engine):
    """And it changes nothing before: the model thinks what it thinks without a constraint."""
    free = engine.generate(PROMPTS, {"max_new_tokens": 60, "temperature": 0})
    replies = engine.generate(PROMPTS, params(), require_reasoning=True)
    for i, (reply, unbound) in enumerate(zip(replies, free, strict=True)):
        why, so = parts(reply)
        assert reply["meta_info"]["finish_reason"]["type"] == "stop", reply["text"]
        assert right(RULES[i % len(RULES)], so), reply["text"]
        assert why == parts(unbound)[0]
        assert not right({"regex": RULES[1]["regex"]}, why)
        ids = reply["output_ids"][: reply["meta_info"]["reasoning_tokens"]]
        assert engine.get_tokenizer().decode(ids) == f"{why}</think>"
    assert sum(" make " in parts(reply)[0] for reply in replies) > 6


def test_jumping_changes_no_answer(engine, wanted):
    before = engine.server_info()["stats"]["jump_forward_tokens"]
    assert said(engine, params(), return_logprob=True) == wanted
    assert engine.server_info()["stats"]["jump_forward_tokens"] > before + 20


@pytest.mark.parametrize(
    "how",
    [
        {"overlap": True},
        {"max_total_tokens": 160},
        {"max_total_tokens": 180, "page_size": 4, "overlap": True},
        {"max_running_requests": 3, "chunked_prefill_size": 16},
    ],
    ids=str,
)
def test_no_answer_depends_on_how_an_engine_runs(how, wanted):
    """A request may be retracted, or planned ahead, while it thinks and when it does no more."""
    with Engine("smollm2", **OPTIONS | how) as engine:
        assert said(engine, params(), return_logprob=True) == wanted
        if "max_total_tokens" in how:
            assert engine.server_info()["stats"]["retractions"] > 0


@pytest.mark.parametrize("backend", ["llguidance", "xgrammar", "outlines"])
def test_every_engine_has_the_same_gate(backend):
    rule = {"regex": RULES[1]["regex"], "max_new_tokens": 60, "temperature": 0}
    with Engine("smollm2", grammar_backend=backend, **OPTIONS) as engine:
        reply = engine.generate(PROMPTS[0], rule, require_reasoning=True)
    assert right(rule, parts(reply)[1])
    assert "make" in parts(reply)[0]


def test_two_engines_of_one_model(engine):
    """`auto` takes another for a structural tag, with a vocabulary of its own."""
    rules = [{"structural_tag": TAG}, {"regex": "[0-9]"}]
    rules = [{"max_new_tokens": 60, "temperature": 0} | rule for rule in rules]
    replies = engine.generate(PROMPTS[:2], rules, require_reasoning=True)
    assert re.fullmatch("<n>[0-9]{1,2}</n>", parts(replies[0])[1])
    assert re.fullmatch("[0-9]", parts(replies[1])[1])


def test_who_does_not_think_is_bound_from_the_start(engine):
    """One compiled grammar serves both, in any order."""
    rule = {"regex": "[a-f]{4}", "max_new_tokens": 60, "temperature": 0}
    for think in (True, False, True):
        text = engine.generate(PROMPTS[0], rule, require_reasoning=think)["text"]
        assert (re.fullmatch("[a-f]{4}", text) is None) == think
    both = engine.generate(PROMPTS[:2], rule, require_reasoning=[True, False])
    assert re.fullmatch("[a-f]{4}", parts(both[0])[1])
    assert re.fullmatch("[a-f]{4}", both[1]["text"])


def test_drawn_answers_are_right_too(engine):
    drawn = params(temperature=1.0, sampling_seed=3, n=2)
    replies = engine.generate(PROMPTS, drawn, require_reasoning=True)
    ended = [i for i, r in enumerate(replies) if r["meta_info"]["finish_reason"]["type"] == "stop"]
    assert len(ended) >= 12
    assert all(right(RULES[i // 2 % len(RULES)], parts(replies[i])[1]) for i in ended)


def test_thinking_that_does_not_end_is_cut_and_nothing_is_an_answer(engine):
    """Not even the end token ends it, however much it is wanted."""
    (end,) = engine.get_tokenizer().encode(">")
    eos = engine.model_info()["eos_token_ids"]
    bias = {end: -10_000.0} | dict.fromkeys(eos, 10_000.0)
    rule = RULES[1] | {"max_new_tokens": 40, "temperature": 0, "logit_bias": bias}
    reply = engine.generate(PROMPTS[0], rule, require_reasoning=True)
    assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 40}
    assert parts(reply) == (reply["text"], "")
    assert reply["meta_info"]["reasoning_tokens"] == 40
    assert not {*reply["output_ids"]} & {*eos, end}


def test_the_engine_s_own_chats_think_first_too(engine):
    rule = {"regex": "[0-9]{1,2}", "max_new_tokens": 60, "temperature": 0}
    reply = engine.chat(CHAT["messages"], rule)
    assert "make" in parts(reply)[0]
    assert re.fullmatch(rule["regex"], parts(reply)[1])
    for off in ({"enable_thinking": False}, {"require_reasoning": False}):
        assert re.fullmatch(rule["regex"], engine.chat(CHAT["messages"], rule, **off)["text"])


# --- over HTTP ----------------------------------------------------------------------------------


class Sum(BaseModel):
    value: int
    sure: bool


TURNS = [
    turn
    for question, why, so in EXAMPLES
    for turn in (
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"<think>{why}</think>{so}"},
    )
]
CHAT = {
    "model": "smollm2",
    "messages": [*TURNS, {"role": "user", "content": "What is 3+6?"}],
    "max_tokens": 80,
    "temperature": 0.0,
}


@pytest.fixture(scope="module")
def client(smollm2):
    options = ("--threads", "1", "--max-total-tokens", "8192", "--reasoning-parser", "qwen3")
    with (
        serving.server(*options) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_a_chat_is_parsed_behind_its_thinking(client):
    done = client.chat.completions.parse(**CHAT, response_format=Sum)
    message = done.choices[0].message
    assert message.parsed == Sum.model_validate_json(message.content)
    assert "make" in message.model_extra["reasoning_content"]
    assert "think>" not in message.model_extra["reasoning_content"] + message.content
    details = done.usage.completion_tokens_details
    assert 5 < details.reasoning_tokens < done.usage.completion_tokens
    with client.chat.completions.stream(**CHAT, response_format=Sum) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        final = stream.get_final_completion().choices[0].message
    assert final.parsed == message.parsed
    pieces = [c.choices[0].delta.model_extra.get("reasoning_content") for c in chunks if c.choices]
    assert "".join(piece or "" for piece in pieces) == message.model_extra["reasoning_content"]
    assert len([piece for piece in pieces if piece]) > 3


def test_a_chat_that_must_not_think_is_bound_from_the_start(client):
    for extra in (
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "none"},
    ):
        done = client.chat.completions.parse(**CHAT, response_format=Sum, extra_body=extra)
        message = done.choices[0].message
        assert message.parsed == Sum.model_validate_json(message.content)
        assert "reasoning_content" not in message.model_extra


def test_a_chat_without_a_constraint_is_split_too(client):
    message = client.chat.completions.create(**CHAT).choices[0].message
    assert "make" in message.model_extra["reasoning_content"]
    assert "think>" not in message.content


def test_a_chat_that_ran_out_of_room_has_only_thought(client):
    choice = client.chat.completions.create(
        **CHAT | {"max_tokens": 6}, response_format={"type": "json_object"}
    ).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.content == ""
    assert choice.message.model_extra["reasoning_content"]
