"""The engine as a real process around a core without a model: serving through the client.

Each test starts real processes; none of them loads torch.
"""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import pytest
import zmq

sys.path.insert(0, str(Path(__file__).parent))
from byte_tokenizer import byte_tokenizer
from engine_processes import (
    collect,
    find_fake_core,
    submit,
    supervised,
    until,
)
from waiting import is_alive

from ramify.srt.errors import InvalidRequest, QueueFull, Unavailable
from ramify.srt.messages import Finished, Rejected, Tokens, encode
from ramify.srt.replies import ReplyAssembler
from ramify.srt.transport import engine_address
from ramify.srt.workers.client import State

pytestmark = pytest.mark.usefixtures(find_fake_core.__name__)


def test_an_engine_starts_serves_and_stops():
    async def scenario():
        async with supervised() as supervisor:
            client = supervisor.client
            assert client.state is State.READY
            assert client.info.architecture == "FakeForCausalLM"
            answers = await collect(client, submit("a", 5))
            assert [m.token_ids for m in answers[:-1]] == [[6], [7], [8]]
            assert isinstance(answers[-1], Finished)
            assert 0 < supervisor.ready_s < 30
            assert supervisor.rss_bytes > 2**20
            assert os.getsid(supervisor.pid) == supervisor.pid, "Ctrl-C must not reach it"
            assert await client.flush() is True
            assert (await client.inspect()).violations == []
            folder, pid = supervisor._folder, supervisor.pid
            assert folder.exists()
        assert client.state is State.STOPPED
        assert not folder.exists()
        assert not is_alive(pid)
        with pytest.raises(Unavailable, match="shut down"):
            await collect(client, submit("b"))

    asyncio.run(scenario())


def test_many_requests_at_once_are_answered_each_exactly_once():
    async def scenario():
        async with supervised("reject_at=99") as supervisor:
            results = await asyncio.gather(
                *(
                    collect(supervisor.client, submit(f"r{i}", 99 if i % 10 == 0 else i, new=i % 7))
                    for i in range(300)
                )
            )
        for i, answers in enumerate(results):
            *tokens, last = answers
            assert isinstance(last, Rejected if i % 10 == 0 or i == 99 else Finished)
            assert all(isinstance(answer, Tokens) for answer in tokens)
            if isinstance(last, Finished):
                assert [m.token_ids for m in tokens] == [[i + k] for k in range(1, i % 7 + 1)]

    asyncio.run(scenario())


def test_an_id_in_use_is_refused_and_the_first_goes_on():
    async def scenario():
        async with supervised("step_s=0.01") as supervisor:
            first = asyncio.create_task(collect(supervisor.client, submit("x", new=20)))
            await until(lambda: supervisor.client.open_requests)
            with pytest.raises(InvalidRequest):
                await collect(supervisor.client, submit("x"))
            assert len(await first) == 21

    asyncio.run(scenario())


def test_leaving_a_request_early_aborts_it():
    async def scenario():
        async with supervised("step_s=0.005") as supervisor:
            client = supervisor.client
            async with aclosing(client.submit(submit("a", new=4000))) as answers:
                async for _ in answers:
                    break
            cancelled = asyncio.create_task(collect(client, submit("b", new=4000)))
            await until(lambda: client.open_requests)
            await asyncio.sleep(0.05)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            assert client.open_requests == []
            assert await client.flush() is True, "both have ended in the engine"

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_an_abort_ends_the_request_with_what_there_is():
    async def scenario():
        async with supervised("step_s=0.005") as supervisor:
            client = supervisor.client
            running = asyncio.create_task(collect(client, submit("a", new=4000)))
            await until(lambda: client.open_requests)
            assert await client.flush() is False
            assert await client.abort("a") is True
            assert (await running)[-1].reason == "abort"
            assert await client.abort("a") is False
            assert await client.abort("never") is False

    asyncio.run(scenario())


def test_a_stop_string_ends_the_request_in_the_engine():
    """The engine knows no strings: the frontend finds the stop and aborts."""

    async def scenario():
        async with supervised("step_s=0.005") as supervisor:
            client = supervisor.client
            message = submit("a", ord("a"), new=4000, stop=("ef",))
            made = ReplyAssembler(message, byte_tokenizer(), client.info, now=time.monotonic())
            await client.complete(made)
            assert made.reply()["text"] == "bcd"
            assert made.finish_reason == {"type": "stop", "matched": "ef"}
            assert made.finished.completion_tokens < 100
            made = ReplyAssembler(submit("b"), None, client.info, now=0.0)
            await client.complete(made)
            assert made.output_ids == [2, 3, 4]

    asyncio.run(scenario())


def test_a_rejection_is_an_error_for_who_follows():
    async def scenario():
        async with supervised("reject_at=5") as supervisor:
            made = ReplyAssembler(submit("a", 5), None, supervisor.client.info, now=0.0)
            with pytest.raises(QueueFull):
                await supervisor.client.complete(made)

    asyncio.run(scenario())


def test_a_caller_that_stops_reading_holds_up_no_other():
    async def scenario():
        async with supervised() as supervisor:
            client = supervisor.client
            async with aclosing(client.submit(submit("slow", new=4000))) as slow:
                await anext(slow)
                started = time.monotonic()
                for i in range(20):
                    assert len(await collect(client, submit(f"r{i}"))) == 4
                assert time.monotonic() - started < 5.0

    asyncio.run(scenario())


def test_garbage_on_the_socket_does_not_reach_the_engine():
    async def scenario():
        async with supervised() as supervisor:
            with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
                raw.setsockopt(zmq.LINGER, 0)
                raw.connect(engine_address(supervisor._folder))
                for frame in (b"", b"\x80\x04garbage", os.urandom(5000), encode([["Submit"]])):
                    raw.send(frame)
                raw.send_multipart([b"a", b"b", b"c"])
                raw.send(encode(submit("evil", 2**31)))
                assert await asyncio.to_thread(raw.poll, 5000), "a rejection"
            assert len(await collect(supervisor.client, submit("a"))) == 4
            assert supervisor.restarts == 0

    asyncio.run(scenario())


def test_no_torch_in_the_frontend_process():
    code = (
        "import sys, ramify.srt.launch, ramify.srt.workers.engine_process, ramify.srt.intake,"
        "ramify.srt.replies; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=30).returncode == 0
