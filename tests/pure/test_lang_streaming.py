"""Streams: the same pieces for threads and coroutines, ended by the program or by its error."""

import asyncio
import threading
import time

import pytest

import ramify.lang as rl
from ramify.lang.backends.scripted import ScriptedEngine
from ramify.lang.chunks import Chunk, Coalescer, increments, joined


@rl.function
def two_parts(s):
    s += "A:" + rl.gen("one")
    s += " B:" + rl.gen("two", return_logprob=True)


SCRIPT = {"A:": "x y", "B:": "p q r"}


def drain(stream):
    """All items of an async iterator."""

    async def collect():
        return [item async for item in stream]

    return asyncio.run(collect())


@pytest.mark.parametrize("use_thread", [True, False])
def test_a_stream_run_gives_text_and_variables_piece_by_piece(use_thread):
    state = two_parts.run(backend=ScriptedEngine(SCRIPT), stream=True, use_thread=use_thread)
    assert list(state.text_iter("two")) == ["p", " q", " r"], "asked for before it exists"
    assert list(state.text_iter()) == ["A:", "x", " y", " B:", "p", " q", " r"]
    assert list(state.text_iter("one")) == ["x", " y"], "a stream can be read again"
    assert state["two"] == "p q r"
    assert state.text() == "A:x y B:p q r"


def test_pieces_come_while_the_model_still_writes():
    gate = threading.Event()

    class Slow(ScriptedEngine):
        def _stream(self, reply):
            first, *rest = super()._stream(reply)
            yield first
            assert gate.wait(30)
            yield from rest

    state = two_parts.run(backend=Slow(SCRIPT), stream=True)
    pieces = state.text_iter("one")
    assert next(pieces) == "x", "the second token has not been written yet"
    assert "one" not in state
    gate.set()
    assert list(pieces) == [" y"]


def test_async_iterators_need_no_thread_of_their_own():
    async def main():
        states = [two_parts.run(backend=ScriptedEngine(SCRIPT), stream=True) for _ in range(30)]

        async def read(state):
            return "".join([piece async for piece in state.text_async_iter()])

        return await asyncio.gather(*(read(state) for state in states))

    assert asyncio.run(main()) == ["A:x y B:p q r"] * 30


def test_log_probabilities_come_with_the_text_they_belong_to():
    state = two_parts.run(backend=ScriptedEngine(SCRIPT), stream=True)
    pairs = drain(state.text_async_iter("two", return_meta_data=True))
    assert [text for text, _ in pairs] == ["p", " q", " r", ""]
    tokens = [[entry[2] for entry in meta["output_token_logprobs"]] for _, meta in pairs]
    assert tokens == [["p"], [" q"], [" r"], []], "increments, not all so far"
    assert pairs[-1][1]["finish_reason"]["type"] == "stop"
    whole = state.get_meta_info("two")["output_token_logprobs"]
    assert [entry[2] for entry in whole] == ["p", " q", " r"]


@pytest.mark.parametrize("cumulative", [True, False])
def test_both_ways_to_stream_log_probabilities_mean_the_same(cumulative):
    entries = [[-0.1, 1, "a"], [-0.2, 2, "b"], [-0.3, 3, "c"]]
    replies = [
        {"text": "a", "meta_info": {"completion_tokens": 1, "output_token_logprobs": entries[:1]}},
        {
            "text": "abc",
            "meta_info": {
                "completion_tokens": 3,
                "output_token_logprobs": entries if cumulative else entries[1:],
            },
        },
        {"text": "abc", "meta_info": {"completion_tokens": 3, "output_token_logprobs": entries}},
    ]
    chunks = list(increments(replies))
    assert [chunk.text for chunk in chunks] == ["a", "bc", ""]
    assert [len(chunk.meta["output_token_logprobs"]) for chunk in chunks] == [1, 2, 0]
    assert joined(chunks).meta["output_token_logprobs"] == entries


def test_chunks_without_text_are_merged_into_the_next_one():
    pieces = Coalescer()
    assert pieces.push(Chunk("", {"output_token_logprobs": [1]})) is None
    assert pieces.push(Chunk("é", {"output_token_logprobs": [2]})) == Chunk(
        "é", {"output_token_logprobs": [1, 2]}
    )
    assert pieces.finish() is None


def test_without_stream_the_text_comes_in_one_piece():
    state = two_parts.run(backend=ScriptedEngine(SCRIPT))
    assert list(state.text_iter()) == ["A:x y B:p q r"]
    assert list(state.text_iter("one")) == ["x y"]
    assert drain(state.text_async_iter()) == ["A:x y B:p q r"]
    assert drain(state.text_async_iter("one")) == ["x y"]


def test_selections_and_forks_have_their_place_in_a_stream():
    @rl.function
    def program(s):
        s += "Pick: " + rl.select("pick", ["a", "b"])
        forks = s.fork(2)
        forks += lambda i: f" {i}A:" + rl.gen("x")
        assert "".join(forks[1].text_iter()) == s.text() + " 1A:x y", "a branch has no live stream"
        forks.join("concate_and_append")

    state = program.run(backend=ScriptedEngine(SCRIPT), stream=True)
    assert list(state.text_iter("pick")) == [state["pick"]]
    assert "".join(state.text_iter()) == state.text()
    assert state.text().endswith(" 0A:x y 1A:x y")


def test_an_error_ends_every_stream_after_what_had_come():
    cause = RuntimeError("gone")
    state = two_parts.run(backend=ScriptedEngine({"A:": "x y", "B:": cause}), stream=True)
    seen = []
    with pytest.raises(rl.ProgramError) as caught:
        seen.extend(state.text_iter())
    assert caught.value.__cause__ is cause
    with pytest.raises(rl.ProgramError):
        drain(state.text_async_iter("two"))
    with pytest.raises(rl.ProgramError):
        drain(state.text_async_iter())


def test_an_exception_of_the_function_ends_the_streams_too():
    @rl.function
    def program(s):
        s += "before"
        raise KeyError("mine")

    state = program.run(backend=ScriptedEngine(), stream=True)
    with pytest.raises(rl.ProgramError, match="mine"):
        list(state.text_iter())
    with pytest.raises(rl.ProgramError, match="mine"):
        state["never"]
    assert isinstance(state.error(), KeyError)


def test_a_name_that_never_comes_is_unknown_when_the_program_ends():
    @rl.function
    def program(s):
        time.sleep(0.05)
        with pytest.raises(rl.UnknownVariable):
            s["not yet"]
        s["late"] = 1

    state = program.run(backend=ScriptedEngine(), stream=True)
    with pytest.raises(rl.UnknownVariable, match="typo"):
        list(state.text_iter("typo"))
    assert state["late"] == 1
    assert state.error() is None, "the program itself does not wait for names: it would for ever"


def test_reading_from_outside_waits_for_the_program():
    @rl.function
    def program(s):
        time.sleep(0.05)
        s += "late" + rl.gen("x")
        return 7

    state = program.run(backend=ScriptedEngine(), stream=True)
    assert state.text() == "lateok"
    state.sync()
    assert state.ret_value == 7
