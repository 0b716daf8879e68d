"""The engine as a real process around a core without a model: life, death and everything between.

Each test starts real processes; none of them loads torch.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

sys.path.insert(0, str(Path(__file__).parent))
from byte_tokenizer import byte_tokenizer

from ramify.srt import launch
from ramify.srt.config import EngineConfig
from ramify.srt.errors import InvalidRequest, ModelLoadError, QueueFull, RequestError, Unavailable
from ramify.srt.launch import EngineSupervisor
from ramify.srt.messages import Finished, Hello, Rejected, Submit, Tokens, encode, pack_ids
from ramify.srt.replies import ReplyAssembler
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.transport import engine_address, private_folder
from ramify.srt.workers.client import State
from ramify.srt.workers.engine_process import Job

CORE = "fake_core:make"
CRASH = 13  # the prompt token that ends the process, where the knob is set


@pytest.fixture(autouse=True)
def find_fake_core(monkeypatch):
    """The engine process runs with a safe path, so it must be told where the fake is."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@asynccontextmanager
async def supervised(knobs: str = ""):
    supervisor = EngineSupervisor(EngineConfig(model=f"fake:{knobs}"), core=CORE)
    await supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop(5.0)


def submit(request_id: str, *ids: int, new: int = 3, **sampling) -> Submit:
    params = SamplingParams(max_new_tokens=new, **sampling)
    return Submit(request_id, pack_ids(ids or (1,)), params)


async def collect(client, message: Submit) -> list:
    return [answer async for answer in client.submit(message)]


async def ends_with(client, message: Submit):
    """The last answer, or the error."""
    try:
        return (await collect(client, message))[-1]
    except RequestError as error:
        return error


async def until(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


# --- serving


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
        assert not alive(pid)
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


# --- dying


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
        assert not alive(pid)

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


def start_process(knobs: str = "") -> tuple[subprocess.Popen, zmq.Context, zmq.Socket]:
    """An engine process without a supervisor, and a connection that has seen its Ready."""
    address = engine_address(private_folder())
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "ramify.srt.workers.engine_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    job = Job(EngineConfig(model=f"fake:{knobs}"), address, CORE)
    process.stdin.write(msgspec.json.encode(job) + b"\n")
    process.stdin.flush()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(address)
    socket.send(encode(Hello()))
    assert socket.poll(20_000), "no Ready"
    socket.recv()
    return process, context, socket


@contextlib.contextmanager
def bare_process(knobs: str = ""):
    process, context, socket = start_process(knobs)
    try:
        yield process, socket
    finally:
        process.kill()
        process.communicate()
        socket.close()
        context.term()


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


def test_no_torch_in_the_frontend_process():
    code = (
        "import sys, ramify.srt.launch, ramify.srt.workers.engine_process, ramify.srt.intake,"
        "ramify.srt.replies; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=30).returncode == 0
