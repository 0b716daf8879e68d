"""Traces: a program as nodes, without a model."""

import threading

import pytest

import ramify.lang as rl
from ramify.lang.backends.scripted import ScriptedEngine
from ramify.lang.tracer import current_trace


@rl.function
def helper(s, word):
    s += "helper " + word + rl.gen("h")
    return s["h"]


@rl.function
def program(s, question, style):
    s += rl.system("Be " + style)
    with s.user():
        s += question
    with s.assistant(), s.var_scope("all"):
        s += rl.gen("answer", max_tokens=5) + rl.gen()
        s += rl.select("mood", ["good", "bad"])
    s["copied"] = s["answer"]
    s += "So: " + s["copied"]
    forks = s.fork(2)
    forks += lambda i: f"{i}" + rl.gen("leaf")
    forks.join()
    inner = helper(word="w")
    return s["leaf"], inner["h"], helper(s, "again")


LISTING = """\
begin system
text 'Be kind'
end system
begin user
argument question
end user
begin assistant
scope all
gen answer max_new_tokens=5
gen -
select mood ['good', 'bad']
end scope all
end assistant
text 'So: '
variable answer
fork 2
join gather_variable
text 'helper again'
gen h"""


def test_a_trace_lists_what_would_be_appended():
    trace = program.trace(style="kind")
    assert trace.listing() == LISTING
    assert list(trace.variables)[:4] == ["answer", "gen_1", "mood", "all"]
    assert len(trace.child_states) == 3, "two branches and one function called inside"
    assert len(trace.flatten_nodes()) == len(trace.nodes) + 2 * 2 + 2
    leaves, inner, again = trace.ret_value
    assert [leaf.name for leaf in leaves] == ["leaf", "leaf"]
    assert (inner.name, again.name) == ("h", "h")


def test_a_trace_does_not_let_a_program_look_into_symbols():
    @rl.function
    def nosy(s, word):
        s += f"a {word}"

    with pytest.raises(TypeError, match="only be appended"):
        nosy.trace()
    assert current_trace.get() is None, "a trace that failed is over"
    assert nosy.trace(word="b").listing() == "text 'a b'"


def test_a_trace_is_not_seen_by_other_threads():
    states = []

    @rl.function
    def outer(s):
        run = lambda: states.append(helper.run("x", backend=ScriptedEngine()))  # noqa: E731
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    outer.trace()
    assert states[0].text() == "helper xok"


def test_symbols_do_not_run():
    symbol = helper.trace().ret_value

    @rl.function
    def misuse(s):
        s += "a" + symbol

    with pytest.raises(rl.ProgramError, match="only known inside the trace"):
        misuse.run(backend=ScriptedEngine()).text()


def test_unknown_names_are_unknown_in_a_trace_too():
    with pytest.raises(rl.UnknownVariable):
        rl.function(lambda s: s["x"]).trace()
