"""Constraints on the embedded model, end to end: outputs are right, and jumping changes none."""

import sys
from pathlib import Path

import pytest

from ramify.srt.engine import Engine

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from constrained_decoding import REGEXES, SHEET, asked, can, generate, keeps, reason
from schemas import FOLDER, real_cases

pytestmark = pytest.mark.model

OPTIONS = {"threads": 1, "max_total_tokens": 8192, "deterministic": True}
CHAPTER = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 20},
        "mood": {"enum": ["dark", "light", "lightly ironic"]},
        "pages": {"type": "integer", "minimum": 1, "maximum": 900},
    },
    "required": ["title", "mood", "pages"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def jumping():
    with Engine("smollm2", **OPTIONS) as engine:
        yield engine


@pytest.fixture(scope="module")
def sampling():
    with Engine("smollm2", jump_forward=False, **OPTIONS) as engine:
        yield engine


def cases(n: int) -> tuple[list[str], list[dict]]:
    """Prompts and constraints: schemas and regexes in turn."""
    rules = [
        {"json_schema": CHAPTER} if i % 3 == 0 else {"regex": REGEXES[i % 50]} for i in range(n)
    ]
    prompts = [asked("Say what comes to your mind.", i, 0) for i in range(n)]
    return prompts, [{"max_new_tokens": 36, **rule} for rule in rules]


def said(engine: Engine, prompts, params, **options) -> list[tuple]:
    """What an engine answers, and nothing of how it got there."""
    assert engine.flush_cache()
    replies = engine.generate(prompts, params, **options)
    assert engine.server_info()["violations"] == []
    return [
        (
            reply["output_ids"],
            reply["text"],
            reply["meta_info"]["finish_reason"],
            reply["meta_info"].get("output_token_logprobs"),
        )
        for reply in replies
    ]


def jumps(engine: Engine) -> int:
    return engine.server_info()["stats"]["jump_forward_tokens"]


def right(rules: list[tuple], replies: list[dict]) -> list[int]:
    """Which outputs ended by themselves, all of them right; the others say that they did not."""
    ended = [i for i, reply in enumerate(replies) if reason(reply) == "stop"]
    assert [i for i in ended if not keeps(*rules[i], replies[i]["text"])] == []
    assert {reason(reply) for reply in replies} <= {"stop", "length"}
    return ended


def test_every_regex_is_kept(jumping):
    rules = [("regex", regex) for regex in REGEXES]
    replies = generate(jumping, rules, 64)
    assert len(right(rules, replies)) >= 45


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the real schemas are not here")
def test_real_schemas_are_kept(jumping):
    """Every eighth; the benchmark tries more of them, and longer."""
    schemas = [case.schema for i, case in enumerate(real_cases(FOLDER)) if i % 8 == 0]
    rules = [("schema", schema) for schema in schemas if can(jumping, schema)]
    replies = generate(jumping, rules, 96)
    assert len(rules) >= 30
    assert len(right(rules, replies)) >= 15


def test_jumping_changes_no_greedy_answer(jumping, sampling):
    """To the bit, log-probabilities too: a forced token has its own from the chunk it is in."""
    prompts, params = cases(100)
    params = [{**p, "temperature": 0} for p in params]
    before = jumps(jumping)
    jumped = said(jumping, prompts, params, return_logprob=True)
    assert jumped == said(sampling, prompts, params, return_logprob=True)
    assert jumps(jumping) > before + 300
    assert jumps(sampling) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "sampling_seed": 5},
        {"temperature": 1.0, "sampling_seed": 6, "n": 2},
        {"temperature": 0, "repetition_penalty": 1.4, "frequency_penalty": 0.5},
        {"temperature": 0, "min_new_tokens": 30},
        {"temperature": 0, "logit_bias": {"34": -100.0, "86": 100.0, "1079": 100.0}},
        {"temperature": 0, "stop": ["mood", "o", "19"]},
        {"temperature": 0, "stop_token_ids": [86, 29]},
        {"temperature": 0, "ignore_eos": True},
        {"temperature": 0, "max_new_tokens": 5},
    ],
    ids=str,
)
def test_jumping_changes_no_answer(jumping, sampling, options):
    prompts, params = cases(9)
    params = [{**p, **options} for p in params]
    assert said(jumping, prompts, params) == said(sampling, prompts, params)


@pytest.fixture(scope="module")
def wanted(sampling):
    """What the cases below are to come out as."""
    prompts, params = cases(18)
    params = [{**p, "temperature": 0} for p in params]
    return said(sampling, prompts, params, return_logprob=True)


@pytest.mark.parametrize(
    "how",
    [
        {"overlap": True},
        {"max_total_tokens": 160},
        {"max_total_tokens": 160, "overlap": True},
        {"max_running_requests": 3, "chunked_prefill_size": 16},
    ],
    ids=str,
)
def test_jumping_changes_no_answer_however_an_engine_runs(how, wanted):
    """A request may be retracted, or planned ahead, with forced tokens that are not computed."""
    prompts, params = cases(18)
    params = [{**p, "temperature": 0} for p in params]
    with Engine("smollm2", **{**OPTIONS, **how}) as engine:
        assert said(engine, prompts, params, return_logprob=True) == wanted
        stats = engine.server_info()["stats"]
    assert stats["jump_forward_tokens"] > 50
    if how.get("max_total_tokens") == 160:
        assert stats["retractions"] > 0


def test_a_character_sheet_is_mostly_forced(jumping):
    params = {"json_schema": SHEET, "max_new_tokens": 384, "sampling_seed": 1}
    replies = jumping.generate([asked("A character.", i, 0) for i in range(4)], params)
    forced = sum(reply["meta_info"]["jump_forward_tokens"] for reply in replies)
    assert forced >= 0.3 * sum(reply["meta_info"]["completion_tokens"] for reply in replies)
    assert len(right([("schema", SHEET)] * 4, replies)) == 4
