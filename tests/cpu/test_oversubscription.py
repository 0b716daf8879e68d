"""More requests than memory: everybody finishes, with exactly the tokens they get alone."""

import pytest

from ramify.srt.engine import Engine

pytestmark = pytest.mark.model

REQUESTS, PROMPT, NEW = 64, 8, 72  # longer answers than admission keeps room for
GREEDY = {"temperature": 0.0, "max_new_tokens": NEW, "ignore_eos": True}
DRAWN = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": NEW, "ignore_eos": True}


def test_four_times_the_pool_gives_the_tokens_of_a_large_one(smollm2):
    """Deterministic mode: a token's bits depend on its own sequence alone, so equal means equal."""
    prompts = [[100 + (i * 37 + k * k) % 9000 for k in range(PROMPT)] for i in range(REQUESTS)]
    sampling = [
        GREEDY if i % 2 else {**DRAWN, "sampling_seed": i, "frequency_penalty": 0.3}
        for i in range(REQUESTS)
    ]
    pool = REQUESTS * (PROMPT + NEW) // 4
    with Engine("smollm2", deterministic=True) as roomy:
        expected = roomy.generate(input_ids=prompts, sampling_params=sampling)
        assert (
            roomy.generate(input_ids=prompts[5], sampling_params=sampling[5])["output_ids"]
            == expected[5]["output_ids"]
        )
    with Engine("smollm2", deterministic=True, max_total_tokens=pool) as crowded:
        replies = crowded.generate(input_ids=prompts, sampling_params=sampling)
        stats = crowded.server_info()["stats"]
        violations = crowded.server_info()["violations"]
    assert stats["retractions"] > 0  # or the pool was no test
    assert violations == []
    assert [r["output_ids"] for r in replies] == [r["output_ids"] for r in expected]
