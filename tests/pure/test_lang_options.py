"""Options are declared once and merged as a whole."""

import warnings

import pytest

import ramify.lang as rl
from ramify.lang.backends.scripted import ScriptedEngine
from ramify.lang.options import RUN_DEFAULTS, GenerateOptions


def sent(expression, **run):
    """What the server gets for one generation."""

    @rl.function
    def program(s):
        s += "x" + expression

    engine = ScriptedEngine(model_path="tinyllama")
    program.run(backend=engine, **run).sync()
    return engine.requests[-1]["sampling_params"]


def test_the_call_wins_over_the_run_and_the_run_over_the_defaults():
    got = sent(rl.gen("x", temperature=0.0, stop="a"), temperature=0.7, top_k=5, stop=["b", "c"])
    assert (got["temperature"], got["top_k"], got["max_new_tokens"]) == (0.0, 5, 128)
    assert got["stop"] == ["a", "<|im_end|>"], "then the stops of the template"
    assert sent(rl.gen("x"), stop=["b", "<|im_end|>"])["stop"] == ["b", "<|im_end|>"]


def test_zero_and_false_are_said_and_none_is_not():
    options = GenerateOptions(temperature=0.0, ignore_eos=False, max_new_tokens=0)
    assert options.given() == {"max_new_tokens": 0, "temperature": 0.0, "ignore_eos": False}
    merged = options.over(GenerateOptions(temperature=1.0, ignore_eos=True, n=2))
    assert (merged.temperature, merged.ignore_eos, merged.n) == (0.0, False, 2)


def test_constraints_are_forwarded_under_the_servers_names():
    assert sent(rl.gen("x", regex="a+"))["regex"] == "a+"
    assert sent(rl.gen("x", json_schema="{}", stop_regex="x+")) == {
        **RUN_DEFAULTS.sampling_params(),
        "stop": ["<|im_end|>"],
        "json_schema": "{}",
        "stop_regex": "x+",
    }


@pytest.mark.parametrize(
    ("expression", "regex", "stops"),
    [
        (rl.gen_int("x"), r"[-+]?[0-9]+[ \n]*", [" ", "\n"]),
        (rl.gen("x", dtype=float, stop="."), r"[-+]?[0-9]*\.?[0-9]+[ \n]*", [".", " ", "\n"]),
        (rl.gen("x", dtype="bool"), "(True|False)", []),
        (rl.gen_string("x"), r'"[\w\d\s]*"', []),
    ],
)
def test_a_dtype_is_a_regex_and_for_numbers_further_stops(expression, regex, stops):
    got = sent(expression)
    assert got["regex"] == regex
    assert sorted(got["stop"]) == sorted([*stops, "<|im_end|>"])
    assert "dtype" not in got


def test_a_dtype_takes_the_place_of_a_regex_with_a_warning():
    with pytest.warns(UserWarning, match="dtype takes the place"):
        expression = rl.gen("x", dtype=int, regex="a")
    assert sent(expression)["regex"].startswith("[-+]")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rl.gen("x", dtype=int)


def test_settings_of_the_process_reach_the_server_when_they_differ(monkeypatch):
    assert "skip_special_tokens" not in sent(rl.gen("x"))
    monkeypatch.setattr(rl.global_config, "skip_special_tokens_in_output", False)
    monkeypatch.setattr(rl.global_config, "spaces_between_special_tokens_in_out", False)
    got = sent(rl.gen("x"))
    assert (got["skip_special_tokens"], got["spaces_between_special_tokens"]) == (False, False)


def test_positional_arguments_of_gen_are_in_sglangs_order():
    node = rl.gen("x", 1, 2, 3, "s", [4], "r", 0.5, 0.6, 7, 0.8, 0.9, 1.0, True)
    assert node.options.given() == {
        "max_new_tokens": 1,
        "min_new_tokens": 2,
        "n": 3,
        "stop": "s",
        "stop_token_ids": [4],
        "stop_regex": "r",
        "temperature": 0.5,
        "top_p": 0.6,
        "top_k": 7,
        "min_p": 0.8,
        "frequency_penalty": 0.9,
        "presence_penalty": 1.0,
        "ignore_eos": True,
    }
