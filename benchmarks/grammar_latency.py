"""What hostile grammars do to the people who are being answered.

    python benchmarks/grammar_latency.py [--threads N]

Eight chats are streamed by a real server; then more of them while hostile grammars arrive one after
the other, each with a request for 8 tokens, until all were sent: median and 99th percentile of the
time between two pieces of a chat, and the slowest answer to a hostile request.
"""

import asyncio
import contextlib
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from measure import add, add_machine, argument
from shared_prefix_http import Server

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cpu"))
from hostile_grammars import all_of_them

CHATS, NEW = 8, 400
OPTIONS = ("regex", "json_schema", "ebnf")  # kinds that a sampling option exists for


async def chat(client: httpx.AsyncClient, text: str, gaps: list[float]) -> None:
    """Stream one answer, and note the time between its pieces."""
    sampling = {"temperature": 0.0, "max_new_tokens": NEW, "ignore_eos": True}
    body = {"text": text, "sampling_params": sampling, "stream": True}
    last = None
    async with client.stream("POST", "/generate", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                now = time.monotonic()
                if last is not None:
                    gaps.append(now - last)
                last = now


async def chats(client: httpx.AsyncClient, salt: int) -> list[float]:
    """The gaps of eight chats."""
    gaps: list[float] = []
    tasks = (chat(client, f"Chat {salt}, guest {i}: tell me a story.", gaps) for i in range(CHATS))
    await asyncio.gather(*tasks)
    return gaps


def attacks() -> list[tuple[str, bytes]]:
    """(name, body) of every hostile grammar, made before anything is measured."""
    found = []
    for name, spec in all_of_them().items():
        if spec.kind not in OPTIONS:
            continue
        sampling: dict[str, Any] = {spec.kind: spec.text, "max_new_tokens": 8}
        if not spec.strict:
            sampling["strict"] = False
        body = {"text": "Hello", "sampling_params": sampling}
        with contextlib.suppress(UnicodeEncodeError):  # half a character cannot be sent
            found.append((name, httpx.Request("POST", "http://server", json=body).content))
    return found


async def attack(
    client: httpx.AsyncClient,
    bodies: list[tuple[str, bytes]],
    answers: list[tuple[float, int, str]],
) -> None:
    """Send every hostile grammar, one after the other."""
    for name, content in bodies:
        began = time.monotonic()
        response = await client.post("/generate", content=content)
        answers.append((time.monotonic() - began, response.status_code, name))


async def measure(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        client.headers["content-type"] = "application/json"
        bodies = attacks()
        await chats(client, 0)  # warm up
        calm = await chats(client, 1)
        answers: list[tuple[float, int, str]] = []
        attacker = asyncio.create_task(attack(client, bodies, answers))
        busy: list[float] = []
        for salt in itertools.count(2):
            busy += await chats(client, salt)
            if attacker.done():
                break
        attacker.result()
    for name, gaps in (("undisturbed", calm), ("beside hostile grammars", busy)):
        marks = statistics.quantiles(gaps, n=100)
        add(f"{name}: gap, median, ms", marks[49] * 1e3)
        add(f"{name}: gap, p99, ms", marks[98] * 1e3)
    ratio = statistics.quantiles(busy, n=100)[98] / statistics.quantiles(calm, n=100)[98]
    add("p99 beside hostile grammars over undisturbed", ratio)
    add("hostile requests answered", len(answers))
    add("of them refused", sum(status == 400 for _, status, _ in answers))
    add("of them with 5xx", sum(status >= 500 for _, status, _ in answers))
    slowest, _, name = max(answers)
    add(f"slowest answer, s ({name})", slowest)


def main() -> None:
    add_machine()
    with Server("--threads", str(argument("threads", 2))) as url:
        asyncio.run(measure(url))


if __name__ == "__main__":
    main()
