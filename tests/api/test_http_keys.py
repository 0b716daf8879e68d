"""API keys: who may ask what, whose a request is, and that nothing tells a key."""

import io
import json
import logging
import socket
import sys
import threading
from pathlib import Path

import httpx
import openai
import pytest

from ramify.frontend_api import cli
from ramify.frontend_api.auth import OPEN_PATHS
from ramify.frontend_api.keys import ENVIRONMENT, MAX_KEYS, Keys, load_keys
from ramify.lang.backends.http import RuntimeEndpoint
from ramify.lang.errors import BackendError
from ramify.srt.config import ServeConfig
from ramify.srt.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from prometheus import read
from waiting import wait_until

ALICE, BOB = "alice-0123456789abcdef", "bob-/+=~!0123456789"
LONG = {"text": "a", "sampling_params": {"max_new_tokens": 4000}}

# --- which keys are taken ------------------------------------------------------------------------


@pytest.fixture
def keys_file(tmp_path):
    def write(text, mode=0o600):
        path = tmp_path / "keys"
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return str(path)

    return write


def load(environ=None, **options):
    return load_keys(ServeConfig(**options), environ or {})


def test_without_keys_everybody_may_come():
    assert load() is None
    assert load({ENVIRONMENT: ""}) is None


def test_each_key_has_its_account(keys_file):
    path = keys_file(f"# who may come\n\nalice:{ALICE}\n  bob : {BOB}  \n")
    keys = load(api_keys_file=path, api_key="0123456789abcdef")
    assert keys.account(ALICE.encode()) == "alice"
    assert keys.account(BOB.encode()) == "bob"
    assert keys.account(b"0123456789abcdef") == "default"
    for wrong in (b"", b"alice", ALICE.encode() + b" ", ALICE.encode()[:-1], b"\xff" * 20):
        assert keys.account(wrong) is None


def test_the_option_wins_over_the_environment():
    environ = {ENVIRONMENT: ALICE}
    assert load(environ).account(ALICE.encode()) == "default"
    assert load(environ, api_key=BOB).account(BOB.encode()) == "default"
    assert load(environ, api_key=BOB).account(ALICE.encode()) is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (f"alice:{ALICE}\n\nbob:short-secret", "line 3: a key has 16"),
        (f"alice:{ALICE}\nbob:{BOB} {BOB}", "line 2: a key has 16"),
        ("alice:0123456789-sécret", "line 1: a key has 16"),
        (f"al ice:{ALICE}", "line 1: a name has 1 to 64"),
        (f"{'a' * 65}:{ALICE}", "line 1: a name has 1 to 64"),
        (f":{ALICE}", "line 1: a name has 1 to 64"),
        (ALICE, "line 1: a key has 16"),
        (f"alice:{ALICE}\nalice:{BOB}", "line 2: the name has a key"),
        (f"alice:{ALICE}\nbob:{ALICE}", "line 2: the key is there already"),
        ("# nobody\n", "no keys in it"),
        ("", "no keys in it"),
        ("".join(f"a{i}:{i:016}\n" for i in range(MAX_KEYS + 1)), f"line {MAX_KEYS + 1}: there"),
    ],
)
def test_a_wrong_line_is_named_and_its_key_is_not(keys_file, text, wrong):
    with pytest.raises(ConfigError, match=wrong) as caught:
        load(api_keys_file=keys_file(text))
    for secret in (ALICE, BOB, "secret", "sécret"):
        assert secret not in str(caught.value)


def test_what_else_cannot_be_used_is_named(tmp_path, keys_file):
    with pytest.raises(ConfigError, match=r"api_keys_file .*No such file"):
        load(api_keys_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="api_key: a key has 16"):
        load(api_key="secret")
    with pytest.raises(ConfigError, match=f"{ENVIRONMENT}: a key has 16"):
        load({ENVIRONMENT: "secret"})
    with pytest.raises(ConfigError, match="line 1: the name has a key"):
        load(api_keys_file=keys_file(f"default:{ALICE}"), api_key=BOB)


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_may_read_is_warned_of(keys_file, caplog, mode, warns):
    with caplog.at_level(logging.WARNING):
        load(api_keys_file=keys_file(f"alice:{ALICE}", mode))
    assert ("others may read it" in caplog.text) == warns
    assert ALICE not in caplog.text


