"""A shared prefix over HTTP: 48 requests, one 900-word prefix, 64 tokens out, 16 at once.

    python benchmarks/shared_prefix_http.py

A real server process on this machine, a client with 16 connections. With the radix cache, without
it, in turn; tokens per second count generated tokens from the first request to the last answer.
"""

import asyncio
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from measure import add, add_machine, argument

REQUESTS, AT_ONCE, NEW, WORDS = 48, 16, 64, 900
VOCABULARY = ["harbor", "lantern", "winter", "copper", "ledger", "orchard", "signal", "velvet"]
VOCABULARY += ["thimble", "ribbon", "glacier", "saddle", "cedar", "mirror", "anchor", "violet"]


def prompts(seed: int) -> list[str]:
    """One prefix of 900 words, then a question of its own for each request."""
    rng = random.Random(seed)
    prefix = " ".join(rng.choice(VOCABULARY) for _ in range(WORDS))
    return [
        f"{prefix}\n\nQuestion {i}: what about the {rng.choice(VOCABULARY)}?"
        for i in range(REQUESTS)
    ]


class Server:
    """A `ramify serve` process on a free port, ready when entered."""

    def __init__(self, *options: str) -> None:
        ramify = Path(sys.executable).with_name("ramify")
        self._command = [str(ramify), "serve", "smollm2", "--port", "0", "--log-level", "warning"]
        self._command += options

    def __enter__(self) -> str:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().startswith("url"):
                return line.split()[1].removesuffix("/v1")
        raise SystemExit("the server did not start")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


async def load(url: str, texts: list[str]) -> tuple[float, list[dict]]:
    """(tokens per second, meta_info of every answer)."""
    gate = asyncio.Semaphore(AT_ONCE)
    sampling = {"temperature": 0.0, "max_new_tokens": NEW, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def one(text: str) -> dict:
            async with gate:
                answer = await client.post(
                    "/generate", json={"text": text, "sampling_params": sampling}
                )
            return answer.raise_for_status().json()["meta_info"]

        began = time.perf_counter()
        metas = await asyncio.gather(*map(one, texts))
        took = time.perf_counter() - began
    return sum(m["completion_tokens"] for m in metas) / took, metas


def main() -> None:
    add_machine()
    rounds, speeds, reused = argument("rounds", 3), {}, 0.0
    for seed in range(rounds):
        for name, options in (("cache on", ()), ("cache off", ("--disable-radix-cache",))):
            with Server(*options) as url:
                asyncio.run(load(url, prompts(1000 + seed)[:4]))  # warm up on another prefix
                speed, metas = asyncio.run(load(url, prompts(seed)))
            speeds.setdefault(name, []).append(speed)
            if name == "cache on":
                prompt = sum(m["prompt_tokens"] for m in metas)
                reused = sum(m["cached_tokens"] for m in metas) / prompt * 100
    for name, values in speeds.items():
        add(f"{name}: tokens/s, median of {rounds}", statistics.median(values))
    ratio = statistics.median(speeds["cache on"]) / statistics.median(speeds["cache off"])
    add("cache on over off", ratio)
    add("prompt tokens reused, %", reused)


if __name__ == "__main__":
    main()
