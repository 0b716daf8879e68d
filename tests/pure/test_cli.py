"""The command line: options made from the config classes, one-line errors, exit codes."""

import argparse
import dataclasses
import io
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ramify.frontend_api import cli, serve
from ramify.frontend_api.commands import chat
from ramify.frontend_api.options import sampling_given, take
from ramify.srt.config import EngineConfig, ServeConfig
from ramify.srt.errors import ConfigError, InvalidRequest

RAMIFY = Path(sys.executable).parent / "ramify"


def parse(*argv):
    return cli.build_parser().parse_args(argv)


def run(*argv, stdin=""):
    return subprocess.run(
        [str(RAMIFY), *argv], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def test_every_option_of_the_config_is_a_flag(capsys):
    with pytest.raises(SystemExit):
        parse("serve", "--help")
    shown = capsys.readouterr().out
    for config in (EngineConfig, ServeConfig):
        for item in dataclasses.fields(config):
            if item.name != "model":
                assert f"--{item.name.replace('_', '-')}" in shown


def test_what_is_not_given_keeps_its_default():
    assert take(EngineConfig, parse("serve")) == EngineConfig()
    assert take(ServeConfig, parse("serve")) == ServeConfig()


def test_options_have_the_types_of_their_fields():
    parsed = parse(
        *("serve", "folder", "--context-length", "128", "--kv-cache-gb", "0.5"),
        *("--disable-radix-cache", "--dtype", "float32", "--port", "0", "--max-body-mb", "2"),
    )
    assert take(EngineConfig, parsed) == EngineConfig(
        model="folder",
        context_length=128,
        kv_cache_gb=0.5,
        disable_radix_cache=True,
        dtype="float32",
    )
    assert take(ServeConfig, parsed) == ServeConfig(port=0, max_body_mb=2.0)


def test_sampling_options_are_those_of_sampling_params():
    parsed = parse(
        *("generate", "m", "p", "--max-new-tokens", "5", "--stop", "a", "b", "--temperature", "0"),
        *("--no-skip-special-tokens", "--logit-bias", '{"7": -1.5}', "--stop-token-ids", "1", "2"),
    )
    assert sampling_given(parsed) == {
        "max_new_tokens": 5,
        "stop": ("a", "b"),
        "temperature": 0.0,
        "skip_special_tokens": False,
        "logit_bias": {7: -1.5},
        "stop_token_ids": (1, 2),
    }


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "COMMAND"),
        (["fly"], "fly"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--dtype", "int3"], "--dtype"),
        (["generate", "m"], "prompt"),
        (["generate", "m", "p", "--logit-bias", "x"], "--logit-bias"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(argv, word, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert word in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["serve", "--port", "70000"], "port"),
        (["serve", "--max-batch", "0"], "max_batch"),
        (["serve", "--drain-timeout-s", "-1"], "drain_timeout_s"),
        (["serve", "--max-body-mb", "nan"], "max_body_mb"),
        (["serve", "--page-size", "0"], "page_size"),
        (["generate", "m", "p", "--kv-cache-gb", "0"], "kv_cache_gb"),
        (["chat", "http://127.0.0.1:1", "--dtype", "float32"], "dtype"),
        (["chat", "http://127.0.0.1:1", "--n", "2"], "n must be 1"),
    ],
)
def test_options_that_cannot_work_are_exit_code_2(argv, word, capsys):
    assert cli.main(argv) == 2
    assert word in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_line_and_exit_code_1():
    done = run("serve", "/nowhere/at/all", "--port", "0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("ramify: '/nowhere/at/all' is not a model")
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_found_before_the_model_loads():
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = ServeConfig(port=other.getsockname()[1])
        with pytest.raises(Exception, match="cannot listen"), serve.bound(config):
            pass


def test_a_server_that_is_not_there_is_exit_code_1(capsys):
    assert cli.main(["chat", "http://127.0.0.1:9"]) == 1
    assert "not an OpenAI server" in capsys.readouterr().err


def test_version_and_models(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path))
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "smollm2" in shown
    assert "ORG/NAME" in shown
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("ramify 0.")


def test_help_is_fast_and_the_frontend_loads_no_torch():
    """Whoever types --help, and every frontend process, must not wait for torch."""
    started = time.perf_counter()
    assert run("--help").returncode == 0
    assert time.perf_counter() - started < 2.0  # under 0.1 s alone; CI machines are slow
    script = (
        "import sys, ramify.frontend_api.app, ramify.frontend_api.serve; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False).returncode == 0


# --- the conversation ---


class Echo:
    """Answers with the number of messages; refuses the word "bad"."""

    def __init__(self):
        self.counts = (1, 2, 3)

    def answer(self, messages):
        if messages[-1]["content"] == "bad":
            raise InvalidRequest("no such words")
        yield "I have "
        yield f"{len(messages)} messages"


def converse(monkeypatch, capsys, text, system=None):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    chat.converse(Echo(), system)
    return capsys.readouterr()


def test_a_conversation_grows_and_can_be_forgotten(monkeypatch, capsys):
    said = converse(monkeypatch, capsys, "a\n\nb\n/reset\nc\n/exit\nd\n", "be kind").out
    counts = [line[7] for line in said.splitlines() if line.startswith("I have")]
    assert counts == ["2", "4", "2"]
    assert "[1 tokens reused, 2 computed, 3 generated]" in said


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(monkeypatch, capsys):
    said = converse(monkeypatch, capsys, "a\nbad\nb\n")
    assert "no such words" in said.err
    assert "I have 3 messages" in said.out


def test_an_unknown_command_shows_the_known_ones(monkeypatch, capsys):
    assert "/reset" in converse(monkeypatch, capsys, "/help\n").out


def test_engine_options_are_refused_with_a_url():
    parsed = parse("chat", "http://x", "--threads", "2")
    with pytest.raises(ConfigError, match="threads"):
        chat.run(parsed)
    assert isinstance(parsed, argparse.Namespace)
