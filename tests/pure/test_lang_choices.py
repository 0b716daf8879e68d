"""How a select decides, and that it scores the tokens it should."""

import pytest

import ramify.lang as rl
from ramify.lang.backends.scoring import common_tokens, score
from ramify.lang.backends.scripted import ScriptedEngine


def rows(*logprobs):
    return [[[value, i, None] for i, value in enumerate(row)] for row in logprobs]


def decide(method, conditional, alone=None, choices="abc"):
    means = [sum(v for v in row if v is not None) / len(row) for row in conditional]
    return method(
        choices=list(choices)[: len(conditional)],
        normalized_prompt_logprobs=means,
        input_token_logprobs=rows(*conditional),
        output_token_logprobs=[[] for _ in conditional],
        unconditional_token_logprobs=None if alone is None else rows(*alone),
    )


def test_the_best_mean_wins_and_an_exact_zero_counts():
    found = decide(rl.token_length_normalized, [[-1.0, 0.0], [-0.6], [-0.6]])
    assert found.decision == "a", "-0.5: without the zero it would be -1"
    assert list(found.meta_info) == [
        "normalized_prompt_logprobs",
        "input_token_logprobs",
        "output_token_logprobs",
    ]
    assert decide(rl.token_length_normalized, [[-1.0], [-1.0]]).decision == "a", "the first on ties"


def test_greedy_goes_token_by_token_and_pads_with_the_mean():
    found = decide(rl.greedy_token_selection, [[-1.0, -9.0], [-1.0, -2.0], [-3.0, 0.0]])
    assert found.decision == "b"
    found = decide(rl.greedy_token_selection, [[-1.0], [-1.0, -0.5], [-1.0, -4.0]])
    assert found.decision == "b"
    assert found.meta_info["greedy_logprob_matrix"] == [[-1.0, -1.0], [-1.0, -0.5], [-1.0, -4.0]]


def test_the_unconditional_method_takes_what_the_text_made_likelier():
    method = rl.unconditional_likelihood_normalized
    found = decide(method, [[-1.0, -1.0], [-2.0, -2.0]], [[None, -1.0], [None, -9.0]])
    assert found.decision == "b"
    assert found.meta_info["normalized_unconditional_prompt_logprobs"] == [-0.5, 2.5]
    with pytest.raises(ValueError, match="unconditional"):
        decide(method, [[-1.0]])


# --- which tokens are scored ---


def texts(scores):
    return [[entry[2] for entry in entries] for entries in scores.input_token_logprobs]


def test_scoring_starts_where_the_texts_differ():
    engine = ScriptedEngine()
    assert texts(score(engine, "It is", [" red", " light blue"], unconditional=False)) == [
        [" red"],
        [" light", " blue"],
    ]


def test_a_choice_that_grows_the_last_token_of_the_prompt_pulls_it_in():
    """ "New" + "ton" is one token: both choices are then scored from the token "New" on."""
    scores = score(ScriptedEngine(), "Say New", ["ton", " York"], unconditional=False)
    assert texts(scores) == [[" Newton"], [" New", " York"]]


def test_a_choice_that_begins_another_is_scored_whole():
    scores = score(ScriptedEngine(), "In ", ["New", "New York"], unconditional=False)
    assert [len(entries) for entries in scores.input_token_logprobs] == [1, 2]


def test_the_window_grows_when_all_of_it_differs():
    """Here every token of the prompt depends on how the whole text ends."""

    class Strange(ScriptedEngine):
        def _prompt_entries(self, tokens, start):
            entries = super()._prompt_entries(tokens, start)
            return [
                [lp, i if n == 0 else hash((i, tokens[-1])), t]
                for n, (lp, i, t) in entries_of(tokens, start, entries)
            ]

    def entries_of(tokens, start, entries):
        return list(enumerate(entries, start))

    engine = Strange()
    scores = score(engine, "a " * 30, ["x", "y"], unconditional=False)
    starts = [request["logprob_start_len"] for request in engine.requests]
    assert starts == [None, 60 - 8 - 29, 0]
    assert len(scores.input_token_logprobs[0]) > 8


def test_a_whole_select_is_three_requests_at_most_and_shares_the_prompt():
    @rl.function
    def program(s):
        s += "one two three four five six seven eight nine ten:"
        s += rl.select("x", [" a b", " c"], choices_method=rl.unconditional_likelihood_normalized)

    engine = ScriptedEngine(logprob=lambda before, token: -1.0 if before else -2.0)
    state = program.run(backend=engine)
    prompt, joint, alone = engine.requests
    assert prompt["sampling_params"]["max_new_tokens"] == 0
    assert len(joint["prompt"]) == 3, "the prompt itself and both choices, in one batch"
    assert joint["logprob_start_len"] == 3, "not the whole prompt again"
    assert [len(row) for row in alone["input_ids"]] == [2, 1]
    unconditional = state.get_meta_info("x")["unconditional_token_logprobs"]
    assert [entry[0] for row in unconditional for entry in row] == [None, -1.0, None]
    assert state["x"] in (" a b", " c")


def test_nothing_before_the_choices_is_an_error_that_says_so():
    @rl.function
    def program(s):
        s += rl.select("x", ["a", "b"])

    with pytest.raises(rl.ProgramError, match="some text before"):
        program.run(backend=ScriptedEngine())["x"]
    with pytest.raises(ValueError, match="more text is needed"):
        score(ScriptedEngine(), "a", ["b", "c"], unconditional=False)


def test_common_tokens_of_rows():
    assert common_tokens(rows([-1.0, -2.0], [-3.0])) == 1
    assert common_tokens([[[0.0, 5, None]], [[0.0, 6, None]]]) == 0
