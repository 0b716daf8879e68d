"""Batches: order, bounded work, errors, and nothing left behind."""

import threading
import time

import pytest

import ramify.lang as rl
from ramify.lang.backends.scripted import ScriptedEngine
from ramify.lang.batch import run_ordered


@rl.function
def echo(s, word, mark="!"):
    s += word + mark + rl.gen("reply", max_tokens=4)


def last_word(prompt):
    return f" {prompt.split()[-1]}"


def test_states_come_in_the_order_of_items_given_as_dicts_or_tuples():
    engine = ScriptedEngine(last_word)
    dicts = [{"word": f"w{i}"} for i in range(300)]
    states = echo.run_batch(dicts, backend=engine, num_threads=24, temperature=0)
    assert [state["reply"] for state in states] == [f" w{i}!" for i in range(300)]
    assert engine.requests[-1]["sampling_params"]["temperature"] == 0
    states = echo.run_batch([("a",), ("b", "?")], backend=engine, progress_bar=True)
    assert [state.text() for state in states] == ["a! a!", "b? b?"]
    states = echo.bind(mark=".").run_batch([("a",), ("b",)], backend=engine)
    assert [state.text() for state in states] == ["a. a.", "b. b."]
    assert echo.run_batch([], backend=engine) == []
    assert list(echo.run_batch([], backend=engine, generator_style=True)) == []


def test_thousands_of_forking_items_on_dozens_of_threads_leave_no_thread():
    @rl.function
    def program(s, i):
        s += f"item {i}"
        forks = s.fork(2)
        forks += lambda j: f" {j}" + rl.gen("x")
        forks.join()
        return s["x"]

    before = threading.active_count()
    states = program.run_batch(
        [{"i": i} for i in range(1500)], backend=ScriptedEngine(last_word), num_threads=48
    )
    assert [state.ret_value for state in states] == [[" 0", " 1"]] * 1500
    assert settled(before)


def settled(count):
    """Whether the number of threads goes back to `count`: a lane ends just after its last job."""
    for _ in range(100):
        if threading.active_count() <= count:
            return True
        time.sleep(0.02)
    return False


def test_a_generator_gives_results_early_and_starts_little_after_a_break():
    engine = ScriptedEngine(last_word)
    before = threading.active_count()
    items = [{"word": f"w{i}"} for i in range(5000)]
    states = echo.run_batch(items, backend=engine, num_threads=4, generator_style=True)
    assert engine.requests == [], "a generator starts when it is asked"
    assert [next(states)["reply"] for _ in range(3)] == [" w0!", " w1!", " w2!"]
    states.close()
    done = len(engine.requests)
    assert done < 1000, "the rest of the batch was dropped"
    time.sleep(0.05)
    assert len(engine.requests) == done, "and nothing goes on afterwards"
    assert settled(before)


def test_a_failed_item_keeps_its_error_and_the_others_their_values():
    cause = RuntimeError("item 1")

    @rl.function
    def program(s, i):
        s += f"{i}:" + rl.gen("x")
        return s["x"]

    engine = ScriptedEngine({"0:": "a", "1:": cause, "2:": "c"})
    states = program.run_batch([(0,), (1,), (2,)], backend=engine)
    assert [state.ret_value for state in states] == ["a", None, "c"]
    assert [state.error() for state in states] == [None, cause, None]
    with pytest.raises(rl.ProgramError):
        states[1]["x"]


def test_a_bug_in_the_function_ends_the_batch():
    @rl.function
    def program(s, i):
        return 1 / i

    with pytest.raises(ZeroDivisionError):
        program.run_batch([(1,), (0,), (1,)], backend=ScriptedEngine())


def test_no_more_jobs_run_ahead_than_asked_for():
    started = []
    jobs = [lambda i=i: started.append(i) or i for i in range(20)]
    results = run_ordered(jobs, threads=2, ahead=3)
    assert next(results) == 0
    results.close()
    assert len(started) <= 4
    assert list(run_ordered(jobs, threads=2, ahead=3)) == list(range(20))


# --- the prefix that all items share ---

LONG = "You answer questions about a long and very detailed text. " * 2


def test_the_constant_prefix_is_computed_once_before_the_batch():
    @rl.function
    def program(s, question):
        s += rl.system(LONG)
        s += rl.user("Question: " + question)
        s += rl.assistant(rl.gen("x"))

    engine = ScriptedEngine()
    program.run_batch([("a",), ("b",)], backend=engine)
    first = engine.requests[0]
    assert first["prompt"] == f"SYSTEM:{LONG}\nUSER:Question: "
    assert first["sampling_params"]["max_new_tokens"] == 0
    engine.requests.clear()
    program.run_batch([("a",)], backend=engine)
    assert len(engine.requests) == 1, "one item shares with nobody"


@pytest.mark.parametrize(
    "look",
    [
        lambda question: f"{question}",
        lambda question: str(question),
        lambda question: len(question),
        lambda question: question[0],
        lambda question: question.upper(),
        lambda question: {"a": 1}[question],
        lambda question: question == "a",
        lambda question: 1 if question else 0,
        lambda question: int(question),
        lambda question: list(question),
    ],
)
def test_a_function_that_looks_into_its_arguments_only_ends_the_prefix(look):
    """A hint must not fail a program that runs well on real arguments."""

    @rl.function
    def program(s, question):
        s += LONG
        with pytest.raises((TypeError, AttributeError)):
            look(question)
        look(question)

    engine = ScriptedEngine()
    program.cache(engine)
    assert [request["prompt"] for request in engine.requests] == [LONG]


def test_the_prefix_is_not_traced_when_that_is_switched_off(monkeypatch):
    monkeypatch.setattr(rl.global_config, "enable_precache_with_tracing", False)
    calls = []

    @rl.function
    def program(s, i):
        calls.append(i)

    program.run_batch([(1,), (2,)], backend=ScriptedEngine())
    assert sorted(calls) == [1, 2]
