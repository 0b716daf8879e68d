"""What belongs to one run of a program says so to the engine, and to no other run."""

import pytest

import ramify.lang as rl
from ramify.lang.backends.local import EngineBackend
from ramify.lang.backends.scripted import ScriptedEngine, tokens_of
from ramify.lang.choices import ChoicesDecision

LONG = "A text that is long enough to be worth a request of its own, before the batch. " * 2


@rl.function
def branching(s, word):
    s += LONG + word
    s += rl.gen("first", max_tokens=2)
    forks = s.fork(2)
    forks += lambda i: f" {i}" + rl.gen("branch", max_tokens=2)
    forks.join()
    with s.copy() as inner:
        inner += rl.select("kind", [" a", " b"])


def ids_of(engine: ScriptedEngine) -> list[str]:
    return [request["program_id"] for request in engine.requests]


@pytest.mark.parametrize("wrap", [lambda engine: engine, EngineBackend])
@pytest.mark.parametrize("stream", [False, True])
def test_a_run_and_its_branches_have_one_id(wrap, stream):
    """Generations, branches, scores and texts that are computed ahead: all requests of the run."""
    engine = ScriptedEngine()
    branching.run("x", backend=wrap(engine), stream=stream).sync()
    assert len(engine.requests) >= 6
    (program_id,) = set(ids_of(engine))
    assert 0 < len(program_id) <= 128


def test_each_item_of_a_batch_is_a_program_and_what_they_share_is_none():
    engine = ScriptedEngine()
    branching.run_batch([("x",), ("y",), ("z",)], backend=engine)
    assert engine.requests[0]["prompt"] == LONG
    first, *others = ids_of(engine)
    assert first == ""
    by_word = {}
    for request, program_id in zip(engine.requests[1:], others, strict=True):
        if request["prompt"] is not None and isinstance(request["prompt"], str):
            by_word.setdefault(request["prompt"].removeprefix(LONG)[0], set()).add(program_id)
    assert sorted(by_word) == ["x", "y", "z"]
    assert all(len(found) == 1 for found in by_word.values())
    assert len(set(others)) == 3


def test_two_runs_are_two_programs_on_one_backend():
    engine = ScriptedEngine()
    backend = EngineBackend(engine)
    for _ in range(2):
        branching.run("x", backend=backend).sync()
    assert len(set(ids_of(engine))) == 2
    backend.commit("no program at all")
    assert ids_of(engine)[-1] == "", "a backend is not changed by the programs on it"


def test_a_model_is_asked_about_itself_once_for_all_programs():
    class Counting(ScriptedEngine):
        asked = 0

        def model_info(self):
            self.asked += 1
            return super().model_info()

    engine = Counting()
    backend = EngineBackend(engine)
    for _ in range(3):
        branching.run("x", backend=backend).sync()
    assert engine.asked == 1


def test_a_select_tells_how_much_of_its_scoring_was_cached():
    @rl.function
    def program(s):
        s += "Is a tomato a fruit or a vegetable?"
        s += rl.select("kind", [" fruit", " vegetable"])

    meta = program.run(backend=ScriptedEngine()).get_meta_info("kind")
    length = len(tokens_of("Is a tomato a fruit or a vegetable?"))
    asked = length + length + 2 * (length + 1)  # the prompt twice, then with each choice
    assert meta["prompt_tokens"] == asked
    assert meta["cached_tokens"] == (length - 1) + 2 * length, "all that could be reused was"


def test_a_method_of_ones_own_keeps_its_meta_information():
    class First:
        requires_unconditional_logprobs = False

        def __call__(self, *, choices, **_):
            return ChoicesDecision(choices[0], {"mine": 1})

    @rl.function
    def program(s):
        s += "a or b?" + rl.select("kind", [" a", " b"], choices_method=First())

    meta = program.run(backend=ScriptedEngine()).get_meta_info("kind")
    assert meta["mine"] == 1
    assert meta["prompt_tokens"] > meta["cached_tokens"] > 0
