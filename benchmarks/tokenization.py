"""What remembering the parts of long texts saves: a shared beginning with a new end each time.

    python benchmarks/tokenization.py [--tokens N] [--rounds N]

`Tokenizer.encode` of a beginning of N tokens (4,000) and a short end, with the memory of parts and
without, in turn. "first" is a text never seen: what the memory costs when it cannot help.
"""

import itertools
import random
import time
from collections.abc import Callable

from measure import add, add_machine, argument, in_turn

from ramify.srt.tokenization import Tokenizer
from ramify.srt.weights.source import prepare

WORDS = (
    *("the", "of", "a", "tree", "token", "prefix", "memory", "computation", "Running", "quickly,"),
    *(
        "which",
        "12",
        "model's",
        "(see",
        "below)",
        "Paris",
        "naïve",
        "2024",
        "requests:",
        "\n\n",
        "-",
    ),
)


def text_of(tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """About `tokens` tokens of words in random order."""
    chosen = random.Random(seed)
    words = " ".join(chosen.choice(WORDS) for _ in range(tokens))
    return tokenizer.decode(tokenizer.encode(words)[:tokens])


def timed(tokenizer: Tokenizer, new_text: Callable[[], str]) -> Callable[[], float]:
    """A run that gives the milliseconds of encoding one text."""

    def run() -> float:
        text = new_text()
        began = time.perf_counter()
        tokenizer.encode(text)
        return 1e3 * (time.perf_counter() - began)

    return run


def main() -> None:
    add_machine()
    folder = prepare("smollm2").path
    on, off = Tokenizer.load(folder), Tokenizer.load(folder, prefix_cache_bytes=0)
    tokens, rounds, numbers = argument("tokens", 4000), argument("rounds", 100), itertools.count()
    shared = text_of(off, tokens, seed=0)
    assert on.encode(shared) == off.encode(shared)

    def tail() -> str:
        return f"{shared}\nQuestion {next(numbers)}: what is a tree?"

    def unseen() -> str:
        return text_of(off, tokens, seed=1 + next(numbers))

    print("encode, milliseconds")
    for name, new_text in (("shared beginning", tail), ("first", unseen)):
        without, with_parts = in_turn(rounds, timed(off, new_text), timed(on, new_text))
        add(f"{name}, without", without)
        add(f"{name}, with", with_parts)
        add(f"{name}, ratio", without / with_parts)


if __name__ == "__main__":
    main()
