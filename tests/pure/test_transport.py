"""The wire: what arrives, what is dropped, and that no peer can hold up another."""

import asyncio
import logging
import os
import pickle
import stat
import threading
import time

import pytest
import zmq

from ramify.srt import transport
from ramify.srt.errors import InvalidRequest
from ramify.srt.messages import Abort, Flush, Flushed, Hello, Submit, encode
from ramify.srt.sampling_params import SamplingParams
from ramify.srt.transport import (
    EngineSocket,
    FrontendSocket,
    engine_address,
    local_pair,
    private_folder,
)


@pytest.fixture
def address():
    folder = private_folder()
    yield engine_address(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.fixture
def engine(address):
    socket = EngineSocket(address)
    yield socket
    socket.close()


@pytest.fixture
def raw(address, engine):
    """A peer that sends whatever it likes."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        yield socket


def receive(engine, count: int = 1) -> list:
    """The next `count` messages; fails when they do not come."""
    received = []
    deadline = time.monotonic() + 5.0
    while len(received) < count:
        assert time.monotonic() < deadline, received
        received += engine.receive(0.1)
    return received


def test_the_folder_is_private():
    folder = private_folder()
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    folder.rmdir()


def test_a_long_temporary_folder_is_not_used(tmp_path, monkeypatch):
    """A socket's path may have 107 characters; bind fails beyond."""
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    folder = private_folder()
    assert len(str(folder)) < 50
    folder.rmdir()


def test_messages_go_both_ways(address, engine):
    async def talk():
        frontend = FrontendSocket(address)
        await frontend.send(Hello())
        await frontend.send(Abort("r"))
        received = await asyncio.to_thread(receive, engine, 2)
        assert [message for _, message in received] == [Hello(), Abort("r")]
        assert engine.send(received[0][0], [Flushed(1, True), Flushed(2, False)])
        assert await frontend.receive() == [Flushed(1, True), Flushed(2, False)]
        frontend.close()

    asyncio.run(talk())


def test_answers_go_to_the_frontend_that_asked(address, engine):
    async def talk():
        frontends = [FrontendSocket(address) for _ in range(3)]
        for i, frontend in enumerate(frontends):
            await frontend.send(Flush(i))
        for identity, message in await asyncio.to_thread(receive, engine, 3):
            engine.send(identity, [Flushed(message.call_id, True)])
        for i, frontend in enumerate(frontends):
            assert await frontend.receive() == [Flushed(i, True)]
            frontend.close()

    asyncio.run(talk())


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xff\xfe garbage"],
        [pickle.dumps({"a": 1})],
        [encode([1, 2, 3])],
        [encode({"type": "Submit"})],
        [encode(["Submit", 5, b"", {}])],
        [encode(["Submit", "r", b"", {"temperature": "hot"}])],
        [encode(["Exec", "import os"])],
        [b"\x92\xa5Abort\xa2\xff\xff"],  # an id that is not UTF-8
        [b"\x91" * 100_000],  # deep nesting
        [encode(Abort("a")), encode(Abort("b"))],
        [b"", encode(Abort("a"))],
    ],
)
def test_garbage_is_logged_and_dropped(engine, raw, caplog, frames):
    with caplog.at_level(logging.WARNING):
        raw.send_multipart(frames)
        raw.send(encode(Hello()))
        assert [message for _, message in receive(engine)] == [Hello()]
    assert "dropped" in caplog.text


def test_an_oversized_frame_closes_its_connection_only(address, engine, raw):
    with zmq.Context() as context, context.socket(zmq.DEALER) as other:
        other.connect(address)
        raw.send(b"x" * (transport.MAX_FRAME_BYTES + 1))
        other.send(encode(Hello()))
        assert [message for _, message in receive(engine)] == [Hello()]
        assert engine.receive(0.2) == [], "the large frame never arrives"


def test_a_frontend_refuses_to_send_what_is_too_large(address, engine):
    async def talk():
        frontend = FrontendSocket(address)
        huge = Submit("r", b"\0" * (transport.MAX_FRAME_BYTES + 4), SamplingParams())
        with pytest.raises(InvalidRequest, match="bytes"):
            await frontend.send(huge)
        frontend.close()

    asyncio.run(talk())


def test_sending_to_a_frontend_that_is_gone_says_so(engine, raw):
    raw.send(encode(Hello()))
    [(identity, _)] = receive(engine)
    assert engine.send(identity, [Flushed(0, True)])
    raw.close()
    deadline = time.monotonic() + 5.0
    while engine.send(identity, [Flushed(0, True)]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not engine.send(b"never seen", [Flushed(0, True)])


def test_a_frontend_that_stops_reading_holds_up_nobody(address, monkeypatch):
    """Its backlog is bounded; beyond the bound it counts as gone."""
    monkeypatch.setattr(transport, "MAX_BACKLOG_FRAMES", 10)
    engine = EngineSocket(address)
    with zmq.Context() as context, context.socket(zmq.DEALER) as deaf:
        deaf.setsockopt(zmq.RCVHWM, 10)
        deaf.setsockopt(zmq.LINGER, 0)
        deaf.connect(address)
        deaf.send(encode(Hello()))
        [(identity, _)] = receive(engine)
        large = [Flushed(i, True) for i in range(10_000)]
        started = time.monotonic()
        sent = 0
        while engine.send(identity, large):
            sent += 1
            assert sent < 10_000, "sending never failed: the backlog has no bound"
        assert time.monotonic() - started < 5.0
    engine.close()


def test_receive_waits_no_longer_than_told(engine):
    started = time.monotonic()
    assert engine.receive(0.05) == []
    assert 0.04 < time.monotonic() - started < 1.0


# --- within one process


def test_a_local_pair_behaves_alike():
    delivered: list = []
    engine, send = local_pair(delivered.append)
    send(Hello())
    send(Abort("r"))
    received = engine.receive(1.0)
    assert [message for _, message in received] == [Hello(), Abort("r")]
    assert engine.send(received[0][0], [Flushed(1, True)])
    assert delivered == [[Flushed(1, True)]]
    assert not engine.send(b"other", [])
    assert engine.receive(0.0) == engine.receive(0.01) == []


def test_a_local_engine_wakes_at_once():
    engine, send = local_pair(lambda messages: None)
    threading.Timer(0.05, send, [Hello()]).start()
    started = time.monotonic()
    assert len(engine.receive(10.0)) == 1
    assert time.monotonic() - started < 5.0
