"""`Engine` around a core without a model: the calls, from threads and asyncio, and the ways out."""

import asyncio
import gc
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from byte_tokenizer import EOS, byte_tokenizer
from fake_core import FakeCore, Knobs

from ramify.srt.config import EngineConfig
from ramify.srt.engine import Engine
from ramify.srt.errors import InvalidRequest, QueueFull, Unavailable

SHORT = {"max_new_tokens": 3}
LONG = {"max_new_tokens": 4000}


def engine(**knobs) -> Engine:
    return Engine.over(FakeCore(Knobs(**knobs)), byte_tokenizer(), EngineConfig(seed=1))


@pytest.fixture
def slow():
    with engine(step_s=0.002, reject_at=99) as made:
        yield made


# --- shapes of a call


def test_a_text_gives_one_reply():
    with engine() as made:
        reply = made.generate("a", SHORT)
        assert (reply["text"], reply["output_ids"]) == ("bcd", list(b"bcd"))
        assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 3}
        assert reply["meta_info"]["e2e_latency"] > 0


def test_lists_and_several_sequences_give_lists():
    with engine() as made:
        both = made.generate(["a", "k"], [SHORT, {"max_new_tokens": 1}])
        assert [reply["text"] for reply in both] == ["bcd", "l"]
        assert [reply["text"] for reply in made.generate(["a"], SHORT)] == ["bcd"]
        two = made.generate("a", {"n": 2, **SHORT}, rid="r")
        assert [reply["meta_info"]["id"] for reply in two] == ["r", "r_1"]
        by_ids = made.generate(input_ids=[[1], [2]], sampling_params={"max_new_tokens": 1})
        assert [reply["output_ids"] for reply in by_ids] == [[2], [3]]


def test_nothing_to_generate_is_a_reply_too():
    with engine() as made:
        assert made.generate("a", {"max_new_tokens": 0})["output_ids"] == []


def test_logprobs_come_when_asked_for():
    with engine() as made:
        meta = made.generate("a", SHORT, return_logprob=True, top_logprobs_num=1)["meta_info"]
        assert meta["output_token_logprobs"][0] == [-0.5, ord("b"), None]
        assert meta["output_top_logprobs"][0] == [[-0.5, ord("b"), None]]


def test_a_stream_gives_cumulative_text():
    with engine() as made:
        texts = [reply["text"] for reply in made.generate("a", SHORT, stream=True)]
        assert texts == ["b", "bc", "bcd", "bcd"]
        replies = list(made.generate(["a", "k"], SHORT, stream=True))
        last = {reply["index"]: reply for reply in replies}
        assert [last[i]["text"] for i in range(2)] == ["bcd", "lmn"]
        assert last[0]["meta_info"]["finish_reason"]["type"] == "length"


def test_a_stop_string_ends_the_request_early(slow):
    reply = slow.generate("a", {**LONG, "stop": "ef"})
    assert reply["text"] == "bcd"
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": "ef"}


def test_an_end_token_ends_the_request():
    with engine(eos_after=2) as made:
        reply = made.generate("a", SHORT)
        assert (reply["text"], reply["output_ids"]) == ("b", [ord("b"), EOS])
        assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": EOS}


def test_a_conversation_goes_through_the_chat_template():
    with engine() as made:
        reply = made.chat([{"role": "user", "content": "hello"}], SHORT)
        assert reply["text"] == "pqr"
        assert reply["meta_info"]["prompt_tokens"] == 5


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"prompt": ""}, "text"),
        ({}, "text"),
        ({"prompt": "a", "sampling_params": {"heat": 1}}, "heat"),
        ({"prompt": "a", "stream": True, "sampling_params": {"top_p": 5}}, "top_p"),
        ({"prompt": "a", "max_new_tokens": 5}, "max_new_tokens"),
        ({"input_ids": [1, -1]}, "input_ids"),
        ({"prompt": "a", "rid": ""}, "rid"),
        ({"prompt": ["a", "b"], "rid": ["x", "x"]}, "rid"),
    ],
)
def test_a_bad_call_is_refused_before_anything_runs(slow, arguments, param):
    with pytest.raises(InvalidRequest) as caught:
        slow.generate(**arguments)
    assert caught.value.param == param
    assert slow.server_info()["stats"]["running"] == 0


