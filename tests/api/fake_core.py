"""A core without a model, for the tests of everything around it: no torch, deterministic tokens.

In a process it is named `fake_core:make` and takes its knobs from the model's name, e.g.
`fake:step_s=0.01,crash_at=500`. A token with the value of a `*_at` knob in a prompt sets it off.
"""

import math
import os
import time
from dataclasses import dataclass, fields

from ramify.srt.config import EngineConfig
from ramify.srt.errors import ModelLoadError
from ramify.srt.messages import (
    EngineStats,
    Finished,
    ModelInfo,
    Pin,
    Pinned,
    Rejected,
    ShowTree,
    Submit,
    ToFrontend,
    TokenLogprob,
    Tokens,
    TreeNode,
    TreeShown,
    Unpin,
    unpack_ids,
)

VOCAB_SIZE = 1024
EOS = 1000
OPEN, CLOSE = (ord(brace) - ord("!") for brace in "{}")


@dataclass(frozen=True)
class Knobs:
    """How the fake misbehaves. -1: never."""

    step_s: float = 0.0  # how long a step takes
    load_s: float = 0.0
    context_length: int = 4096
    raise_at: int = -1  # a prompt with this token makes `step` raise
    exit_at: int = -1  # a prompt with this token ends the process at once
    reject_at: int = -1  # a prompt with this token is rejected, a prefix with it not pinned
    eos_after: int = -1  # every sequence ends by itself after so many tokens
    unusable: int = 0  # 1: loading fails with a ModelLoadError; 2: with a bug
    parser: str = ""  # its reasoning parser; a prompt may then say what the answer is


class FakeCore:
    """Answers a prompt whose last token is t with t + 1, t + 2, ... modulo `EOS`.

    The likeliest tokens at a place are the one taken and those after it, each less likely by 1.
    With a parser, a prompt with braces is answered with what is between them.
    """

    def __init__(self, knobs: Knobs | None = None) -> None:
        self.knobs = knobs or Knobs()
        self.info = ModelInfo(
            vocab_size=VOCAB_SIZE,
            context_length=self.knobs.context_length,
            eos_token_ids=(EOS,),
            dtype="float32",
            device="cpu",
            architecture="FakeForCausalLM",
            weight_bytes=0,
            kv_pool_tokens=self.knobs.context_length,
            load_s=self.knobs.load_s,
            reasoning_parser=self.knobs.parser or None,
        )
        self.running: dict[str, tuple[Submit, list[int], int]] = {}  # submit, prompt, made so far
        self.deadlines: dict[str, float] = {}
        self.pinned: dict[tuple[str, bytes], float] = {}  # a prefix to when its pin ends
        self.steps = 0
        self.flushes = 0
        self.aborted: list[str] = []

    @property
    def idle(self) -> bool:
        return not self.running

    def submit(self, message: Submit, now: float) -> Rejected | None:
        prompt = unpack_ids(message.token_ids)
        if self.knobs.reject_at in prompt:
            return Rejected(message.request_id, "QueueFull", "the queue is full")
        self.running[message.request_id] = (message, prompt, 0)
        if message.timeout_s is not None:
            self.deadlines[message.request_id] = time.monotonic() + message.timeout_s
        return None

    def abort(self, request_id: str, now: float) -> list[ToFrontend]:
        if request_id not in self.running:
            return []
        self.aborted.append(request_id)
        return [self._finished(request_id, "abort", None)]

    def flush(self) -> bool:
        self.flushes += self.idle
        return self.idle

    def inspect(self, *, check: bool) -> tuple[EngineStats, list[str]]:
        return EngineStats(len(self.running), *[0] * 5, self.steps, *[0] * 5), []

    def pin(self, message: Pin, now: float) -> Pinned:
        ids = unpack_ids(message.token_ids)
        if self.knobs.reject_at in ids:
            return Pinned(message.call_id, 0, "pins may hold no more of the cache")
        self.pinned[message.namespace, message.token_ids] = now + message.ttl_s
        return Pinned(message.call_id, len(ids))

    def unpin(self, message: Unpin, now: float) -> Pinned:
        ends = self.pinned.pop((message.namespace, message.token_ids), now)
        return Pinned(message.call_id, len(message.token_ids) // 4 if ends > now else 0)

    def show_tree(self, message: ShowTree) -> TreeShown:
        """One node for each pin, the latest first."""
        nodes = [
            TreeNode(i, 0, namespace, 0, unpack_ids(packed), len(packed) // 4, 1, 7, 0, 1, i)
            for i, (namespace, packed) in enumerate(reversed(self.pinned), 1)
        ]
        return TreeShown(message.call_id, len(nodes), nodes[: message.limit])

    def close(self) -> None:
        """Nothing outlives it."""

    def step(self) -> list[ToFrontend]:
        if self.idle:
            return []
        self.steps += 1
        time.sleep(self.knobs.step_s)
        return [message for key in list(self.running) for message in self._advance(key)]

    def _advance(self, request_id: str) -> list[ToFrontend]:
        submit, prompt, made = self.running[request_id]
        if self.knobs.exit_at in prompt:
            os._exit(9)
        if self.knobs.raise_at in prompt:
            raise RuntimeError("the fake was told to fail")
        if made == submit.sampling.max_new_tokens:
            return [self._finished(request_id, "length", None)]
        if time.monotonic() > self.deadlines.get(request_id, math.inf):
            return [self._finished(request_id, "timeout", None)]
        made += 1
        self.running[request_id] = (submit, prompt, made)
        token = EOS if made == self.knobs.eos_after else (prompt[-1] + made) % EOS
        if self.knobs.parser and CLOSE in prompt:
            begin = prompt.index(OPEN) + 1
            token = [*prompt[begin : prompt.index(CLOSE)], EOS][made - 1]
        top = [(-0.5 - i, (token + i) % (EOS + 1)) for i in range(max(1, submit.top_logprobs))]
        logprobs = [TokenLogprob(-0.5, token, top)] if submit.return_logprob else None
        out: list[ToFrontend] = [Tokens(request_id, [token], 0, logprobs)]
        if token == EOS or token in submit.sampling.stop_token_ids:
            out.append(self._finished(request_id, "stop", token))
        elif made == submit.sampling.max_new_tokens:
            out.append(self._finished(request_id, "length", None))
        return out

    def _finished(self, request_id: str, reason: str, matched: int | None) -> Finished:
        _, prompt, made = self.running.pop(request_id)
        self.deadlines.pop(request_id, None)
        return Finished(
            request_id, reason, matched, len(prompt), 0, made, 0, 0.0, 0.0, "never seen"
        )


def make(config: EngineConfig) -> FakeCore:
    """The core for a model named `fake:KNOB=VALUE,...`."""
    types = {item.name: item.type for item in fields(Knobs)}
    pairs = [pair.split("=") for pair in config.model.removeprefix("fake:").split(",") if pair]
    knobs = Knobs(**{name: types[name](value) for name, value in pairs})
    time.sleep(knobs.load_s)
    if knobs.unusable == 1:
        raise ModelLoadError("fake/model.safetensors ends in the middle of a tensor")
    if knobs.unusable == 2:
        raise RuntimeError("a bug while loading")
    return FakeCore(knobs)
