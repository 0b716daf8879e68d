"""`Engine` with the embedded model: text that makes sense, and the cache as a caller sees it."""

import asyncio
import subprocess
import sys

import pytest

from ramify.srt.config import EngineConfig
from ramify.srt.engine import Engine
from ramify.srt.launch import EngineSupervisor
from ramify.srt.messages import Submit, Tokens, pack_ids
from ramify.srt.sampling_params import SamplingParams

pytestmark = pytest.mark.model

# float32: in bfloat16 a cached prefix shifts the logits enough to sample another token.
OPTIONS = {"threads": 1, "max_total_tokens": 4096, "dtype": "float32"}
GREEDY = {"temperature": 0, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def shared():
    with Engine("smollm2", **OPTIONS) as engine:
        yield engine


@pytest.fixture
def engine(shared):
    """The engine with an empty cache."""
    assert shared.flush_cache()
    yield shared
    assert shared.server_info()["violations"] == []


def test_a_question_gets_its_answer(engine):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    reply = engine.chat(question, {"temperature": 0, "max_new_tokens": 32})
    assert "Paris" in reply["text"]
    assert "<|im_end|>" not in reply["text"]
    assert reply["meta_info"]["finish_reason"]["type"] == "stop"


def test_a_prompt_is_computed_once_until_the_cache_is_flushed(engine):
    ids = list(range(100, 150))
    cached = [
        engine.generate(input_ids=ids, sampling_params=GREEDY)["meta_info"]["cached_tokens"]
        for _ in range(2)
    ]
    assert cached == [0, 49], "all but the last token, whose logits are needed"
    assert engine.flush_cache()
    again = engine.generate(input_ids=ids, sampling_params=GREEDY)
    assert again["meta_info"]["cached_tokens"] == 0


def test_generated_tokens_are_found_by_the_next_turn(engine):
    """All but the last one, which was never fed through the model."""
    first = engine.generate("Once upon a time", GREEDY)
    turn = engine.get_tokenizer().encode("Once upon a time") + first["output_ids"]
    second = engine.generate(input_ids=[*turn, 30, 31], sampling_params=GREEDY)
    assert second["meta_info"]["cached_tokens"] >= len(turn) - 1


def test_namespaces_share_nothing(engine):
    ids = list(range(100, 150))
    for namespace in ("one", "two", ""):
        reply = engine.generate(input_ids=ids, sampling_params=GREEDY, namespace=namespace)
        assert reply["meta_info"]["cached_tokens"] == 0


def test_a_seed_makes_sampling_repeatable(engine):
    params = {"max_new_tokens": 12, "temperature": 1.0, "sampling_seed": 5}
    once, again = (engine.generate("The sky is", params)["output_ids"] for _ in range(2))
    other = engine.generate("The sky is", {**params, "sampling_seed": 6})["output_ids"]
    several = engine.generate("The sky is", {**params, "n": 3})
    assert once == again != other
    assert several[0]["output_ids"] == once
    assert len({tuple(reply["output_ids"]) for reply in several}) > 1


def test_a_stop_string_is_trimmed_and_the_stream_never_showed_it(engine):
    whole = engine.generate("The days of the week are Monday,", GREEDY)["text"]
    stop = whole.split()[1]
    texts = [
        reply["text"]
        for reply in engine.generate(
            "The days of the week are Monday,", {**GREEDY, "stop": [stop]}, stream=True
        )
    ]
    assert texts[-1] == whole[: whole.index(stop)]
    assert all(texts[-1].startswith(text) for text in texts)


def test_the_process_computes_what_the_thread_does(engine):
    ids = list(range(100, 130))
    expected = engine.generate(input_ids=ids, sampling_params=GREEDY)["output_ids"]

    async def scenario():
        supervisor = EngineSupervisor(EngineConfig(**OPTIONS))
        info = await supervisor.start()
        assert info.context_length <= 4096
        sampling = SamplingParams(temperature=0.0, max_new_tokens=8)
        answers = supervisor.client.submit(Submit("a", pack_ids(ids), sampling))
        made = [token async for m in answers if isinstance(m, Tokens) for token in m.token_ids]
        await supervisor.stop(5.0)
        return made

    assert asyncio.run(scenario()) == expected


def test_a_program_may_end_without_shutting_down():
    code = (
        "from ramify.srt.engine import Engine\n"
        "engine = Engine(threads=1, max_total_tokens=1024)\n"
        "stream = engine.generate('a', {'max_new_tokens': 500}, stream=True)\n"
        "next(stream)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], timeout=60, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
