"""The beam search itself: against exhaustive search over small tables, and its rules one by one."""

import asyncio
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.frontend_api.beams import of_step, together
from ramify.srt.beam_search import BeamOptions, Beams, Hypothesis, beam_search, extend
from ramify.srt.errors import Aborted, InvalidRequest
from ramify.srt.messages import Submit, pack_ids, unpack_ids
from ramify.srt.sampling_params import SamplingParams

EOS = 0


def table(seed, vocab):
    """A model: log-probabilities of the next token that depend on all the tokens before."""

    def likeliest(token_ids):
        weights = [hash((seed, *token_ids, i)) % 1000 + 1 for i in range(vocab)]
        total = sum(weights)
        return [(math.log(w / total), i) for i, w in enumerate(weights)]

    return likeliest


def search(model, options):
    beams = Beams()
    while beams.running:
        beams = extend(beams, [model(h.token_ids) for h in beams.running], options)
    return beams.finished


def all_texts(model, options, vocab):
    """Every text that ends, at an end token or at the last place, with its score; best first."""
    found = []
    for length in range(1, options.max_new_tokens + 1):
        for ids in itertools.product(range(vocab), repeat=length):
            ends = EOS in ids and ids.index(EOS) == length - 1
            if ends or (length == options.max_new_tokens and EOS not in ids):
                logprob = sum(model(ids[:i])[ids[i]][0] for i in range(length))
                found.append((options.score(logprob, length), ids))
    return sorted(found, reverse=True)


@given(
    seed=st.integers(0, 10**6),
    vocab=st.integers(2, 4),
    length=st.integers(1, 4),
    penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
    stopping=st.sampled_from([False, "never"]),
)
def test_a_beam_wide_enough_finds_what_exhaustive_search_finds(
    seed, vocab, length, penalty, stopping
):
    model = table(seed, vocab)
    options = BeamOptions(vocab**length, length, (EOS,), penalty, stopping)
    expected = all_texts(model, options, vocab)
    found = search(model, options)
    assert [options.score(h.logprob, len(h.token_ids)) for h in found] == pytest.approx(
        [score for score, _ in expected]
    )
    assert sorted(h.token_ids for h in found) == sorted(ids for _, ids in expected)


@given(
    seed=st.integers(0, 10**6), width=st.integers(1, 4), ends=st.sampled_from([(), (0,), (0, 1)])
)
def test_the_likeliest_few_tokens_decide_as_the_whole_vocabulary_does(seed, width, ends):
    """`n_candidates` is enough: what a step of the engine is asked for."""
    vocab = 9
    options = BeamOptions(width, 6, ends)
    whole = table(seed, vocab)

    def few(token_ids):
        return sorted(whole(token_ids), reverse=True)[: options.n_candidates]

    found, expected = search(few, options), search(whole, options)
    assert [h.logprob for h in found] == [h.logprob for h in expected]


def test_one_beam_is_greedy():
    model = table(1, 8)
    (found,) = search(model, BeamOptions(1, 5))
    greedy = ()
    for _ in range(5):
        greedy += (max(model(greedy))[1],)
    assert found.token_ids == greedy


def test_the_length_penalty_prefers_longer_or_shorter():
    """The end token at once, or two tokens of the same log-probability in all."""
    candidates = [[(-1.0, EOS), (-0.5, 5)]]
    for penalty, best in ((1.0, (5, 6)), (-1.0, (EOS,))):
        options = BeamOptions(2, 2, (EOS,), penalty, "never")
        beams = extend(Beams(), candidates, options)
        beams = extend(beams, [[(-0.5, 6)]] * len(beams.running), options)
        assert beams.finished[0].token_ids == best


def test_an_end_token_below_the_beam_is_no_result_and_leaves_its_place():
    """It is neither finished, as it is not among the two likeliest, nor does it run on."""
    beams = extend(Beams(), [[(-1.0, 3), (-1.5, 4), (-2.0, EOS)]], BeamOptions(2, 9, (EOS,)))
    assert beams.finished == ()
    assert [h.token_ids for h in beams.running] == [(3,), (4,)]


@pytest.mark.parametrize(("stopping", "goes_on"), [(True, False), (False, False), ("never", True)])
def test_when_enough_has_ended(stopping, goes_on):
    """The runner-up is worse now, but could be better spread over more tokens."""
    beams = Beams((Hypothesis((1,), -1.0),), (Hypothesis((EOS,), -1.0), Hypothesis((EOS,), -1.2)))
    options = BeamOptions(2, 9, (EOS,), 1.0, stopping)
    after = extend(beams, [[(-2.0, 2), (-3.0, 3)]], options)
    assert bool(after.running) == goes_on


