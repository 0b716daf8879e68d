"""The idioms of real programs, on a scripted engine: what a port from SGLang relies on."""

import json

import pytest

import ramify.lang as rl
from ramify.lang.backends.scripted import ScriptedEngine

CHATML = {"model_path": "a/tinyllama"}


@pytest.fixture(params=[True, False], ids=["threads", "inline"])
def use_thread(request):
    """Everything must hold in both ways of execution."""
    return request.param


def test_few_shot_completion_stops_at_the_newline(use_thread):
    @rl.function
    def answer(s, question):
        s += "Q: 1+1?\nA: 2\n"
        s += "Q: " + question + "\nA:" + rl.gen("answer", stop="\n")

    engine = ScriptedEngine({"A:": " 4\nQ: more"})
    state = answer.run(question="2+2?", backend=engine, use_thread=use_thread)
    assert state["answer"] == " 4"
    assert state.text() == "Q: 1+1?\nA: 2\nQ: 2+2?\nA: 4"
    assert state.get_meta_info("answer")["finish_reason"] == {"type": "stop", "matched": "\n"}
    assert engine.requests[-1]["sampling_params"]["max_new_tokens"] == 128


def chat_by_expressions(s):
    s += rl.system("Be brief.")
    s += rl.user("Hello")
    s += rl.assistant(rl.gen("one"))
    s += rl.user("Again") + rl.assistant(rl.gen("two"))


def chat_by_scopes(s):
    with s.system():
        s += "Be brief."
    with s.user():
        s += "Hello"
    with s.assistant():
        s += rl.gen("one")
    s.user("Again")
    s.assistant(rl.gen("two"))


def chat_by_ends(s):
    s += rl.system_begin() + "Be brief." + rl.system_end()
    s += rl.user_begin() + "Hello" + rl.user_end()
    s += rl.assistant_begin()
    s += rl.gen("one")
    s += rl.assistant_end()
    s += rl.user_begin() + "Again" + rl.user_end()
    s += rl.assistant_begin() + rl.gen("two") + rl.assistant_end()


@pytest.mark.parametrize("chat", [chat_by_expressions, chat_by_scopes, chat_by_ends])
def test_three_ways_to_write_a_chat_are_the_same(chat, use_thread):
    script = {"Hello<|im_end|>\n<|im_start|>assistant\n": "Hi!", "<|im_start|>assistant\n": "Yes?"}
    engine = ScriptedEngine(script, **CHATML)
    state = rl.function(chat).run(backend=engine, use_thread=use_thread)
    assert state.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Again"},
        {"role": "assistant", "content": "Yes?"},
    ]
    assert state.text().startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert engine.requests[0]["sampling_params"]["stop"] == ["<|im_end|>"], "the template's stop"


def test_a_default_system_prompt_is_a_message_of_its_own():
    @rl.function
    def chat(s):
        s += rl.user("Hello")
        s += rl.assistant(rl.gen("answer"))

    state = chat.run(backend=ScriptedEngine(model_path="Qwen/Qwen2-Instruct"))
    assert [message["role"] for message in state.messages()] == ["system", "user", "assistant"]
    assert state.text().startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")


def test_python_between_generations_and_variables_set_by_hand():
    @rl.function
    def program(s):
        s += "Name:" + rl.gen("name")
        s["shout"] = s["name"].strip().upper()
        s.set_var("length", len(s["shout"]))
        s += f". Loud: {s['shout']}"
        return s["length"]

    state = program.run(backend=ScriptedEngine({"Name:": " Ada"}))
    assert state.text() == "Name: Ada. Loud: ADA"
    assert state.ret_value == 3
    assert "shout" in state
    assert "nothing" not in state
    assert state.get_meta_info("shout") is None
    assert state.get_meta_info("nothing") is None
    assert repr(state) == "ProgramState(Name: Ada. Loud: ADA)"


def test_json_from_unnamed_generations_inside_a_scope():
    @rl.function
    def program(s):
        s += "A city as JSON: "
        with s.var_scope("json"):
            s += '{"name": ' + rl.gen() + ', "old": ' + rl.gen() + "}"

    engine = ScriptedEngine({'"name": ': '"Rome"', '"old": ': "true"})
    assert json.loads(program.run(backend=engine)["json"]) == {"name": "Rome", "old": True}


def test_a_loop_whose_length_the_model_decides():
    @rl.function
    def react(s, limit):
        for step in range(1, limit):
            s += f"Thought {step}:" + rl.gen("thought", stop="\n") + "\n"
            if "done" in s["thought"]:
                return step
        return None

    engine = ScriptedEngine({"Thought 3:": " done\n", ":": " go on\n"})
    state = react.run(10, backend=engine)
    assert state.ret_value == 3
    assert state["thought"] == " done", "the last generation of a name is the one that is read"


