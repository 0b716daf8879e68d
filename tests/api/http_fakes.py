"""A whole server over a fake core, started by the fixtures as a process of its own.

    python http_fakes.py MODEL FOLDER [NAME=VALUE ...]     options of the server

The tokenizer is one token per character, in the order of the code points from "!" on, so the fake
core answers "abc" with "defg...". `write_tokenizer` puts it into a folder.
"""

import json
import os
import sys
from pathlib import Path

import fake_core
import tokenizers
from fake_core import EOS, FakeCore, Knobs
from msgspec.structs import replace
from tokenizers import decoders, models, pre_tokenizers

from ramify.frontend_api import serve
from ramify.frontend_api.keys import load_keys
from ramify.srt.config import EngineConfig, ServeConfig
from ramify.srt.errors import ModelLoadError
from ramify.srt.messages import (
    EngineStats,
    Finished,
    Rejected,
    Submit,
    ToFrontend,
    TokenLogprob,
    Tokens,
    unpack_ids,
)
from ramify.srt.weights.source import ModelFolder

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if enable_thinking is false %}<nothink>{% endif %}"
    "{% for m in messages %}{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges, whose last ids are padding and EOS."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: place for place, letter in enumerate(letters)}
    vocab |= {f"word{i}": i for i in range(len(letters), EOS)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<eos>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")


class CachingCore(FakeCore):
    """The fake with a cache: every prompt is remembered, per namespace. -1.0 for prompt tokens.

    Where its invariants are asked for, it tells for which accounts it worked since the last time.
    Of a constraint it enforces nothing, and says what came as what it did not enforce; it refuses
    the one whose text is "[".
    """

    def __init__(self, knobs: Knobs) -> None:
        super().__init__(knobs)
        self.known: dict[str, list[list[int]]] = {}
        self.cached: dict[str, int] = {}
        self.accounts: set[str] = set()

    def submit(self, message: Submit, now: float):
        self.accounts |= {message.account} - {""}
        if message.grammar is not None and message.grammar.text == "[":
            param = message.grammar.param
            why = f"{param} cannot be used: it does not end"
            return Rejected(message.request_id, "InvalidRequest", why, param, "invalid_grammar")
        prompt = unpack_ids(message.token_ids)
        known = self.known.setdefault(message.namespace, [])
        found = max((common(prompt, other) for other in known), default=0)
        self.cached[message.request_id] = min(found, len(prompt) - 1)
        known.append(prompt)
        return super().submit(message, now)

    def flush(self) -> bool:
        if self.idle:
            self.known.clear()
        return super().flush()

    def inspect(self, *, check: bool) -> tuple[EngineStats, list[str]]:
        stats, _ = super().inspect(check=check)
        told = sorted(self.accounts) if check else []
        self.accounts -= set(told)
        return stats, told

    def _advance(self, request_id: str) -> list[ToFrontend]:
        submit, prompt, made = self.running[request_id]
        cached = self.cached[request_id]
        out = super()._advance(request_id)
        if made == 0 and submit.logprob_start >= 0:
            said = [
                TokenLogprob(None if place == 0 else -1.0, token, [(-1.0, token)])
                for place, token in enumerate(prompt)
            ]
            first = out.pop(0) if isinstance(out[0], Tokens) else Tokens(request_id, [], 0, [])
            out.insert(0, replace(first, prompt_logprobs=said[submit.logprob_start :]))
        return [replace(item, cached_tokens=cached) for item in out]

    def _finished(self, request_id: str, reason: str, matched: int | None) -> Finished:
        submit = self.running[request_id][0]
        spec = submit.grammar
        done = super()._finished(request_id, reason, matched)
        if spec is None:
            return done
        came = [spec.kind, spec.text, str(spec.strict), f"as {spec.param}"]
        came += ["after thinking"] if submit.reasoning else []
        return replace(done, unenforced=came, jump_forward_tokens=7)


def common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


def make(config: EngineConfig) -> CachingCore:
    """The core for a model named `fake:KNOB=VALUE,...`, as in `fake_core`."""
    return CachingCore(fake_core.make(config).knobs)


def main(model: str, folder: str, *options: str) -> int:
    serve.set_up_log("warning")
    given = {name: json.loads(value) for name, value in (item.split("=") for item in options)}
    config = ServeConfig(port=0, log_level="warning", **given)
    with serve.bound(config) as sock:
        server = serve.Server(
            EngineConfig(model=model, seed=0),
            config,
            ModelFolder("fake", Path(folder)),
            sock,
            core="http_fakes:make",
            keys=load_keys(config, os.environ),
        )
        try:
            return serve.run_loop(server)
        except ModelLoadError as error:  # as `cli.main` does
            print(error, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
