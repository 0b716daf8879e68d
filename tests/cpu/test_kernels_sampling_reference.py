"""Penalties and the draw in plain torch: against the definition, and against the CPU's own code."""

from array import array

import pytest
import torch

from ramify.kernels.drawing import Adjustments, Draws
from ramify.kernels.reference.sampling import adjust_logits, sample
from ramify.srt.execution.sampler import Draw
from ramify.srt.execution.sampler import sample as cpu_sample
from ramify.srt.execution.sampling_rows import SamplingRow
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.plan import Enter

NEVER = -torch.inf


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def draws(*rows):
    """Draws from (temperature, top_k, top_p, min_p, random) of each row."""
    temperature, top_k, top_p, min_p, random = zip(*rows, strict=True)
    return Draws(
        torch.tensor(temperature, dtype=torch.float32),
        torch.tensor(top_k, dtype=torch.int32),
        torch.tensor(top_p, dtype=torch.float64),
        torch.tensor(min_p, dtype=torch.float32),
        torch.tensor(random, dtype=torch.float64),
    )


def kept(logits, temperature, top_k, top_p, min_p):
    """{token: its share} by brute force, likeliest first."""
    probs = (logits.double() / temperature).softmax(-1).tolist()
    ranked = sorted(range(len(probs)), key=lambda t: (-probs[t], t))
    if top_k != -1:
        ranked = ranked[:top_k]
    total, before, keep = sum(probs[t] for t in ranked), 0.0, {}
    for token in ranked:
        if before < top_p * total and probs[token] >= min_p * probs[ranked[0]]:
            keep[token] = probs[token]
        before += probs[token]
    return {token: p / sum(keep.values()) for token, p in keep.items()}


FILTERS = [
    (0.7, -1, 1.0, 0.0),
    (1.0, 3, 1.0, 0.0),
    (1.0, -1, 0.6, 0.0),
    (1.3, -1, 1.0, 0.3),
    (1.0, 5, 0.8, 0.1),
    (2.0, 100, 0.99, 0.01),
    (1.0, -1, 1e-9, 0.0),
    (1.0, -1, 1.0, 1.0),
]


@pytest.mark.parametrize("filters", FILTERS)
def test_tokens_come_as_often_as_their_share_says(filters):
    """Random numbers on an even grid: each token must own its share of them, to one step."""
    logits, n = torch.randn(11), 2000
    numbers = [(i + 0.5) / n for i in range(n)]
    tokens = sample(logits.expand(n, -1).contiguous(), draws(*[(*filters, u) for u in numbers]))
    shares = torch.bincount(tokens, minlength=11) / n
    expected = kept(logits, *filters)
    for token in range(11):
        assert shares[token] == pytest.approx(expected.get(token, 0.0), abs=1.5 / n), token


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("width", [1, 70, 3000])
def test_the_tokens_are_those_of_the_cpu_sampler(width, filters):
    logits = torch.randn(40, width) * 3
    numbers = torch.rand(40, dtype=torch.float64).tolist()
    rows = [Draw(*filters, random, False) for random in numbers]
    mine = sample(logits, draws(*[(*filters, random) for random in numbers]))
    assert mine.tolist() == cpu_sample(logits, rows)


def test_filtered_rows_are_laid_out_likeliest_first_and_equals_by_id():
    logits = torch.tensor([[0.0, 1.0, 0.0, 1.0, NEVER]])
    filters = (1.0, 3, 1.0, 0.0)
    tokens = [int(sample(logits, draws((*filters, u)))) for u in (0.0, 0.45, 0.9)]
    assert tokens == [1, 3, 0]
    plain = [int(sample(logits, draws((1.0, -1, 1.0, 0.0, u)))) for u in (0.0, 0.2, 0.6, 0.9999)]
    assert plain == [0, 1, 2, 3]


def test_temperature_zero_takes_the_first_of_the_likeliest():
    logits = torch.tensor([[1.0, 5.0, 5.0], [torch.nan, -3.0, -4.0], [NEVER, torch.inf, 1.0]])
    assert sample(logits, draws(*[(0.0, -1, 1.0, 0.0, 0.9)] * 3)).tolist() == [1, 1, 1]


def test_a_row_without_a_number_has_no_token():
    logits = torch.tensor([[NEVER, NEVER], [torch.nan, NEVER], [NEVER, -1e30]])
    for filters in FILTERS:
        assert sample(logits, draws(*[(*filters, 0.5)] * 3)).tolist() == [-1, -1, 1]


