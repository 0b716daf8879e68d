"""The language over a real engine and the embedded model: the seam holds on both sides."""

import pytest

import ramify.lang as rl
from ramify.srt.engine import Engine

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine():
    with Engine("smollm2") as running:
        yield running


@rl.function
def program(s):
    s += rl.user("What is the capital of France?")
    s += rl.assistant(rl.gen("answer", max_tokens=12, temperature=0))
    s += rl.user("Is it a city or a river?") + rl.assistant(rl.select("kind", ["city", "river"]))
    forks = s.fork(2)
    forks += lambda i: rl.user(f"Fact {i + 1}?") + rl.assistant_begin()
    forks += rl.gen("fact", max_tokens=4, temperature=0)
    forks.join()
    s["cached"] = [fork.get_meta_info("fact")["cached_tokens"] for fork in forks]


def test_a_chat_with_a_choice_and_branches(engine):
    engine.flush_cache()
    state = program.run(backend=engine)
    assert "Paris" in state["answer"]
    assert state["kind"] in ("city", "river")
    assert len(state["fact"]) == 2
    assert [message["role"] for message in state.messages()][:2] == ["system", "user"], (
        "the model's own template begins with a default system message"
    )
    trunk = engine.generate(state.text(), {"max_new_tokens": 0})["meta_info"]["prompt_tokens"]
    assert min(state["cached"]) >= trunk - 1, "the branches found the trunk in the cache"


def test_a_stream_writes_what_a_plain_run_writes(engine):
    plain = program.run(backend=engine)
    stream = program.run(backend=engine, stream=True)
    assert "".join(stream.text_iter("answer")) == plain["answer"]
    assert stream.text() == plain.text()


def test_the_text_has_the_tokens_of_the_models_own_template(engine):
    """All but the last token come from the cache, so markup and BOS are those of a chat request."""

    @rl.function
    def half(s):
        s += rl.user("Hello there") + rl.assistant("Hi!") + rl.user("Bye") + rl.assistant_begin()

    state = half.run(backend=engine)
    chat = [message for message in state.messages() if message["role"] != "system"]
    engine.flush_cache()
    asked = engine.chat(chat, {"max_new_tokens": 0})["meta_info"]
    meta = engine.generate(state.text(), {"max_new_tokens": 0})["meta_info"]
    assert meta["prompt_tokens"] == asked["prompt_tokens"]
    assert meta["cached_tokens"] == asked["prompt_tokens"] - 1


def test_an_option_that_the_engine_refuses_is_the_cause(engine):
    @rl.function
    def refused(s):
        s += "x" + rl.gen("x", temperature=-1.0)

    with pytest.raises(rl.ProgramError, match="temperature") as caught:
        refused.run(backend=engine)["x"]
    assert caught.value.__cause__.param == "temperature"
