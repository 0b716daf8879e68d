"""Sampling draws from the distribution it states, row by row, whatever else is in the batch."""

from array import array

import pytest
import torch

from ramify.srt.execution.logprobs import token_logprobs
from ramify.srt.execution.random import uniform
from ramify.srt.execution.sampler import Draw, sample
from ramify.srt.execution.sampling_rows import SamplingRow
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.plan import Enter


def draw(random=0.5, temperature=1.0, top_k=-1, top_p=1.0, min_p=0.0, greedy=False):
    return Draw(temperature, top_k, top_p, min_p, random, greedy)


def reference(logits, temperature, top_k, top_p, min_p):
    """The stated distribution, token by token in plain Python."""
    probs = (logits / temperature).softmax(-1).tolist()
    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    if top_k != -1:
        order = order[:top_k]
    total = sum(probs[i] for i in order)
    kept, before = [], 0.0
    for i in order:
        if kept and before >= top_p * total:
            break
        before += probs[i]
        if not kept or probs[i] >= min_p * probs[order[0]]:
            kept.append(i)
    mass = sum(probs[i] for i in kept)
    return {i: probs[i] / mass for i in kept}


FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 3},
    {"top_p": 0.7},
    {"top_p": 0.01},
    {"min_p": 0.2},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.8, "min_p": 0.1},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("vocabulary", [10, 70, 1500])
def test_evenly_spread_random_numbers_give_the_stated_distribution(options, vocabulary):
    """N evenly spaced points hit each token as often as its probability says, to one in N."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(vocabulary, generator=generator) * 2.0
    options = {"temperature": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0, **options}
    counts = torch.zeros(vocabulary)
    n = 4000
    for begin in range(0, n, 500):
        draws = [draw((i + 0.5) / n, **options) for i in range(begin, begin + 500)]
        tokens = sample(logits.repeat(500, 1), draws)
        counts += torch.bincount(torch.tensor(tokens), minlength=vocabulary)
    expected = reference(logits, **options)
    assert {i for i, c in enumerate(counts.tolist()) if c} <= set(expected)
    for token, probability in expected.items():
        assert counts[token].item() / n == pytest.approx(probability, abs=1.5 / n)


def test_a_filter_that_keeps_more_than_the_candidates_is_exact():
    """Over 3,000 near-equal tokens, top_p 0.9 keeps more than the 1,024 looked at first."""
    logits = torch.linspace(0.0, 0.1, 3000)
    expected = reference(logits, 1.0, -1, 0.9, 0.0)
    tokens = sample(logits.repeat(64, 1), [draw(i / 64, top_p=0.9) for i in range(64)])
    assert set(tokens) <= set(expected)
    assert min(tokens) < 600 < 2900 < max(tokens)  # spread over nearly all that is kept


def test_a_row_draws_the_same_alone_and_in_a_batch():
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    draws = [
        draw(0.3),
        draw(greedy=True),
        draw(0.9, top_p=0.5),
        draw(0.2, top_k=4),
        draw(0.999999),
        draw(0.0, min_p=0.1),
    ]
    together = sample(logits.clone(), draws)
    alone = [sample(logits[i : i + 1].clone(), [d])[0] for i, d in enumerate(draws)]
    assert together == alone


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.full((1, 130), float("-inf"))
    logits[0, [5, 77]] = 0.0
    drawn = {sample(logits, [draw(u)])[0] for u in (0.0, 0.25, 0.5, 0.75, 1.0 - 2**-53)}
    assert drawn == {5, 77}


def test_random_numbers_are_uniform_and_depend_on_seed_and_position_only():
    values = [uniform(seed, position) for seed in range(200) for position in range(200)]
    assert uniform(3, 4) == uniform(3, 4) != uniform(4, 3)
    assert all(0.0 <= v < 1.0 for v in values)
    histogram = torch.histc(torch.tensor(values), 20, 0.0, 1.0)
    assert (histogram - len(values) / 20).abs().max() < 5 * (len(values) / 20) ** 0.5


def row(prompt=(1, 2), output=(), vocabulary=8, eos=(0,), **options):
    enter = Enter("r", SamplingParams(**options), array("I", prompt), array("I", output), 0, False)
    return SamplingRow(enter, vocabulary, eos)


def adjusted(logits, **options):
    values = torch.tensor(logits)
    row(vocabulary=len(logits), **options).adjust(values)
    return values.tolist()


def test_penalties_follow_their_definitions():
    logits = [1.0, 2.0, -2.0, 4.0]
    seen = {"prompt": (1,), "output": (2, 2)}
    assert adjusted(logits, **seen, frequency_penalty=0.5) == [1.0, 2.0, -3.0, 4.0]
    assert adjusted(logits, **seen, presence_penalty=0.5) == [1.0, 2.0, -2.5, 4.0]
    assert adjusted(logits, **seen, repetition_penalty=2.0) == [1.0, 1.0, -4.0, 4.0]


def test_bias_adds_and_ends_are_forbidden_until_the_minimum_length():
    assert adjusted([1.0, 1.0], logit_bias={1: -3.0}) == [1.0, -2.0]
    short = {"min_new_tokens": 2, "stop_token_ids": (3,), "vocabulary": 4}
    values = torch.zeros(4)
    request = row(**short)
    request.adjust(values)
    assert values.tolist() == [float("-inf"), 0.0, 0.0, float("-inf")]
    for token in (1, 2):
        request.note(token)
    assert not request.adjusts


def test_a_resumed_request_draws_what_it_would_have_drawn():
    """After a retraction the output so far comes back with the request: same counts, same place."""
    options = {"sampling_seed": 9, "frequency_penalty": 1.0}
    steady, resumed = row(**options), row(output=(4, 4), **options)
    for token in (4, 4):
        steady.note(token)
    a, b = torch.zeros(8), torch.zeros(8)
    steady.adjust(a)
    resumed.adjust(b)
    assert a.tolist() == b.tolist()
    assert steady.draw() == resumed.draw()


def test_logprobs_are_of_the_models_own_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    first, second = token_logprobs(logits, [0, 1], top=2)
    expected = logits.log_softmax(-1)
    assert first.logprob == pytest.approx(expected[0, 0].item())
    assert [i for _, i in first.top] == [2, 1]
    assert second.top[0] == (pytest.approx(expected[1, 0].item()), 0)
