"""The gate: what a client may send, and the field that every refusal names."""

import itertools
import math

import pytest
from msgspec.structs import replace

from ramify.srt.errors import InvalidRequest
from ramify.srt.intake import (
    MAX_BATCH,
    GenerateRequest,
    generate_requests,
    id_source,
    id_sources,
    sampling_params,
    seed_source,
    to_submits,
)
from ramify.srt.messages import ModelInfo, Submit, unpack_ids
from ramify.srt.sampling_params import MAX_N, MAX_SEED, SamplingParams

INFO = ModelInfo(100, 32, (0,), "float32", "cpu", "Fake", 0, 32, 0.0)


class WordTokenizer:
    """One token for each word; the number of its letters is its id."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [len(word) for word in text.split()]


def submits(request: GenerateRequest) -> list[Submit]:
    numbers = itertools.count()
    return to_submits(request, WordTokenizer(), INFO, lambda: f"r{next(numbers)}", seed_source(7))


def refused(**fields) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        submits(GenerateRequest(**fields))
    return caught.value


# --- sampling parameters


def test_options_come_over_the_defaults():
    defaults = SamplingParams(temperature=0.5, top_k=3)
    made = sampling_params({"top_k": 5, "stop": "\n", "logit_bias": {"17": -1}}, defaults)
    assert made == SamplingParams(temperature=0.5, top_k=5, stop=("\n",), logit_bias={17: -1.0})
    assert sampling_params(None, defaults) is defaults


def test_null_is_the_default_unless_null_means_something():
    made = sampling_params({"temperature": None, "stop": None, "n": None, "max_new_tokens": None})
    assert made == SamplingParams(max_new_tokens=None)


def test_python_and_json_keys_of_logit_bias_are_the_same():
    assert sampling_params({"logit_bias": {17: 2}}) == sampling_params({"logit_bias": {"17": 2.0}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", True),
        ("max_new_tokens", 1.0),
        ("max_new_tokens", "5"),
        ("top_k", 1.5),
        ("n", False),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", 10**400),
        ("ignore_eos", 1),
        ("stop", 5),
        ("stop", ["a", 5]),
        ("stop", "half a \ud800 pair"),
        ("stop_token_ids", 5),
        ("stop_token_ids", [1, 2.0]),
        ("stop_token_ids", [True]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": True}),
        ("logit_bias", [1]),
        ("sampling_seed", 1.0),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name, value):
    with pytest.raises(InvalidRequest, match=name) as caught:
        sampling_params({name: value})
    assert caught.value.param == name


def test_an_unknown_option_is_refused_with_a_hint():
    with pytest.raises(InvalidRequest, match="did you mean max_new_tokens") as caught:
        sampling_params({"max_tokens": 5})
    assert caught.value.param == "max_tokens"
    with pytest.raises(InvalidRequest, match="not a sampling option"):
        sampling_params({5: 5})


def test_a_stop_regex_is_refused_and_an_empty_one_means_none():
    with pytest.raises(InvalidRequest, match="stop strings") as caught:
        sampling_params({"stop_regex": "x"})
    assert caught.value.param == "stop_regex"
    for empty in (None, "", []):
        assert sampling_params({"stop_regex": empty}) == SamplingParams()


@pytest.mark.parametrize("raw", [[], "temperature=1", 5])
def test_options_that_are_no_object_are_refused(raw):
    with pytest.raises(InvalidRequest) as caught:
        sampling_params(raw)
    assert caught.value.param == "sampling_params"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", 0),
        ("top_k", -2),
        ("min_p", 2.0),
        ("frequency_penalty", 2.1),
        ("repetition_penalty", 0.0),
        ("n", 0),
        ("n", MAX_N + 1),
        ("max_new_tokens", -1),
        ("max_new_tokens", 2**31),
        ("sampling_seed", 2**64),
        ("stop", ("",)),
        ("stop", ("a",) * 1000),
        ("stop", ("a" * 10_000,)),
        ("stop_token_ids", (100,)),
        ("stop_token_ids", (-1,)),
        ("logit_bias", {100: 1.0}),
        ("logit_bias", {1: math.inf}),
        ("logit_bias", dict.fromkeys(range(5000), 1.0)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    error = refused(input_ids=[1], sampling=SamplingParams(**{"max_new_tokens": 1, name: value}))
    assert error.param == name
    assert error.status == 400


def test_min_new_tokens_may_not_exceed_max_new_tokens():
    sampling = SamplingParams(max_new_tokens=3, min_new_tokens=4)
    assert refused(input_ids=[1], sampling=sampling).param == "min_new_tokens"
    open_ended = SamplingParams(max_new_tokens=None, min_new_tokens=32)
    assert refused(input_ids=[1], sampling=open_ended).param == "min_new_tokens"


# --- prompts

SHORT = SamplingParams(max_new_tokens=4)


def test_a_text_becomes_one_submit():
    [made] = submits(GenerateRequest(text="a bb ccc", sampling=SHORT, namespace="tenant"))
    assert unpack_ids(made.token_ids) == [1, 2, 3]
    assert (made.request_id, made.namespace, made.sampling.max_new_tokens) == ("r0", "tenant", 4)
    assert made.sampling.sampling_seed == 7, "the source gives the seed of a request without one"


@pytest.mark.parametrize("fields", [{}, {"text": "a", "input_ids": [1]}])
def test_exactly_one_prompt_is_taken(fields):
    assert refused(**fields).param == "text"


@pytest.mark.parametrize(
    ("name", "value"), [("text", ""), ("text", "  \n"), ("input_ids", []), ("input_ids", ())]
)
def test_an_empty_prompt_is_refused(name, value):
    error = refused(**{name: value})
    assert (error.param, error.code) == (name, "empty_prompt")


@pytest.mark.parametrize("bad", [-1, 100, 2**63, 2**64, True, 1.0, "1", None])
def test_a_bad_token_id_is_refused_with_its_place(bad):
    error = refused(input_ids=[1, 2, bad], sampling=SHORT)
    assert error.param == "input_ids"
    assert "position 2" in error.message


@pytest.mark.parametrize(
    ("name", "value"), [("input_ids", "12"), ("input_ids", b"12"), ("input_ids", 5), ("text", 5)]
)
def test_a_prompt_of_the_wrong_type_is_refused(name, value):
    assert refused(**{name: value}).param == name


def test_text_with_half_a_surrogate_pair_is_refused():
    assert refused(text="a \ud800").param == "text"
    assert refused(input_ids=[1], sampling=SHORT, namespace="\udfff").param == "namespace"


def test_text_needs_a_tokenizer():
    with pytest.raises(InvalidRequest, match="no tokenizer"):
        to_submits(GenerateRequest(text="a"), None, INFO, id_source(), seed_source(0))


def test_the_prompt_must_leave_room_in_the_context():
    error = refused(input_ids=[1] * 32, sampling=SamplingParams(max_new_tokens=0))
    assert (error.param, error.code) == ("input_ids", "context_length_exceeded")
    assert "holds 32 tokens" in error.message
    assert "context is 32" in error.message
    assert refused(text="a " * 40, sampling=SHORT).param == "text"


def test_prompt_and_new_tokens_together_must_fit():
    error = refused(input_ids=[1] * 30, sampling=SamplingParams(max_new_tokens=3))
    assert (error.param, error.code) == ("max_new_tokens", "context_length_exceeded")
    assert all(number in error.message for number in ("3", "30", "32"))
    fits = GenerateRequest(input_ids=[1] * 30, sampling=SamplingParams(max_new_tokens=2))
    assert submits(fits)[0].sampling.max_new_tokens == 2


def test_no_limit_means_what_the_context_allows():
    request = GenerateRequest(input_ids=[1] * 30, sampling=SamplingParams(max_new_tokens=None))
    assert submits(request)[0].sampling.max_new_tokens == 2


def test_a_huge_text_is_refused_before_it_is_tokenised():
    class Never:
        def encode(self, text, add_special_tokens=True):
            raise AssertionError("tokenised")

    request = GenerateRequest(text="a" * 10_000)
    with pytest.raises(InvalidRequest, match="characters"):
        to_submits(request, Never(), INFO, id_source(), seed_source(0))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("top_logprobs_num", {"top_logprobs": 21}),
        ("top_logprobs_num", {"top_logprobs": -2}),
        ("top_logprobs_num", {"top_logprobs": True}),
        ("logprob_start_len", {"logprob_start": -2}),
        ("logprob_start_len", {"logprob_start": 1, "return_logprob": True}),
        ("logprob_start_len", {"logprob_start": 0.5}),
        ("return_logprob", {"return_logprob": "yes"}),
        ("require_reasoning", {"reasoning": 1}),
        ("require_reasoning", {"reasoning": None}),
        ("require_reasoning", {"reasoning": True}),
        ("namespace", {"namespace": "x" * 257}),
        ("namespace", {"namespace": 5}),
        ("priority", {"priority": 2**31}),
        ("priority", {"priority": -(2**31)}),
        ("priority", {"priority": 1.0}),
        ("priority", {"priority": True}),
        ("priority", {"priority": None}),
        ("program_id", {"program_id": "x" * 129}),
        ("program_id", {"program_id": "\ud800"}),
        ("program_id", {"program_id": 5}),
        ("program_id", {"program_id": None}),
        ("timeout_s", {"timeout_s": 0}),
        ("timeout_s", {"timeout_s": -1.0}),
        ("timeout_s", {"timeout_s": math.nan}),
        ("timeout_s", {"timeout_s": math.inf}),
        ("timeout_s", {"timeout_s": 86_401}),
        ("timeout_s", {"timeout_s": 10**400}),
        ("timeout_s", {"timeout_s": True}),
        ("timeout_s", {"timeout_s": "5"}),
    ],
)
def test_extras_are_checked(name, fields):
    assert refused(input_ids=[1], sampling=SHORT, **fields).param == name


def test_what_the_scheduler_reads_reaches_each_submit():
    sampling = SamplingParams(max_new_tokens=4, n=2)
    fields = {"priority": -(2**31) + 1, "program_id": "p" * 128, "timeout_s": 86_400}
    for made in submits(GenerateRequest(input_ids=[1], sampling=sampling, **fields)):
        assert {name: getattr(made, name) for name in fields} == fields
    [made] = submits(GenerateRequest(input_ids=[1], sampling=SHORT))
    assert (made.priority, made.program_id, made.timeout_s) == (0, "", None)


def test_an_engine_that_knows_the_markers_may_be_asked_to_reason():
    info = replace(INFO, reasoning_parser="qwen3")
    sampling = SamplingParams(max_new_tokens=4, n=2)
    for reasoning in (True, False):
        request = GenerateRequest(input_ids=[1], sampling=sampling, reasoning=reasoning)
        made = to_submits(request, WordTokenizer(), info, id_source(), seed_source(0))
        assert [submit.reasoning for submit in made] == [reasoning] * 2


def test_logprob_options_act_only_when_asked_for():
    [made] = submits(GenerateRequest(input_ids=[1], sampling=SHORT, top_logprobs=3))
    assert (made.return_logprob, made.logprob_start, made.top_logprobs) == (False, -1, 0)


# --- several sequences


def test_n_sequences_differ_in_id_and_seed_only():
    sampling = SamplingParams(max_new_tokens=4, n=128, sampling_seed=MAX_SEED)
    made = submits(GenerateRequest(input_ids=[1], sampling=sampling))
    assert [submit.request_id for submit in made] == [f"r{i}" for i in range(128)]
    seeds = [submit.sampling.sampling_seed for submit in made]
    assert len(set(seeds)) == 128
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert {submit.sampling.n for submit in made} == {1}


def test_the_first_of_n_sequences_is_the_one_that_n_1_gives():
    one, many = (
        submits(
            GenerateRequest(
                input_ids=[1], sampling=SamplingParams(max_new_tokens=4, n=n, sampling_seed=5)
            )
        )
        for n in (1, 3)
    )
    assert many[0] == one[0]
    assert one[0].sampling.sampling_seed == 5


def test_the_seed_source_is_fixed_or_random():
    fixed, random = seed_source(3), seed_source(None)
    assert fixed() == fixed() == 3
    assert random() != random()


# --- batches


def test_a_single_prompt_is_told_from_a_batch_of_one():
    assert generate_requests(text="a") == ([GenerateRequest(text="a")], True)
    assert generate_requests(text=["a"]) == ([GenerateRequest(text="a")], False)
    assert generate_requests(input_ids=[1, 2]) == ([GenerateRequest(input_ids=[1, 2])], True)
    assert generate_requests(input_ids=[[1, 2]]) == ([GenerateRequest(input_ids=[1, 2])], False)


def test_options_are_shared_or_one_for_each_prompt():
    made, _ = generate_requests(
        text=["a", "b"],
        sampling=[{"n": 2}, None],
        return_logprob=True,
        top_logprobs_num=[1, 2],
        logprob_start_len=None,
        priority=[1, None],
        timeout_s=2.5,
        require_reasoning=[None, True],
    )
    assert [request.sampling.n for request in made] == [2, 1]
    assert [request.reasoning for request in made] == [False, True]
    assert [request.return_logprob for request in made] == [True, True]
    assert [request.top_logprobs for request in made] == [1, 2]
    assert [request.logprob_start for request in made] == [-1, -1]
    assert [(request.priority, request.timeout_s) for request in made] == [(1, 2.5), (0, 2.5)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("text", {}),
        ("text", {"text": "a", "input_ids": [1]}),
        ("text", {"text": []}),
        ("text", {"text": ["a"] * (MAX_BATCH + 1)}),
        ("sampling_params", {"text": ["a", "b"], "sampling": [{}]}),
        ("sampling_params", {"text": "a", "sampling": [{}]}),
        ("return_logprob", {"text": ["a", "b"], "return_logprob": [True]}),
        ("unheard_of", {"text": "a", "unheard_of": 1}),
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused(name, arguments):
    with pytest.raises(InvalidRequest) as caught:
        generate_requests(**arguments)
    assert caught.value.param == name


def test_ids_are_the_callers_or_random():
    own = id_source("mine")
    assert [own(), own(), own()] == ["mine", "mine_1", "mine_2"]
    assert id_source()() != id_source()()
    assert [new_id() for new_id in id_sources("run", 2)] == ["run_0", "run_1"]
    assert [new_id() for new_id in id_sources(["a", "b"], 2)] == ["a", "b"]


@pytest.mark.parametrize("rid", ["", "x" * 300, 5, "\ud800"])
def test_an_id_must_be_a_short_text(rid):
    with pytest.raises(InvalidRequest) as caught:
        id_source(rid)
    assert caught.value.param == "rid"


def test_a_list_of_ids_must_fit_the_batch():
    with pytest.raises(InvalidRequest, match="rid"):
        id_sources(["a"], 2)
