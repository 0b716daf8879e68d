"""Tokens that a grammar forces are taken without sampling, and no output is more or less likely."""

import sys
from array import array
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

from ramify.kernels.dispatch import load_ops
from ramify.srt.constrained.base import compile_grammar
from ramify.srt.constrained.choose import load_backend
from ramify.srt.execution.drawing import Sampled, draw
from ramify.srt.execution.masks import MaskFiller
from ramify.srt.execution.sampling_rows import SamplingRow
from ramify.srt.grammar import GrammarSpec
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.scheduling.plan import Enter

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from small_vocabulary import bits, small_vocabulary

VOCABULARY = small_vocabulary()
LIMIT = 24
OPS = load_ops("reference")
LONG = "(orderId|orderName|order): (true|false|[0-2]{1,2})"
SPECS = [
    GrammarSpec("regex", LONG),
    GrammarSpec("regex", "(New|New York|New York City)!?"),
    GrammarSpec(
        "json_schema",
        '{"type": "object", "properties": {"name": {"enum": ["ab", "abc"]}, "age": {"enum": [1,'
        ' 12]}}, "required": ["name", "age"], "additionalProperties": false}',
    ),
]


@pytest.fixture(scope="module", params=SPECS, ids=lambda spec: spec.text[:20])
def grammar(request):
    return compile_grammar(load_backend("llguidance", VOCABULARY), request.param)


def logits(output):
    """What a model would give after an output: any numbers, the same each time."""
    generator = torch.Generator().manual_seed(hash(tuple(output)) % 2**31)
    return torch.randn(VOCABULARY.size, generator=generator) * 2.0


def row(grammar, output=(), **options):
    enter = Enter(
        "r", SamplingParams(**options), array("I", [1]), array("I", output), 0, False, grammar
    )
    return SamplingRow(enter, VOCABULARY.size, VOCABULARY.end_ids)


def outcomes(grammar, jump):
    """Every output with its exact probability, and how many of its tokens were sampled."""
    found = defaultdict(float)
    sampled = defaultdict(int)
    todo = [((), 1.0, 0)]
    while todo:
        output, share, n = todo.pop()
        mask = VOCABULARY.new_row()
        assert row(grammar, output).matcher.fill(mask)
        may = bits(VOCABULARY, mask)
        for token, p in zip(may, logits(output)[may].double().softmax(-1).tolist(), strict=True):
            state = row(grammar, output)
            assert state.matcher.accept(token)
            state.note(token)
            forced, complete = state.follow(LIMIT if jump else 0)
            longer = (*output, token, *forced)
            if complete or token in VOCABULARY.end_ids:
                found[longer] += share * p
                sampled[longer] = n + 1
            else:
                todo.append((longer, share * p, n + 1))
    return found, sampled


def generate(grammar, seed, jump, **options):
    """An output as the engine makes it, step by step."""
    state = row(grammar, sampling_seed=seed, **options)
    filler = MaskFiller(VOCABULARY.size)
    output = []
    while len(output) < LIMIT:
        masks = filler.fill([state.matcher])
        most = LIMIT - len(output) - 1 if jump else 0
        (done,) = draw(OPS, [Sampled(state, most)], logits(output)[None], masks)
        assert done.error is None
        output += [done.token.token_id, *done.forced]
        if done.complete or done.token.token_id in VOCABULARY.end_ids:
            break
    return tuple(output)


def test_every_output_has_the_same_probability_with_and_without_jumping(grammar):
    jumping, few = outcomes(grammar, jump=True)
    sampling, all_of_them = outcomes(grammar, jump=False)
    assert len(sampling) > 3
    assert jumping.keys() == sampling.keys()
    for output, share in sampling.items():
        assert jumping[output] == pytest.approx(share, rel=1e-9)
    assert sum(jumping.values()) == pytest.approx(1.0)
    assert sum(few.values()) < sum(all_of_them.values()), "nothing was forced"


def test_outputs_come_as_often_as_their_probability_says(grammar):
    shares, _ = outcomes(grammar, jump=True)
    n = 600
    counts = Counter(generate(grammar, seed, jump=True) for seed in range(n))
    assert counts.keys() <= shares.keys()
    for output, share in shares.items():
        assert abs(counts[output] / n - share) < 5 * (share / n) ** 0.5 + 1 / n


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"top_k": 2, "min_p": 0.1},
        {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "presence_penalty": -0.5},
        {"logit_bias": {ord("o"): -100.0, ord(":"): -100.0, ord("t"): 100.0, ord("x"): 100.0}},
        {"min_new_tokens": 12},
        {"stop_token_ids": (ord("e"), ord("Y")), "min_new_tokens": 20},
        {"ignore_eos": True},
    ],
    ids=str,
)
def test_a_seed_gives_the_same_output_with_and_without_jumping(grammar, options):
    """The random number of a token belongs to its position, whether those before it were forced."""
    for seed in range(40):
        jumped = generate(grammar, seed, jump=True, **options)
        assert jumped == generate(grammar, seed, jump=False, **options)
