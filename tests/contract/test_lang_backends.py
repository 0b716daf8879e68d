"""One suite for every kind of backend: a program must not notice which one it runs on.

The HTTP kind speaks over a real socket to a small server that follows a script; the server says
`/generate` as a real one does, so the client's pool, streams and errors are exercised.
"""

import json
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import ramify.lang as rl
from ramify.lang.backends.http import RuntimeEndpoint, error_of, events
from ramify.lang.backends.local import EngineBackend
from ramify.lang.backends.resolve import as_backend
from ramify.lang.backends.scripted import ScriptedEngine
from ramify.lang.options import GenerateOptions

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REFUSED = ValueError("stop takes at most 32 strings")
SCRIPT = {"A:": "one two three", "fail": REFUSED, "cut": "cut off", "": "ok"}


class Handler(BaseHTTPRequestHandler):
    """The native routes of a server, over `server.engine`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do_GET(self):
        engine = self.server.engine
        self.server.heads.append(dict(self.headers))
        known = {"/model_info": engine.model_info, "/server_info": engine.server_info}
        self.answer(200, known[self.path]())

    def do_POST(self):
        self.server.clients.add(self.client_address)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        if self.path == "/flush_cache":
            done = self.server.engine.flush_cache() and not self.server.busy
            self.answer(200 if done else 400, {})
            return
        try:
            replies = self.server.engine.generate(body.pop("text", None), **body)
        except ValueError as error:
            body = {"message": str(error), "type": "x", "param": "stop", "code": "invalid_value"}
            self.answer(400, {"error": body})
            return
        self.stream(replies) if body.get("stream") else self.answer(200, replies)

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, replies):
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for reply in replies:
            self.wfile.write(f"data: {json.dumps(reply)}\n\n".encode())
            if reply["text"].startswith("cut"):
                return  # the server dies here
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture(scope="module")
def server():
    """A running server; its engine is exchanged by each test."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.heads, running.clients, running.busy = [], set(), False
        running.engine = ScriptedEngine(SCRIPT)
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def engine(server):
    server.engine = ScriptedEngine(
        SCRIPT, chat_template=CHATML, eos_token="<|im_end|>", model_path="m"
    )
    return server.engine


@pytest.fixture(params=["engine", "local", "http"])
def backend(request, server, engine):
    """Whatever `backend=` takes: an engine as it is, wrapped, or behind HTTP."""
    if request.param == "http":
        with RuntimeEndpoint(server.url) as endpoint:
            yield endpoint
    else:
        yield engine if request.param == "engine" else EngineBackend(engine)


@rl.function
def chat(s, question):
    s += rl.user(question)
    s += rl.assistant("A:" + rl.gen("answer", max_tokens=2))
    s += rl.user("Sure?") + rl.assistant(rl.select("sure", ["yes", "no"]))
    forks = s.fork(2)
    forks += lambda i: f" {i}A:" + rl.gen("more", n=2)
    forks.join()


def test_a_program_gives_the_same_everywhere(backend, engine):
    state = chat.run("Hm?", backend=backend)
    assert state["answer"] == "one two"
    assert state["sure"] in ("yes", "no")
    assert state["more"] == [["one two three"] * 2] * 2
    assert state.get_meta_info("answer")["finish_reason"] == {"type": "length", "length": 2}
    assert state.messages()[1] == {"role": "assistant", "content": "A:one two"}
    assert state.text().startswith("<|im_start|>user\nHm?<|im_end|>\n<|im_start|>assistant\nA:one")
    assert engine.requests[0]["sampling_params"]["stop"] == ["<|im_end|>"]


def test_a_stream_gives_the_same_everywhere(backend):
    state = chat.run("Hm?", backend=backend, stream=True)
    assert list(state.text_iter("answer")) == ["one", " two"]
    assert "".join(state.text_iter()) == state.text()


def test_stream_chunks_add_up_to_the_completion(backend):
    options = GenerateOptions(max_new_tokens=8, return_logprob=True)
    whole = as_backend(backend).generate("A:", options)[0]
    chunks = list(as_backend(backend).stream("A:", options))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    entries = [entry for chunk in chunks for entry in chunk.meta["output_token_logprobs"]]
    assert [tuple(entry) for entry in entries] == [
        tuple(entry) for entry in whole.meta["output_token_logprobs"]
    ]


