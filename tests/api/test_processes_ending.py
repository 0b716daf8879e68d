"""How engine processes end: killed, crashed, stopped, orphaned. Every request is answered still."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from engine_processes import (
    CORE,
    bare_process,
    collect,
    ends_with,
    find_fake_core,
    submit,
    supervised,
    until,
)
from waiting import is_alive

from ramify.srt import launch
from ramify.srt.config import EngineConfig
from ramify.srt.errors import ModelLoadError, Unavailable
from ramify.srt.launch import EngineSupervisor
from ramify.srt.messages import encode
from ramify.srt.workers.client import State

pytestmark = pytest.mark.usefixtures(find_fake_core.__name__)

CRASH = 13  # the prompt token that ends the process, where the knob is set


def test_a_killed_engine_answers_at_once_and_comes_back():
    async def scenario():
        async with supervised("step_s=0.01") as supervisor:
            client, pid = supervisor.client, supervisor.pid
            running = [
                asyncio.create_task(ends_with(client, submit(f"r{i}", new=4000))) for i in range(5)
            ]
            asking = asyncio.create_task(client.inspect())
            await until(lambda: len(client.open_requests) == 5)
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            answers = await asyncio.gather(*running)
            assert time.monotonic() - killed < 1.0
            assert all(isinstance(answer, Unavailable) for answer in answers)
            assert "restarted" in answers[0].message
            await asyncio.wait([asking])
            with pytest.raises(Unavailable):
                await collect(client, submit("meanwhile"))
            await until(lambda: client.state is State.READY)
            assert supervisor.pid != pid
            assert supervisor.restarts == 1
            assert len(await collect(client, submit("r0"))) == 4, "the id is free again"

    asyncio.run(scenario())


def test_an_engine_that_hangs_is_killed_and_comes_back():
    async def scenario():
        async with supervised("step_s=0.01", watchdog_timeout_s=0.5) as supervisor:
            client, pid = supervisor.client, supervisor.pid
            running = asyncio.create_task(ends_with(client, submit("r", new=4000)))
            await asyncio.sleep(1.5)  # alive and busy: nothing happens to it
            assert supervisor.pid == pid
            assert not running.done()
            os.kill(pid, signal.SIGSTOP)
            assert isinstance(await asyncio.wait_for(running, 5), Unavailable)
            await until(lambda: client.state is State.READY)
            assert supervisor.pid != pid
            assert len(await collect(client, submit("r"))) == 4

    asyncio.run(scenario())


@pytest.mark.parametrize("knob", ["exit_at", "raise_at"])
def test_a_crash_in_a_step_takes_the_open_requests_and_no_more(knob):
    async def scenario():
        async with supervised(f"{knob}={CRASH}") as supervisor:
            client = supervisor.client
            assert isinstance(await ends_with(client, submit("bad", CRASH)), Unavailable)
            await until(lambda: client.state is State.READY)
            assert len(await collect(client, submit("good"))) == 4

    asyncio.run(scenario())


def test_an_engine_that_keeps_dying_is_given_up(monkeypatch):
    monkeypatch.setattr(launch, "MAX_QUICK_DEATHS", 2)

    async def scenario():
        async with supervised() as supervisor:
            for _ in range(2):
                await until(lambda: supervisor.client.state is State.READY)
                os.kill(supervisor.pid, signal.SIGKILL)
                await until(lambda: supervisor.client.state is not State.READY)
            await asyncio.wait_for(supervisor.gave_up.wait(), 10)
            assert "signal 9" in supervisor.failure
            with pytest.raises(Unavailable):
                await collect(supervisor.client, submit("a"))

    asyncio.run(scenario())


def test_an_unusable_model_is_told_in_the_engines_words():
    async def scenario():
        supervisor = EngineSupervisor(EngineConfig(model="fake:unusable=1"), core=CORE)
        with pytest.raises(ModelLoadError, match="ends in the middle of a tensor"):
            await supervisor.start()
        assert not supervisor._folder.exists()

    asyncio.run(scenario())


def test_a_bug_while_loading_is_told_and_never_hangs():
    async def scenario():
        supervisor = EngineSupervisor(EngineConfig(model="fake:unusable=2"), core=CORE)
        with pytest.raises(ModelLoadError, match="ended with status 1 while loading"):
            await supervisor.start()

    asyncio.run(scenario())


def test_a_start_that_is_cancelled_leaves_no_process():
    async def scenario():
        supervisor = EngineSupervisor(EngineConfig(model="fake:load_s=60"), core=CORE)
        starting = asyncio.create_task(supervisor.start())
        await until(lambda: supervisor.pid)
        pid = supervisor.pid
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not is_alive(pid)

    asyncio.run(scenario())


# --- stopping


def test_stopping_finishes_the_open_requests_and_takes_no_new_ones():
    async def scenario():
        async with supervised("step_s=0.01") as supervisor:
            client = supervisor.client
            running = asyncio.create_task(collect(client, submit("a", new=30)))
            await until(lambda: client.open_requests)
            stopping = asyncio.create_task(supervisor.stop(10.0))
            await until(lambda: client.state is State.DRAINING)
            with pytest.raises(Unavailable, match="shutting down"):
                await collect(client, submit("b"))
            assert (await running)[-1].reason == "length"
            assert await stopping is True

    asyncio.run(scenario())


def test_stopping_cuts_what_does_not_end_in_time():
    async def scenario():
        async with supervised("step_s=0.01") as supervisor:
            client = supervisor.client
            running = asyncio.create_task(ends_with(client, submit("a", new=4000)))
            await until(lambda: client.open_requests)
            assert await supervisor.stop(0.1) is False
            assert (await asyncio.wait_for(running, 5)).reason == "abort"

    asyncio.run(scenario())


def test_sigterm_ends_the_process_after_its_step_and_ctrl_c_does_not():
    with bare_process("step_s=0.2") as (process, socket):
        process.send_signal(signal.SIGINT)
        socket.send(encode(submit("a", new=4000)))
        assert socket.poll(5000), "it runs on after SIGINT"
        process.terminate()
        assert process.wait(5) == 0
        frames = []
        while socket.poll(500):
            frames.append(socket.recv())
        assert b"abort" in frames[-1], "the open request was answered"


def test_the_process_ends_when_its_parent_dies():
    with bare_process() as (process, _):
        process.stdin.close()
        process.stdin = None
        assert process.wait(5) == 0