def test_select_and_choices_on_the_first_assistant_token():
    @rl.function
    def program(s):
        s += rl.user("Which?")
        s += rl.assistant(rl.gen("a", choices=["yes", "no"], temperature=0))
        s += rl.user("Again?") + rl.assistant_begin()
        s += rl.select("b", ["yes", "no"])
        s += rl.assistant_end()

    engine = ScriptedEngine(logprob=lambda _, token: -0.5 if "no" in token else -3.0)
    state = program.run(backend=engine)
    assert (state["a"], state["b"]) == ("no", "no")
    assert state.get_meta_info("b")["normalized_prompt_logprobs"] == [-3.0, -0.5]


def test_n_gives_a_list_and_appends_the_first(use_thread):
    @rl.function
    def program(s):
        s += "Say:" + rl.gen("word", n=3) + "!"

    engine = ScriptedEngine({"Say:": ["one", "two", "three"]})
    for stream in (False, True):
        state = program.run(backend=engine, use_thread=use_thread, stream=stream)
        assert state["word"] == ["one", "two", "three"]
        assert state.text() == "Say:one!"
        assert len(state.get_meta_info("word")) == 3


def test_a_state_as_first_argument_continues_it():
    @rl.function
    def ask(s, question):
        s += question + ":" + rl.gen("answer")
        return s["answer"]

    @rl.function
    def outer(s):
        s += "Start. "
        return ask(s, "Who"), ask(question="Where").ret_value

    rl.set_default_backend(ScriptedEngine({"Who:": "me", "Where:": "here"}))
    try:
        state = outer.run()
    finally:
        rl.set_default_backend(None)
    assert state.text() == "Start. Who:me"
    assert state.ret_value == ("me", "here"), "without a state it is a run of its own"


def test_bind_run_options_and_names_of_the_function_itself():
    @rl.function(num_api_spec_tokens=8)
    def program(s, topic, temperature):
        s += topic + temperature + rl.gen("x", max_tokens=3)

    bound = program.bind(topic="cats ")
    assert bound.num_api_spec_tokens == 8
    engine = ScriptedEngine()
    state = bound.run(temperature="hot", top_p=0.5, max_new_tokens=9, backend=engine)
    assert state.text() == "cats hotok", "a parameter that is called like an option is a parameter"
    sent = engine.requests[-1]["sampling_params"]
    assert (sent["max_new_tokens"], sent["top_p"], sent["temperature"]) == (3, 0.5, 1.0)


@pytest.mark.parametrize(
    ("misuse", "error", "words"),
    [
        (lambda p: p.run("a", "b"), TypeError, "too many"),
        (lambda p: p.run(topic="a", colour="b"), TypeError, "colour"),
        (lambda p: p.bind(colour="b"), TypeError, "colour"),
        (lambda p: p.run_batch([{"topic": "a"}], colour=1), TypeError, "colour"),
        (lambda p: p.run_batch([("a", "b")]), TypeError, "2 values for 1"),
        (lambda p: p.run_batch([{"colour": "b"}]), TypeError, "topic"),
        (lambda p: p.run_batch([("a",)], num_threads=0), ValueError, "num_threads"),
        (lambda p: p.run("a", dtype="complex"), ValueError, "dtype"),
    ],
)
def test_calls_that_do_not_fit_say_what_is_wrong(misuse, error, words):
    @rl.function
    def program(s, topic):
        s += topic

    rl.set_default_backend(ScriptedEngine())
    try:
        with pytest.raises(error, match=words):
            misuse(program)
    finally:
        rl.set_default_backend(None)


def test_functions_and_backends_that_cannot_be_are_refused():
    with pytest.raises(TypeError, match="must be called s"):
        rl.function(lambda state: None)
    with pytest.raises(TypeError, match="got int"):
        rl.set_default_backend(3)
    with pytest.raises(RuntimeError, match="no backend"):
        rl.function(lambda s: None).run()
    assert rl.flush_cache() is False
    assert rl.get_server_info() is None


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        (lambda: rl.select("x", []), ValueError),
        (lambda: rl.select("x", ["a", "a"]), ValueError),
        (lambda: rl.select("x", ["a", ""]), ValueError),
        (lambda: rl.select("x", ["a", "b"], temperature=0.7), ValueError),
        (lambda: rl.gen("x", regex="("), ValueError),
        (lambda: rl.gen("x", dtype=complex), ValueError),
        (lambda: rl.gen("x") + None, ValueError),
        (lambda: rl.gen("x") + 3, TypeError),
    ],
)
def test_expressions_that_cannot_be_are_refused_where_they_are_written(expression, error):
    with pytest.raises(error):
        expression()


def test_verbosity_prints_the_text(capsys, monkeypatch):
    monkeypatch.setattr(rl.global_config, "verbosity", 2)
    rl.function(chat_by_ends).run(backend=ScriptedEngine())
    assert "ASSISTANT:ok" in capsys.readouterr().out
