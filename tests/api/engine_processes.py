"""Starts real engine processes around `fake_core`, for the tests of their life and death."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from ramify.srt.config import EngineConfig
from ramify.srt.errors import RequestError
from ramify.srt.launch import EngineSupervisor
from ramify.srt.messages import Hello, Submit, encode, pack_ids
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.transport import engine_address, private_folder
from ramify.srt.workers.engine_process import Job

CORE = "fake_core:make"


@pytest.fixture
def find_fake_core(monkeypatch):
    """The engine process runs with a safe path, so it must be told where the fake is."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@asynccontextmanager
async def supervised(knobs: str = "", **options):
    supervisor = EngineSupervisor(EngineConfig(model=f"fake:{knobs}", **options), core=CORE)
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


def start_process(folder: Path, knobs: str) -> tuple[subprocess.Popen, zmq.Context, zmq.Socket]:
    """An engine process without a supervisor, and a connection that has seen its Ready."""
    address = engine_address(folder)
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
    folder = private_folder()
    process, context, socket = start_process(folder, knobs)
    try:
        yield process, socket
    finally:
        process.kill()
        process.communicate()
        socket.close()
        context.term()
        shutil.rmtree(folder)