def test_keys_are_kept_as_digests_only():
    keys = Keys()
    keys.add("here", "alice", ALICE)
    assert ALICE not in repr(vars(keys))


@pytest.mark.parametrize("key", [None, ALICE])
def test_only_an_open_server_is_warned_of(key, caplog, monkeypatch, capsys):
    """The address is of nobody's machine, so starting ends there."""
    monkeypatch.setenv(ENVIRONMENT, key or "")
    with caplog.at_level(logging.WARNING):
        assert cli.main(["serve", "--host", "192.0.2.1"]) == 1
    assert ("requests need no key: see --api-keys-file" in caplog.text) == (key is None)
    assert ALICE not in caplog.text + "".join(capsys.readouterr())


def test_a_server_does_not_start_without_the_keys_it_was_promised(capsys):
    assert cli.main(["serve", "--api-keys-file", "/nowhere/keys"]) == 2
    assert "api_keys_file /nowhere/keys: No such file" in capsys.readouterr().err


# --- the server ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(tokenizer_folder, tmp_path_factory):
    """A server of its own process, with two keys."""
    from running_server import RunningServer

    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    path.chmod(0o600)
    running = RunningServer(
        tokenizer_folder, "fake:step_s=0.002", f"api_keys_file={json.dumps(str(path))}"
    )
    yield running
    assert running.stop() == 0


@pytest.fixture
def ask(keyed):
    """ask(key, method, path, json=...): the response."""
    with httpx.Client(base_url=keyed.url, timeout=30) as client:

        def send(key, method, path, **more):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            return client.request(method, path, headers=headers, **more)

        yield send


def routes():
    """Every route of the application with each of its methods, and some that do not exist."""
    from ramify.frontend_api import routes_cache, routes_native, routes_openai

    found = [("GET", "/"), ("GET", "/docs"), ("POST", "/health/"), ("OPTIONS", "/generate")]
    for module in (routes_cache, routes_native, routes_openai):
        for route in module.router.routes:
            path = route.path.replace("{name:path}", "fake")
            found += [(method, path) for method in sorted(route.methods)]
    return found


@pytest.mark.parametrize(("method", "path"), routes())
def test_no_route_but_those_of_health_answers_without_a_key(ask, method, path):
    for key in (None, "wrong-0123456789abcdef", ALICE[:-1], f"{ALICE} {BOB}"):
        answer = ask(key, method, path)
        if path in OPEN_PATHS:
            assert answer.status_code == 200
            continue
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    for key in (ALICE, BOB):
        assert ask(key, method, path).status_code != 401


def test_the_forms_in_which_a_key_is_sent(keyed):
    def status(*values):
        headers = [("Authorization", value) for value in values]
        return httpx.get(f"{keyed.url}/v1/models", headers=headers).status_code

    assert status(f"Bearer {ALICE}") == status(f"bearer {ALICE}") == 200
    assert status(f"Basic {ALICE}") == status(ALICE) == status(f"Bearer{ALICE}") == 401
    assert status(f"Bearer {ALICE}", f"Bearer {BOB}") == 401, "whose would it be?"


def test_a_key_is_asked_for_before_the_body(ask, keyed):
    """Neither its length nor what is in it matters, nor is it waited for."""
    assert ask(None, "POST", "/generate", content=b"x" * 40_000_000).status_code == 401
    assert ask(ALICE, "POST", "/generate", content=b"x" * 40_000_000).status_code == 413
    host, port = keyed.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        assert sock.recv(100).startswith(b"HTTP/1.1 401 ")


def test_openai_s_client_with_the_right_key_and_with_a_wrong_one(keyed):
    def client(key):
        return openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=key, max_retries=0)

    with client(ALICE) as right:
        made = right.completions.create(model="fake", prompt="abc", max_tokens=4)
        assert made.choices[0].text == "defg"
    with client("sk-none") as wrong, pytest.raises(openai.AuthenticationError) as caught:
        wrong.completions.create(model="fake", prompt="abc")
    assert caught.value.code == "invalid_api_key"
    assert "sk-none" not in str(caught.value)


def test_the_language_s_client_sends_its_key(keyed):
    with RuntimeEndpoint(keyed.url, api_key=ALICE) as backend:
        assert backend.model_info["model_path"]
    with pytest.raises(BackendError, match="valid key") as caught:
        RuntimeEndpoint(keyed.url, api_key="wrong")
    assert caught.value.status == 401


