"""`ramify generate`: continue one prompt with the engine in this process, printing as it comes."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

from ramify.frontend_api.options import sampling_given, take
from ramify.srt.config import EngineConfig, check_engine
from ramify.srt.engine import Engine


def run(parsed: argparse.Namespace) -> int:
    """The subcommand. Returns the exit code."""
    config = take(EngineConfig, parsed)
    check_engine(config)
    prompt = sys.stdin.read() if parsed.prompt == "-" else parsed.prompt
    with Engine(**asdict(config)) as engine:
        sampling = sampling_given(parsed)
        stream = engine.generate(prompt, sampling, stream=True)
        replies = cast("Iterator[dict[str, Any]]", stream)
        done = _print_one(replies) if sampling.get("n", 1) == 1 else _print_each(replies)
    for reply in done:
        print(summary(reply["meta_info"]), file=sys.stderr)
    return 0


def _print_one(replies: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    told = 0
    reply: dict[str, Any] = {}
    for reply in replies:
        print(reply["text"][told:], end="", flush=True)
        told = len(reply["text"])
    print()
    return [reply]


def _print_each(replies: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several sequences cannot share a line: each is printed when all are done."""
    last = {reply["index"]: reply for reply in replies}
    done = [last[place] for place in sorted(last)]
    for place, reply in enumerate(done):
        print(f"--- {place + 1} of {len(done)}\n{reply['text']}")
    return done


def summary(meta: dict[str, Any]) -> str:
    """One line of counts for people."""
    computed = meta["prompt_tokens"] - meta["cached_tokens"]
    rate = meta["completion_tokens"] / max(meta["e2e_latency"], 1e-9)
    return (
        f"[prompt: {meta['cached_tokens']} reused, {computed} computed; "
        f"{meta['completion_tokens']} generated, {rate:.1f} tokens/s]"
    )
