"""The `ramify` command: parses options, runs one subcommand, turns errors into one line.

Exit codes: 0 done, 1 the model or the server failed, 2 the command line is wrong, 130 Ctrl-C.
Every subcommand lives in a module of its own that is imported only when it runs: `--help` is fast.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import ramify
from ramify.frontend_api.options import add_config, add_sampling
from ramify.srt.config import EngineConfig, ServeConfig
from ramify.srt.errors import ConfigError, ModelLoadError, RamifyError, RequestError

MODEL_HELP = "alias (smollm2), folder, Hugging Face hub id, GGUF file or dummy:CONFIG"
# A person wants an answer, not a sample: small models wander off at temperature 1.
CHAT_DEFAULTS = {"max_new_tokens": 512, "temperature": 0.3, "top_p": 0.9}
COMMANDS = {
    "serve": "ramify.frontend_api.serve",
    "generate": "ramify.frontend_api.commands.generate",
    "chat": "ramify.frontend_api.commands.chat",
    "models": "ramify.frontend_api.commands.models",
    "tune": "ramify.frontend_api.commands.tune",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of repeating the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code."""
    parsed = build_parser().parse_args(argv)
    try:
        code: int = importlib.import_module(COMMANDS[parsed.command]).run(parsed)
    except (ConfigError, RequestError) as error:
        return _fail(error, 2)
    except (ModelLoadError, RamifyError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = _Parser(prog="ramify", description="Write the branches, pay for the trunk once.")
    parser.add_argument("--version", action="version", version=f"ramify {ramify.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a model over HTTP")
    serve.add_argument("model", nargs="?", default="smollm2", help=MODEL_HELP)
    add_config(serve, ServeConfig)
    add_config(serve, EngineConfig)

    generate = commands.add_parser("generate", help="continue one prompt in the terminal")
    generate.add_argument("model", help=MODEL_HELP)
    generate.add_argument("prompt", help="the text to continue; - reads it from standard input")
    add_sampling(generate)
    add_config(generate, EngineConfig)

    chat = commands.add_parser("chat", help="talk to a model in the terminal")
    chat.add_argument(
        "model", nargs="?", default="smollm2", metavar="URL|MODEL", help="a server, or a model"
    )
    chat.add_argument("--system", default=None, metavar="TEXT", help="system message")
    add_sampling(chat, **CHAT_DEFAULTS)
    add_config(chat, EngineConfig)

    commands.add_parser("models", help="list the models that can be named")

    tune = commands.add_parser("tune", help="measure kernels for a model on this machine's GPU")
    tune.add_argument("model", help=MODEL_HELP)
    tune.add_argument(
        "--page-size", type=int, default=64, help="that of the engine to tune for (default 64)"
    )
    return parser


def _fail(error: Exception, code: int) -> int:
    print(f"ramify: {error}", file=sys.stderr)
    return code