def test_a_better_runner_goes_on_unless_told_to_stop():
    beams = Beams((Hypothesis((1,), -1.0),), (Hypothesis((EOS,), -1.0), Hypothesis((EOS,), -1.2)))
    for stopping, goes_on in ((True, False), (False, True)):
        options = BeamOptions(2, 9, (EOS,), 1.0, stopping)
        assert bool(extend(beams, [[(-0.1, 2)]], options).running) == goes_on


def test_never_looks_at_the_length_that_scores_best():
    """With a penalty on length that is now, not the last place."""
    beams = Beams((Hypothesis((1,), -1.0),), (Hypothesis((EOS,), -1.0), Hypothesis((EOS,), -6.0)))
    options = BeamOptions(2, 9, (EOS,), -1.0, "never")
    assert extend(beams, [[(-0.1, 2)]], options).running, "-2.2 now, -9.9 at the last place"


# --- what is refused ---


class NoEngine:
    """Says what the model is. It is no test of generating, so it drops every request."""

    def model_info(self):
        return {"vocab_size": 100, "context_length": 50, "eos_token_ids": []}

    def get_tokenizer(self):
        return None

    def generate(self, **options):
        meta = {"prompt_tokens": 1, "cached_tokens": 0, "output_token_logprobs": []}
        meta["finish_reason"] = {"type": "abort"}
        return [{"meta_info": meta} for _ in options["input_ids"]]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "input_ids": [1]}, "prompt"),
        ({"prompt": "no tokenizer"}, "prompt"),
        ({"input_ids": 5}, "input_ids"),
        ({"input_ids": [1] * 50}, "prompt"),
        ({"input_ids": [1], "beam_width": 0}, "beam_width"),
        ({"input_ids": [1], "beam_width": 21}, "beam_width"),
        ({"input_ids": [1], "beam_width": 20, "eos_token_ids": [7]}, "beam_width"),
        ({"input_ids": [1], "beam_width": True}, "beam_width"),
        ({"input_ids": [1], "n": 5}, "n"),
        ({"input_ids": [1], "max_new_tokens": 0}, "max_new_tokens"),
        ({"input_ids": [1], "max_new_tokens": 50}, "max_new_tokens"),
        ({"input_ids": [1], "length_penalty": math.nan}, "length_penalty"),
        ({"input_ids": [1], "length_penalty": 11}, "length_penalty"),
        ({"input_ids": [1], "early_stopping": "always"}, "early_stopping"),
        ({"input_ids": [1], "eos_token_ids": [100]}, "eos_token_ids"),
        ({"input_ids": [1], "eos_token_ids": list(range(20))}, "eos_token_ids"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, param):
    with pytest.raises(InvalidRequest) as caught:
        beam_search(NoEngine(), **{"max_new_tokens": 8, **options})
    assert caught.value.param == param
    assert str(caught.value).startswith(param)


def test_a_step_that_the_engine_drops_ends_the_search():
    with pytest.raises(Aborted):
        beam_search(NoEngine(), input_ids=[1], max_new_tokens=8)


# --- a step over HTTP ---


def test_a_step_is_queued_charged_and_cached_as_its_request():
    first = Submit(
        "client's",
        pack_ids([1, 2]),
        SamplingParams(max_new_tokens=50),
        "namespace",
        priority=5,
        program_id="program",
        timeout_s=9.0,
        account="account",
    )
    step = of_step(first, (7, 8), 6, 2.5)
    assert unpack_ids(step.token_ids) == [1, 2, 7, 8]
    assert (step.sampling.max_new_tokens, step.return_logprob, step.top_logprobs) == (1, True, 6)
    assert step.timeout_s == 2.5
    assert step.request_id not in (first.request_id, of_step(first, (7, 8), 6, 2.5).request_id)
    same = ("namespace", "priority", "program_id", "account", "logprob_start")
    assert [getattr(step, name) for name in same] == [getattr(first, name) for name in same]


def test_the_first_error_of_a_step_ends_its_other_requests():
    ended = []

    async def wait():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("other")

    async def fail():
        await asyncio.sleep(0)
        raise InvalidRequest("wrong")

    async def run():
        async with asyncio.timeout(5):
            await together([wait(), fail(), wait()])

    with pytest.raises(InvalidRequest):
        asyncio.run(run())
    assert ended == ["other", "other"]