def test_scores_are_the_same_everywhere(backend, engine):
    found = as_backend(backend).score("So it is", [" a", " b c"], unconditional=True)
    engine.flush_cache()
    expected = as_backend(engine).score("So it is", [" a", " b c"], unconditional=True)
    assert found == expected
    assert 0 < found.cached_tokens < found.prompt_tokens
    assert len(found.unconditional) == 2


def test_an_early_end_of_a_stream_leaves_the_backend_usable(backend):
    chosen = as_backend(backend)
    with closing(chosen.stream("A:", GenerateOptions(max_new_tokens=8))) as chunks:
        assert next(chunks).text == "one"
    assert chosen.generate("A:", GenerateOptions(max_new_tokens=1))[0].text == "one"


def test_the_error_of_a_generation_is_the_cause_at_the_read(backend):
    @rl.function
    def program(s):
        s += "fail" + rl.gen("x")

    for stream in (False, True):
        state = program.run(backend=backend, stream=stream)
        with pytest.raises(rl.ProgramError, match="at most 32 strings") as caught:
            state["x"]
        assert isinstance(caught.value.__cause__, ValueError | rl.BackendError)


def test_cache_information_and_the_default_backend(backend, engine):
    rl.set_default_backend(backend)
    try:
        chat.run_batch([("a",), ("b",)])
        assert rl.get_server_info() == {"requests": len(engine.requests)}
        assert rl.flush_cache() is True
        state = chat.run("c")
        assert state.get_meta_info("answer")["cached_tokens"] == 0
    finally:
        rl.set_default_backend(None)


# --- what only exists over HTTP ---


def test_one_pool_of_connections_serves_many_threads(server, engine):
    server.clients.clear()
    with RuntimeEndpoint(server.url, api_key="secret") as endpoint:
        assert server.heads[-1]["Authorization"] == "Bearer secret"
        states = chat.run_batch([(f"{i}",) for i in range(60)], backend=endpoint, num_threads=8)
        assert [state["answer"] for state in states] == ["one two"] * 60
    assert len(server.clients) < 60, "connections are used again: there were hundreds of requests"


def test_errors_carry_the_message_the_field_and_the_code(server, engine):
    with RuntimeEndpoint(server.url) as endpoint, pytest.raises(rl.BackendError) as caught:
        endpoint.generate("fail", GenerateOptions())
    error = caught.value
    assert (error.message, error.param, error.code, error.status) == (
        str(REFUSED),
        "stop",
        "invalid_value",
        400,
    )
    assert error_of(502, "<html>bad gateway</html>").message.startswith("the server answered 502")
    assert error_of(500, '{"error": "text"}').status == 500


def test_a_busy_server_does_not_flush(server, engine):
    with RuntimeEndpoint(server.url) as endpoint:
        server.busy = True
        try:
            assert endpoint.flush_cache() is False
        finally:
            server.busy = False


def test_a_server_that_is_not_there_is_an_error_at_once():
    with pytest.raises(rl.BackendError, match=r"no answer from http://127\.0\.0\.1:9/model_info"):
        RuntimeEndpoint("http://127.0.0.1:9")


def test_a_stream_that_is_cut_off_is_an_error_and_not_a_short_text(server, engine):
    @rl.function
    def program(s):
        s += "cut" + rl.gen("x")

    with RuntimeEndpoint(server.url) as endpoint:
        state = program.run(backend=endpoint, stream=True)
        with pytest.raises(rl.ProgramError, match="went away"):
            state["x"]


def test_events_tolerate_comments_and_raise_error_events():
    lines = [": ping", "", "event: x", 'data:{"text": "a"}', 'data: {"text": "ab"}']
    assert list(events(iter([*lines, "data: [DONE]"]))) == [{"text": "a"}, {"text": "ab"}]
    with pytest.raises(rl.BackendError, match="went away"):
        list(events(iter(lines)))
    bad = 'data: {"error": {"message": "lost", "code": "engine_lost"}}'
    with pytest.raises(rl.BackendError, match="lost") as caught:
        list(events(iter([*lines, bad])))
    assert caught.value.code == "engine_lost"