def test_a_rejection_of_one_prompt_ends_the_whole_call(slow):
    with pytest.raises(QueueFull):
        slow.generate(input_ids=[[1], [99]], sampling_params=LONG)
    assert slow.flush_cache(), "the other prompt was aborted"


def test_without_a_chat_template_chat_is_refused():
    with Engine.over(FakeCore()) as made, pytest.raises(InvalidRequest, match="chat template"):
        made.chat([{"role": "user", "content": "hello"}])


# --- many callers


def test_threads_do_not_mix_up_their_replies():
    with engine() as made, ThreadPoolExecutor(16) as pool:
        ids = list(range(200))
        replies = pool.map(lambda i: made.generate(input_ids=[i], sampling_params=SHORT), ids)
        assert [reply["output_ids"] for reply in replies] == [[i + 1, i + 2, i + 3] for i in ids]


def test_asyncio_callers_share_the_engine():
    async def scenario(made):
        replies = await asyncio.gather(
            *(made.async_generate(input_ids=[i], sampling_params=SHORT) for i in range(50))
        )
        assert [reply["output_ids"][0] for reply in replies] == list(range(1, 51))
        stream = await made.async_generate("a", SHORT, stream=True)
        assert [reply["text"] async for reply in stream] == ["b", "bc", "bcd", "bcd"]

    with engine() as made:
        asyncio.run(scenario(made))


# --- leaving early


def test_a_stream_that_is_left_is_aborted(slow):
    with closing(slow.generate("a", LONG, stream=True)) as stream:
        next(stream)
    assert slow.flush_cache()


def test_an_asyncio_caller_that_is_cancelled_is_aborted(slow):
    async def scenario():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow.async_generate("a", LONG), 0.1)
        async with aclosing(await slow.async_generate("a", LONG, stream=True)) as stream:
            await anext(stream)

    asyncio.run(scenario())
    assert slow.flush_cache()


def test_a_loop_that_is_closed_does_not_hurt_the_engine(slow):
    """Its answers have nowhere to go; the engine must not fail for that."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(slow.async_generate("a", {"max_new_tokens": 100}))
    loop.run_until_complete(asyncio.sleep(0.05))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert slow.generate("a", SHORT)["text"] == "bcd"


def test_abort_by_id_gives_what_there_is(slow):
    threading.Timer(0.1, slow.abort, ["mine"]).start()
    reply = slow.generate("a", LONG, rid="mine")
    assert reply["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < len(reply["output_ids"]) < 4000


def test_an_id_in_use_is_refused(slow):
    with closing(slow.generate("a", LONG, stream=True, rid="mine")) as stream:
        next(stream)
        with pytest.raises(InvalidRequest, match="in use"):
            slow.generate("a", SHORT, rid="mine")
        assert next(stream)["text"], "the first goes on"


# --- the engine itself


def test_what_the_engine_says_of_itself():
    with engine() as made:
        info = made.model_info()
        assert info["architecture"] == "FakeForCausalLM"
        assert info["is_generation"] is True
        assert made.get_tokenizer() is not None
        server = made.server_info()
        assert (server["seed"], server["violations"]) == (1, [])
        assert made.flush_cache() is True


def test_an_error_in_the_loop_reaches_every_caller_and_later_calls_fail():
    with engine(step_s=0.01, raise_at=13) as made, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(made.generate, "a", LONG) for _ in range(3)]
        time.sleep(0.1)
        with pytest.raises(Unavailable, match="RuntimeError: the fake was told to fail"):
            made.generate(input_ids=[13])
        for future in waiting:
            with pytest.raises(Unavailable, match="told to fail"):
                future.result(5)
        with pytest.raises(Unavailable, match="told to fail"):
            made.generate("a")
        with pytest.raises(Unavailable, match="told to fail"):
            made.flush_cache()


def test_shutdown_ends_open_calls_and_refuses_new_ones():
    made = engine(step_s=0.01)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(made.generate, "a", LONG)
        time.sleep(0.1)
        made.shutdown()
        made.shutdown()
        assert waiting.result(5)["meta_info"]["finish_reason"]["type"] == "abort"
    with pytest.raises(Unavailable, match="shut down"):
        made.generate("a")


def test_a_forgotten_engine_ends_its_thread():
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    made = engine()
    (thread,) = set(threading.enumerate()) - before
    del made
    gc.collect()
    assert not thread.is_alive()
