"""Planning a step while the one before it runs changes no answer, whatever is asked for."""

import pytest

from ramify.srt.engine import Engine

pytestmark = pytest.mark.model

TRUNK = [200 + k * k % 7000 for k in range(90)]
ASKED = [
    {"temperature": 0.0},
    {"temperature": 1.0, "sampling_seed": 1},
    {"temperature": 1.0, "sampling_seed": 2, "top_p": 0.8, "top_k": 40},
    {"temperature": 0.7, "sampling_seed": 3, "min_p": 0.05, "n": 2},
    {"temperature": 0.0, "frequency_penalty": 0.6, "presence_penalty": 0.2},
    {"temperature": 0.9, "sampling_seed": 4, "repetition_penalty": 1.2},
    {"temperature": 0.0, "stop": [".", "\n"]},
    {"temperature": 0.0, "stop_token_ids": list(range(20, 270))},
    {"temperature": 0.0, "logit_bias": {"30": 4.0, "31": -4.0}},
    {"temperature": 0.0, "min_new_tokens": 20, "ignore_eos": True, "max_new_tokens": 100},
    {"temperature": 0.0, "max_new_tokens": 1},
    {"temperature": 0.0, "max_new_tokens": 0},
]
SETTINGS = [
    {},
    {"chunked_prefill_size": 16, "mixed_prefill_size": 4, "max_running_requests": 8},
    {"schedule_policy": "priority", "max_total_tokens": 288, "eviction_policy": "cost"},
    {"schedule_policy": "program", "max_running_requests": 3, "disable_radix_cache": True},
]


def answers(**options):
    """What a batch of everything that can be asked for gets; without times and cached tokens."""
    prompts = [[*TRUNK[: 30 * (i % 4)], *(900 + i, 7, 31 + i)] for i in range(2 * len(ASKED))]
    sampling = [{"max_new_tokens": 24, **ASKED[i % len(ASKED)]} for i in range(len(prompts))]
    with Engine("smollm2", deterministic=True, threads=1, **options) as engine:
        replies = []
        for logprobs in (
            {},
            {"return_logprob": True, "logprob_start_len": 2, "top_logprobs_num": 3},
        ):
            replies += engine.generate(
                input_ids=prompts,
                sampling_params=sampling,
                priority=[i % 3 for i in range(len(prompts))],
                **logprobs,
            )
        info = engine.server_info()
    assert info["violations"] == []
    kept = ("finish_reason", "completion_tokens", "input_token_logprobs", "output_token_logprobs")
    told = [
        (r["text"], r["output_ids"], [r["meta_info"].get(name) for name in kept])
        for reply in replies
        for r in (reply if isinstance(reply, list) else [reply])
    ]
    return told, info["stats"]


@pytest.fixture(scope="module")
def in_turn(smollm2):
    """The answers of an engine with all the memory that it wants, one step after the other."""
    return answers()[0]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda options: "-".join(options) or "default")
def test_overlap_changes_no_answer(options, in_turn):
    told, stats = answers(overlap=True, **options)
    assert told == in_turn
    assert stats["stale_rows"] > 0  # ends were learned of late, or overlap was no test
    if "max_total_tokens" in options:
        assert min(stats["retractions"], stats["evicted_tokens"]) > 0
