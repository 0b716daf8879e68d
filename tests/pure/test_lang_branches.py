"""Forks, joins and errors: the value of a branch, or why there is none, arrives at the reader."""

import threading
from contextlib import suppress

import pytest

import ramify.lang as rl
from ramify.lang.backends.scripted import ScriptedEngine


class Boom(Exception):
    """What a backend of these tests raises."""


def run(body, engine=None, **options):
    return rl.function(body).run(backend=engine or ScriptedEngine(), **options)


def test_branches_run_at_the_same_time():
    """Each of the three waits for the other two, so run one by one they would never end."""
    meet = threading.Barrier(3, timeout=30)

    def answer(_):
        meet.wait()
        return "here"

    def body(s):
        forks = s.fork(3)
        forks += rl.gen("x")
        forks.join()

    assert run(body, ScriptedEngine(answer))["x"] == ["here"] * 3


def test_what_can_be_appended_to_a_group():
    def body(s):
        s += "T "
        forks = s.fork(2)
        forks += lambda i: f"branch {i}:" + rl.gen("one")
        forks += [" left", " right"]
        forks += rl.gen("two")
        forks[1] += "!"
        for fork in forks:
            fork["seen"] = fork["one"]
        with pytest.raises(ValueError, match="one by one"):
            forks += "text"
        with pytest.raises(ValueError, match="3 expressions for 2"):
            forks += ["a", "b", "c"]
        with pytest.raises(ValueError, match="replaced"):
            forks[0] = forks[1]
        assert len(forks) == 2
        assert [fork.text() for fork in forks] == [
            "T branch 0:zero left L",
            "T branch 1:one right R!",
        ]
        forks.join()

    script = {"0:": "zero", "1:": "one", " left": " L", " right": " R"}
    state = run(body, ScriptedEngine(script))
    assert state["seen"] == ["zero", "one"]
    assert state["two"] == [" L", " R"]
    assert state.text() == "T ", "gathering does not touch the text"


def test_joins_append_texts_or_gather_new_names_only():
    def body(s):
        s["old"] = "kept"
        s += "A"
        forks = s.fork(2)
        for i, fork in enumerate(forks):
            fork["old"] = "changed"
            fork += f"-{i}"
        forks[1]["only"] = 1
        forks.join("concate_and_append")
        forks.join()
        with pytest.raises(ValueError, match="not 'kv'"):
            forks.join("kv")

    state = run(body)
    assert state.text() == "A-0-1"
    assert state["old"] == "kept"
    assert state["only"] == [1], "branches that lack a name are left out of its list"


def test_copy_gathers_lists_of_one_and_leaves_the_text():
    def body(s):
        s += "Q:"
        with s.copy() as c:
            c += rl.gen("draft")
        s += "end"

    state = run(body)
    assert state["draft"] == ["ok"]
    assert state.text() == "Q:end"


def test_nested_forks_keep_roles_messages_and_scopes():
    def body(s):
        s += rl.user("go")
        with s.assistant(), s.var_scope("all"):
            s += "<"
            outer = s.fork(2)
            for i, branch in enumerate(outer):
                inner = branch.fork(2)
                inner += lambda j, i=i: f"{i}{j}:" + rl.gen("leaf")
                inner.join()
                branch["leaves"] = branch["leaf"]
            outer.join()
            s += ">"

    state = run(body, ScriptedEngine(lambda prompt: prompt[-3:-1]))
    assert state["leaves"] == [["00", "01"], ["10", "11"]]
    assert state["all"] == "<>"
    assert state.messages()[-1] == {"role": "assistant", "content": "<>"}


def test_the_trunk_is_computed_before_the_branches_ask_for_it():
    """The hint: one request for the shared text, whose tokens every branch then finds."""

    def body(s):
        s += "one two three four five"
        s.fork(1)[0].sync()
        forks = s.fork(3)
        forks += lambda i: f" {i}" + rl.gen("x", max_tokens=1)
        forks.join()
        s["hits"] = [fork.get_meta_info("x")["cached_tokens"] for fork in forks]

    engine = ScriptedEngine()
    state = run(body, engine)
    assert engine.requests[0]["sampling_params"]["max_new_tokens"] == 0
    assert len(engine.requests) == 4, "no hint for one branch"
    assert min(state["hits"]) >= 5