def test_the_chat_sends_the_key_of_the_environment(keyed, monkeypatch, capsys):
    def chat(*lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        return cli.main(["chat", keyed.url, "--max-new-tokens", "4"])

    monkeypatch.setenv(ENVIRONMENT, BOB)
    assert chat("abc") == 0
    assert "?@AB" in capsys.readouterr().out
    monkeypatch.delenv(ENVIRONMENT)
    assert chat("abc") == 1
    assert f"takes no such key: set {ENVIRONMENT}" in capsys.readouterr().err


def test_nothing_tells_a_key(ask, start_server):
    answers = [ask(ALICE, "GET", path).text for path in ("/server_info", "/metrics", "/model_info")]
    single = start_server("fake:", f"api_key={json.dumps(ALICE)}")
    headers = {"Authorization": f"Bearer {ALICE}"}
    answers.append(single.client.get("/server_info", headers=headers).raise_for_status().text)
    for text in answers:
        assert ALICE not in text
        assert BOB not in text


def test_refusals_are_counted(ask):
    def refused():
        page = read(ask(ALICE, "GET", "/metrics").text)
        return page["ramify:request_errors_total", (("kind", "unauthorized"),)]

    before = refused()
    ask("wrong", "GET", "/nothing")
    ask(None, "POST", "/generate", json=LONG)
    assert refused() == before + 2


# --- whose a request is --------------------------------------------------------------------------


class Running:
    """A long request of `key` on a thread; gone at the end of the block."""

    def __init__(self, ask, key, **more):
        self._send = lambda: ask(key, "POST", "/generate", json=LONG | more)
        self._thread = threading.Thread(target=self._run)
        self.response = None

    def _run(self):
        self.response = self._send()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join(20)


def running(ask):
    return ask(ALICE, "GET", "/server_info").json()["stats"]["running"]


def abort(ask, key, **body):
    return ask(key, "POST", "/abort_request", json=body).json()["aborted"]


@pytest.mark.parametrize("wanted", [{"rid": "mine"}, {"abort_all": True}])
def test_nobody_ends_the_requests_of_another(ask, wanted):
    with Running(ask, ALICE, rid="mine") as alice:
        wait_until(lambda: running(ask) == 1)
        assert abort(ask, BOB, **wanted) == 0
        assert running(ask) == 1
        assert abort(ask, ALICE, **wanted) == 1
    assert alice.response.json()["meta_info"]["finish_reason"]["type"] == "abort"


def test_a_rid_of_one_account_says_nothing_to_another(ask):
    with Running(ask, ALICE, rid="mine"):
        wait_until(lambda: running(ask) == 1)
        short = {"text": "a", "rid": "mine", "sampling_params": {"max_new_tokens": 1}}
        assert ask(ALICE, "POST", "/generate", json=short).json()["error"]["code"] == "rid_in_use"
        other = ask(BOB, "POST", "/generate", json=short)
        assert (other.status_code, other.json()["meta_info"]["id"]) == (200, "mine")
        assert abort(ask, ALICE, rid="mine") == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": "abc", "sampling_params": {"max_new_tokens": 1}}),
        ("/generate", {"text": "abc", "sampling_params": {"beam_width": 2, "max_new_tokens": 2}}),
        ("/v1/completions", {"model": "fake", "prompt": "abc", "max_tokens": 1}),
        ("/v1/chat/completions", {"model": "fake", "messages": [], "max_tokens": 1}),
    ],
)
def test_the_engine_learns_whose_each_request_is(ask, path, body):
    """The fake engine tells for which accounts it worked; a body cannot name one."""
    if "messages" in body:
        body = body | {"messages": [{"role": "user", "content": "x"}]}
    ask(ALICE, "GET", "/server_info")  # what other tests did is told by now
    for key, account in ((ALICE, "alice"), (BOB, "bob")):
        ask(key, "POST", path, json=body).raise_for_status()
        assert ask(key, "GET", "/server_info").json()["violations"] == [account]
    refused = ask(ALICE, "POST", path, json=body | {"account": "bob"})
    assert refused.json()["error"]["code"] == "unknown_parameter"