def test_numbers_too_large_do_not_become_nan():
    logits = torch.tensor([[1e38, 0.0], [torch.inf, 0.0]])
    assert sample(logits, draws(*[(1e-3, -1, 0.9, 0.0, 0.99)] * 2)).tolist() == [0, 0]


@pytest.mark.parametrize("random", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_a_possible_token(random):
    logits = torch.tensor([[NEVER, 0.0, NEVER, -100.0, 0.0, -200.0, NEVER]])
    for filters in FILTERS:
        token = int(sample(logits, draws((*filters, random))))
        assert token in kept(logits[0], *filters), filters


PENALTIES = [
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -0.6},
    {"logit_bias": {3: 2.5, 11: -1.0}},
    {"min_new_tokens": 9, "logit_bias": {3: 2.5, 2: 1.0}},
    {"repetition_penalty": 0.8, "frequency_penalty": 0.2, "presence_penalty": 1.0,
     "logit_bias": {7: 5.0}},
]  # fmt: skip
PROMPT, OUTPUT, ENDS, WIDTH = [1, 7, 7, 5], [7, 9, 9, 11], (2, 4), 40


def adjustments(params, row=0, mask=None):
    """What one row wants, as a runner would say it."""
    history = torch.zeros(2, WIDTH, dtype=torch.int32)
    history[1, PROMPT] = 1
    for token in OUTPUT:
        history[1, token] += 2
    bias = dict(params.logit_bias)
    if len(OUTPUT) < params.min_new_tokens:
        bias |= dict.fromkeys(ENDS, NEVER)
    rates = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
    return Adjustments(
        torch.tensor([row]),
        torch.tensor([1 if params.penalised else -1], dtype=torch.int32),
        torch.tensor([-1 if mask is None else 0], dtype=torch.int32),
        *(torch.tensor([rate]) for rate in rates),
        history,
        torch.zeros(0, 2, dtype=torch.int32) if mask is None else mask,
        torch.full((len(bias),), row),
        torch.tensor(list(bias), dtype=torch.int64),
        torch.tensor(list(bias.values()), dtype=torch.float32),
    )


@pytest.mark.parametrize("options", PENALTIES, ids=str)
def test_rows_are_adjusted_as_the_cpu_does_it(options):
    params = SamplingParams(**options)
    enter = Enter("r", params, array("I", PROMPT), array("I", OUTPUT), 0, False)
    row = SamplingRow(enter, WIDTH, ENDS)
    logits = torch.randn(3, WIDTH)
    expected = logits.clone()
    row.adjust(expected[1])
    before = logits.clone()
    adjust_logits(logits, adjustments(params, row=1))
    assert torch.equal(logits, expected)
    assert not torch.equal(logits[1], before[1]), "nothing was adjusted"


def test_masks_come_last_and_rows_may_have_only_one():
    """A bias cannot bring back a masked token; a word that is missing masks its tokens."""
    params = SamplingParams(frequency_penalty=0.5, logit_bias={35: 100.0, 7: 1.0})
    mask = torch.tensor([[1 << 7 | 1 << 9]], dtype=torch.int32)
    logits = torch.randn(2, WIDTH)
    before = logits.clone()
    adjust_logits(logits, adjustments(params, row=0, mask=mask))
    assert (logits[0] > NEVER).nonzero().flatten().tolist() == [7, 9]
    assert logits[0, 7] == before[0, 7] - 0.5 + 1.0
    assert logits[0, 9] == before[0, 9] - 0.5 * 2
    assert torch.equal(logits[1], before[1])
    adjust_logits(logits, adjustments(SamplingParams(), row=1, mask=mask))
    assert torch.equal(logits[1, [7, 9]], before[1, [7, 9]])
    assert (logits[1] > NEVER).sum() == 2


def test_wrong_sizes_are_named():
    logits, wants = torch.randn(2, WIDTH), adjustments(SamplingParams())
    with pytest.raises(ValueError, match="history must be"):
        adjust_logits(logits[:, :30].contiguous(), wants)
    good = draws(*[(1.0, -1, 1.0, 0.0, 0.5)] * 3)
    with pytest.raises(ValueError, match="temperature must be"):
        sample(logits, good)