def test_forks_of_an_empty_state_send_no_hint():
    engine = ScriptedEngine()
    run(lambda s: s.fork(4), engine)
    assert engine.requests == []
    with pytest.raises(ValueError, match="at least one"):
        run(lambda s: s.fork(0), engine)


# --- errors ---


def test_a_failed_generation_raises_its_cause_at_every_read():
    def body(s):
        s += "A:" + rl.gen("good") + "B:" + rl.gen("bad") + "C:" + rl.gen("later")

    cause = Boom("no more")
    state = run(body, ScriptedEngine({"A:": "fine", "B:": cause, "C:": "never"}))
    assert state["good"] == "fine", "what was there before stays"
    for read in (
        lambda: state["bad"],
        lambda: state["later"],
        lambda: state.get_meta_info("bad"),
        state.text,
        state.messages,
        lambda: list(state.text_iter()),
        lambda: list(state.text_iter("bad")),
    ):
        with pytest.raises(rl.ProgramError, match="no more") as caught:
            read()
        assert caught.value.__cause__ is cause
    assert state.error() is cause
    assert "bad" not in state
    assert repr(state) == "ProgramState(A:fineB:)"


def test_an_unknown_name_is_a_key_error_and_not_a_failure():
    state = run(lambda s: None)
    with pytest.raises(KeyError, match="nothing"):
        state["nothing"]
    assert state.error() is None


def test_a_failed_branch_fails_what_it_was_to_give_and_nothing_else():
    cause = Boom("branch")

    def body(s):
        s += "T"
        forks = s.fork(2)
        forks += lambda i: f"{i}:" + rl.gen("x")
        forks.join()
        assert forks[0]["x"] == "fine"
        s += "on" + rl.gen("more")

    state = run(body, ScriptedEngine({"0:": "fine", "1:": cause, "on": "!"}))
    assert state["more"] == "!"
    with pytest.raises(rl.ProgramError) as caught:
        state["x"]
    assert caught.value.__cause__ is cause


def test_a_text_join_with_a_failed_branch_fails_the_text():
    def body(s):
        forks = s.fork(2)
        forks += lambda i: f"{i}:" + rl.gen("x")
        forks.join("concate_and_append")

    state = run(body, ScriptedEngine({"0:": "fine", "1:": Boom("branch")}))
    assert isinstance(state.error(), Boom)


def test_forks_of_a_failed_state_carry_its_error():
    cause = Boom("early")

    def body(s):
        s += "x" + rl.gen("x")
        forks = s.fork(2)
        forks += rl.gen("y")
        forks.join()

    state = run(body, ScriptedEngine({"": cause}))
    with pytest.raises(rl.ProgramError) as caught:
        state["y"]
    assert caught.value.__cause__ is cause


def test_an_exception_in_a_role_block_closes_the_role():
    def body(s):
        with suppress(Boom), s.user():
            s += "half"
            raise Boom
        s += rl.assistant("whole")

    state = run(body)
    assert [message["content"] for message in state.messages()] == ["half", "whole"]


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        (rl.user_begin() + rl.assistant_begin(), "close it first"),
        (rl.user_end(), "the open one is of: None"),
        (rl.user(rl.assistant_end()), "the open one is of: user"),
    ],
)
def test_roles_do_not_nest(expression, words):
    def body(s):
        s += expression

    with pytest.raises(rl.ProgramError, match=words):
        run(body).text()


def test_the_users_own_exception_comes_out_of_run_unchanged():
    def body(s):
        s += rl.gen("x")
        raise Boom("mine")

    with pytest.raises(Boom, match="mine"):
        run(body)
