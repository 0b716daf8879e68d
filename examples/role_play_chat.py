"""A role-play chatbot: one long character sheet, many users, every one with a chat of their own.

    python examples/role_play_chat.py                the service on a server of its own
    python examples/role_play_chat.py --url URL      the same on a server that runs already
    python examples/role_play_chat.py --demo         and measured without the cache, side by side

Every prompt begins with the same sheet of a thousand tokens, and every turn repeats the chat before
it. The server keeps what it has computed in one radix tree, so the sheet is computed for the first
user only, and of each further turn only what is new.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))  # Python leaves it out under PYTHONSAFEPATH
from serving import DATA, endpoint, outcome

from ramify import assistant, function, gen, system, user

CHARACTER = (DATA / "character.md").read_text().strip()
# Greedy; the small model repeats itself without the penalty.
GREEDY: dict[str, Any] = {"temperature": 0.0, "frequency_penalty": 0.4}
Chats = Mapping[str, Sequence[str]]  # what each user says, turn by turn


@function
def role_play(s: Any, turns: Sequence[str]) -> None:
    """One user's chat. Nothing here waits: answers are variables that are read afterwards."""
    s += system(CHARACTER)
    for number, turn in enumerate(turns):
        s += user(turn)
        s += assistant(gen(f"answer {number}"))


@dataclass(frozen=True)
class Turn:
    """One answer, and what the server says about it."""

    name: str
    number: int
    prompt: int
    reused: int
    generated: int
    ttft_s: float  # from the arrival of the request at the engine to its first token
    answer: str

    @property
    def computed(self) -> int:
        """Prompt tokens that were not in the cache."""
        return self.prompt - self.reused


@dataclass(frozen=True)
class Run:
    """All turns of all users, and how long they took together."""

    turns: list[Turn]
    seconds: float

    def total(self, field: str) -> int:
        """The sum of one number over all turns."""
        return sum(getattr(turn, field) for turn in self.turns)

    @property
    def ttft_ms(self) -> float:
        """The median time to the first token."""
        return 1000 * median(turn.ttft_s for turn in self.turns)


def talk(runs_on: Any, chats: Chats, label: str = "answers", **options: Any) -> Run:
    """Let all users talk at the same time. `options` are those of a generation.

    `label` stands before the progress bar, which is shown on a terminal only.
    """
    start = time.perf_counter()
    # `run` returns at once, as the program reads no variable: all chats go on side by side.
    states = {
        name: role_play.run(turns, backend=runs_on, **GREEDY, **options)
        for name, turns in chats.items()
    }
    waiting = sorted((n, name) for name, turns in chats.items() for n in range(len(turns)))
    terminal = Console(stderr=True)
    hidden = not terminal.is_terminal
    rows = track(waiting, label, console=terminal, transient=True, disable=hidden)
    turns = [_turn(name, number, states[name]) for number, name in rows]
    return Run(turns, time.perf_counter() - start)


def _turn(name: str, number: int, state: Any) -> Turn:
    """Read one answer; waits until it is there."""
    variable = f"answer {number}"
    answer, meta = state[variable], state.get_meta_info(variable)
    return Turn(
        name=name,
        number=number + 1,
        prompt=meta["prompt_tokens"],
        reused=meta["cached_tokens"],
        generated=meta["completion_tokens"],
        ttft_s=meta["ttft"],
        answer=" ".join(answer.split()),
    )


def show(console: Console, run: Run) -> None:
    """One row for each turn, and the totals below."""
    table = Table(title="all users talk to Mina at the same time", show_footer=True)
    table.add_column("user", footer="all")
    table.add_column("turn", footer=str(len(run.turns)), justify="right")
    for field in ("prompt", "reused", "computed"):
        table.add_column(field, footer=f"{run.total(field):,}", justify="right")
    table.add_column("TTFT ms", footer=f"{run.ttft_ms:.0f}*", justify="right")
    table.add_column("answer", footer="* median", no_wrap=True, width=max(console.width - 60, 12))
    for turn in sorted(run.turns, key=lambda turn: turn.name):
        counts = [f"{n:,}" for n in (turn.number, turn.prompt, turn.reused, turn.computed)]
        table.add_row(turn.name, *counts, f"{1000 * turn.ttft_s:.0f}", escape(turn.answer))
    share = run.total("reused") / run.total("prompt")
    rate = run.total("generated") / run.seconds
    console.print(table)
    console.print(
        f"{share:.0%} of the prompt tokens came from the cache. {len(run.turns)} answers in "
        f"{run.seconds:.1f} s, {rate:.0f} generated tokens/s.\n"
    )


def comparison(cached: Run, plain: Run) -> Table:
    """The two runs side by side, and how many times less each number is with the cache."""
    table = Table(title="the same chats with and without the cache")
    table.add_column()
    for name in ("radix cache", "--disable-radix-cache", "ratio"):
        table.add_column(name, justify="right")
    rows = (
        ("prompt tokens computed", "{:,}", cached.total("computed"), plain.total("computed")),
        ("TTFT, median, ms", "{:,.0f}", cached.ttft_ms, plain.ttft_ms),
        ("total time, s", "{:.1f}", cached.seconds, plain.seconds),
    )
    for label, form, less, more in rows:
        table.add_row(label, form.format(less), form.format(more), f"{more / less:.1f}x")
    return table


def serve_once(console: Console, url: str | None, chats: Chats, max_tokens: int) -> None:
    """The service as it is: answers end by themselves."""
    with endpoint(url) as runs_on:
        run = talk(runs_on, chats, max_new_tokens=max_tokens)
    show(console, run)


def demo(console: Console, chats: Chats, tokens: int) -> None:
    """The chats on two servers, one after the other: with the cache, then without it."""
    # All answers have the same length, so that both runs have the same amount of work even where
    # rounding makes the model say something else.
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    with endpoint() as runs_on:
        cached = talk(runs_on, chats, "with the cache", **length)
    show(console, cached)
    with endpoint(None, "--disable-radix-cache") as runs_on:
        plain = talk(runs_on, chats, "without it", **length)
    console.print(comparison(cached, plain))
    same = sum(a.answer == b.answer for a, b in zip(cached.turns, plain.turns, strict=True))
    console.print(
        "Measured just now, one server at a time, each with an empty cache. Greedy decoding, every "
        f"answer {tokens} tokens long; {same} of {len(cached.turns)} answers are the same in both "
        "runs: rounding depends on what is computed together, unless a server is started with "
        "--deterministic."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example. Returns the exit code."""
    parser = argparse.ArgumentParser(description="A role-play chatbot service.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="a running server, e.g. http://127.0.0.1:30000")
    where.add_argument("--demo", action="store_true", help="measure with and without the cache")
    parser.add_argument("--users", type=int, default=6, choices=range(1, 7), help="users")
    parser.add_argument(
        "--turns", type=int, default=3, choices=(1, 2, 3), help="turns of each user"
    )
    parser.add_argument("--max-tokens", type=int, default=32, help="length of an answer")
    args = parser.parse_args(argv)
    everybody: dict[str, list[str]] = json.loads((DATA / "passengers.json").read_text())
    chats = {name: turns[: args.turns] for name, turns in list(everybody.items())[: args.users]}
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    if args.demo:
        return outcome(lambda: demo(console, chats, args.max_tokens))
    return outcome(lambda: serve_once(console, args.url, chats, args.max_tokens))


if __name__ == "__main__":
    sys.exit(main())
